"""From the probabilities of starts and ends to what was found: spans of a text, or a label of the prompt.

    a span's probability     p(start) · p(end), both above the threshold: so it may be just above the threshold squared
    a long text              spans of all its windows; of the same span in two, the higher probability
    a classification         each window votes for its most probable label; the winner has the most votes, then the
                             highest sum of probabilities; its probability is the mean of its votes

Starts and ends are paired within the prompt and within the text, without special tokens and padding. PaddleNLP pairs
them across, and then has results with the text "" at 0:0. A label is found where its tokens start and end, not by
counting characters. A span at the edge of a window that its neighbour shows whole is left to the neighbour, as it may
go on beyond the edge.

Source: paddlenlp 2.8.1, `utils/tools.py`, `get_span`, `get_id_and_prob`; `taskflow/utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..array import Array
from ..training.spans import covering, paired

PROMPT, TEXT = 0, 1
# Characters start:end, and the probability.
Spans = dict[tuple[int, int], float]


def pairs_on(side: int, sides: Array, starts: Array, ends: Array, threshold: float) -> list[tuple[int, int, float]]:
    """The first and the last token of each span on one side of a row, and its probability; all arguments (n,)."""
    first, last = (np.flatnonzero((p > threshold) & (sides == side)).tolist() for p in (starts, ends))
    return [(s, e, float(starts[s]) * float(ends[e])) for s, e in paired(first, last)]


def spans_in(offsets: Array, sides: Array, starts: Array, ends: Array, threshold: float) -> Spans:
    """The spans of the text of one row, whose tokens stand for the characters `offsets`, (n, 2); the rest is (n,)."""
    found: Spans = {}
    for s, e, p in pairs_on(TEXT, sides, starts, ends, threshold):
        span = int(offsets[s, 0]), int(offsets[e, 1])
        if span[0] < span[1]:
            found[span] = max(p, found.get(span, 0.0))
    return found


def label_in(
    labels: Iterable[tuple[str, int, int]], offsets: Array, sides: Array, starts: Array, ends: Array, threshold: float
) -> tuple[str, float] | None:
    """The most probable label of one row, and its probability; None if none is found. Of equals the first.

    labels: each with its characters in the prompt, for whose tokens `offsets` are those of the prompt.
    """
    probabilities = {(s, e): p for s, e, p in pairs_on(PROMPT, sides, starts, ends, threshold)}
    places, best = np.flatnonzero(sides == PROMPT), None
    for label, start, end in labels:
        tokens = covering(offsets[places], start, end)
        if tokens is not None:
            p = probabilities.get((int(places[tokens[0]]), int(places[tokens[1] - 1])))
            if p is not None and (best is None or p > best[1]):
                best = label, p
    return best


def merge_windows(windows: Sequence[tuple[tuple[int, int], Mapping[tuple[int, int], float]]]) -> Spans:
    """The spans of a text, by position, from those of its windows: for each window its characters, and its spans."""
    found: Spans = {}
    for i, ((begin, end), spans) in enumerate(windows):
        before = windows[i - 1][0][1] if i > 0 else None
        after = windows[i + 1][0][0] if i + 1 < len(windows) else None
        for span, p in spans.items():
            cut_before = before is not None and span[0] == begin and span[1] < before
            cut_after = after is not None and span[1] == end and span[0] > after
            if not (cut_before or cut_after):
                found[span] = max(p, found.get(span, 0.0))
    return dict(sorted(found.items()))


def vote(labels: Iterable[tuple[str, float] | None]) -> tuple[str, float] | None:
    """The label of a text, and its probability, from those of its windows; None if no window has one."""
    votes: dict[str, list[float]] = {}
    for found in labels:
        if found is not None:
            votes.setdefault(found[0], []).append(found[1])
    if not votes:
        return None
    label = max(votes, key=lambda name: (len(votes[name]), sum(votes[name])))
    return label, sum(votes[label]) / len(votes[label])

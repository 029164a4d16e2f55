"""From characters to tokens and back: spans as tags of tokens, as a start and an end, or as many of both.

    "Ada Byron, here"     tokens 0:3  4:9  9:10  11:15
    the name at 0:9       tags   B    I    O     O         start 0, end 1 (the last token)

A token belongs to a span if they share a character. So a span comes back exactly as it was unless it begins or ends
within a token, or within a token of another span; `is_exact` tells.

Twin: none; this is NumPy for both rooms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..array import Array
from .records import Span

OUTSIDE = "O"


def covering(offsets: Array, start: int, end: int) -> tuple[int, int] | None:  # (n, 2) -> tokens first:last + 1
    """The tokens that share a character with start:end, None if none does."""
    found = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
    return (int(found[0]), int(found[-1]) + 1) if len(found) else None


def is_exact(offsets: Array, start: int, end: int) -> bool:
    """Whether a span begins where a token begins, and ends where one ends."""
    tokens = covering(offsets, start, end)
    return tokens is not None and (offsets[tokens[0], 0], offsets[tokens[1] - 1, 1]) == (start, end)


def tag_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The tags of some kinds of spans: O, then for each its beginning and its inside."""
    return (OUTSIDE, *(f"{kind}-{label}" for label in labels for kind in "BI"))


def tags_of(offsets: Array, spans: Sequence[Span], names: Sequence[str]) -> Array:  # (n, 2) -> (n,) indices in names
    """The tag of each token; of two spans in one token, the first counts."""
    number = {name: i for i, name in enumerate(names)}
    tags = np.full(len(offsets), number[OUTSIDE], np.int64)
    for start, end, label in spans:
        tokens = covering(offsets, start, end)
        if tokens is not None:
            free = [t for t in range(*tokens) if tags[t] == number[OUTSIDE]]
            tags[free] = number[f"I-{label}"]
            tags[free[:1]] = number[f"B-{label}"]
    return tags


def spans_of(offsets: Array, tags: Sequence[int], names: Sequence[str]) -> tuple[Span, ...]:
    """The spans that tags describe. An inside that continues nothing begins a span, as in `conlleval`."""
    spans: list[Span] = []
    before = ""
    for (start, end), tag in zip(offsets.tolist(), tags, strict=True):
        kind, _, label = names[tag].partition("-")
        if kind == "I" and before == label:
            spans[-1] = spans[-1]._replace(end=end)
        elif kind != OUTSIDE:
            spans.append(Span(start, end, label))
        before = label
    return tuple(spans)


def best_span(starts: Array, ends: Array, allowed: Array, longest: int) -> tuple[float, int, int]:  # (n,) x 3
    """The highest sum of the logits of a start and an end not before it, and both; at most `longest` tokens."""
    n = len(starts)
    sums = np.where(allowed, starts, -np.inf)[:, None] + np.where(allowed, ends, -np.inf)
    sums[np.tril_indices(n, -1)] = -np.inf
    sums[np.triu_indices(n, longest)] = -np.inf
    start, end = divmod(int(np.argmax(sums)), n)
    return float(sums[start, end]), start, end


def paired(starts: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]]:
    """Pair ascending starts with ascending ends: each end with the last start before it that is after the end before.

    Source: paddlenlp 2.8.1, `utils/tools.py`, `get_span`.
    """
    pairs: list[tuple[int, int]] = []
    previous = -1
    for end in ends:
        between = [start for start in starts if previous < start <= end]
        if between:
            pairs.append((between[-1], end))
        previous = end
    return pairs

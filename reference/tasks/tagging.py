"""Tagging: the entities that token labels such as B-PER, I-PER, O describe.

    IO      adjacent tokens of the same kind form one entity
    BIO     B begins an entity; I continues one of its kind, or begins one
    BIOES   E continues an entity, or begins one, and ends it; S is an entity of one token

A label without such a prefix counts as I. An entity's score is the mean of the probabilities of its tokens' labels. A
long text is read in windows that overlap by at least a quarter, and each token's label is that of the window in which
it has most context on both sides.

Source: transformers 4.40.2, `pipelines/token_classification.py`, "simple", which is BIO here; conlleval for BIO; the
window with most context is that of BERT's `run_squad.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from ..array import Array
from ..heads import ErnieMForTokenClassification
from ..softmax import softmax
from .arguments import listed
from .long_texts import window_starts
from .results import Entity
from .task import Task

IO, BIO, BIOES = SCHEMES = ("IO", "BIO", "BIOES")
OUTSIDE = "O"


class Tagger(Task):
    """Finds entities in texts of any length."""

    head = ErnieMForTokenClassification

    @overload
    def tag(self, texts: str, scheme: str = ...) -> list[Entity]: ...  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
    @overload
    def tag(self, texts: Sequence[str], scheme: str = ...) -> list[list[Entity]]: ...
    def tag(self, texts: Any, scheme: str = BIO) -> Any:
        """The entities of each text, in their order; a list for one text, or one for each of a list.

        scheme: one of SCHEMES, how labels describe entities. Raises ValueError for another one, and for "BIO" if the
        checkpoint's labels are those of "BIOES".
        """
        single, texts = isinstance(texts, str), listed("texts", texts)
        kinds = [parsed(self.config.id2label[i], scheme) for i in range(self.config.num_labels)]
        if scheme == BIO and {"E-", "S-", "B-"} <= {name[:2] for name in self.config.id2label.values()}:
            raise ValueError("scheme: expected BIOES, as the checkpoint has labels that begin with E- and S-, got BIO")
        encoder = self.rows()
        found = encoder.texts(texts)
        room = encoder.longest - 2
        starts = [windows(len(text), room) for text in found]
        rows = [
            encoder.row(text.part(start, start + room), None, i) for i, text in enumerate(found) for start in starts[i]
        ]
        scores: list[list[Array]] = [[] for _ in texts]
        for row, output in zip(rows, self.outputs([row.choices[0] for row in rows]), strict=True):
            scores[row.record].append(softmax(output["logits"][row.side == 0].astype(np.float64)))
        results = []
        for text, tokens, parts, begins in zip(texts, found, scores, starts, strict=True):
            spans = entities(tokens.offsets, most_context(parts, begins, len(tokens)), kinds)
            results.append([Entity(label, start, end, text[start:end], score) for label, start, end, score in spans])
        return results[0] if single else results


def windows(n: int, room: int) -> list[int]:
    """Where the windows of n tokens begin; none of no tokens."""
    return window_starts(n, room) if n > room else [0] * (n > 0)


def most_context(parts: Sequence[Array], starts: Sequence[int], n: int) -> Array:  # [(S, C)], (n windows,) -> (n, C)
    """For each of n tokens, what is said by the window where it is furthest from both ends; of two, by the first."""
    if not parts:
        return np.zeros((n, 1))
    result = np.full((n, parts[0].shape[1]), np.nan)
    best = np.full(n, -1)
    for part, start in zip(parts, starts, strict=True):
        places = np.arange(len(part))
        context, here = np.minimum(places, places[::-1]), slice(start, start + len(part))
        better = context > best[here]
        best[here][better] = context[better]
        result[here][better] = part[better]
    return result


def parsed(name: str, scheme: str) -> tuple[str, str]:
    """What a label's prefix says, one of B, I, O, E and S, and the kind of entity. Raises ValueError for a scheme."""
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    if name == OUTSIDE:
        return OUTSIDE, ""
    known = "BIES" if scheme == BIOES else "BI"
    prefix, kind = (name[0], name[2:]) if name[1:2] == "-" and name[0] in known and name[2:] else ("I", name)
    return ("I" if scheme == IO else prefix), kind


def entities(offsets: Array, scores: Array, kinds: Sequence[tuple[str, str]]) -> list[tuple[str, int, int, float]]:
    """(kind, start, end, score) of each entity, from the tokens' characters (n, 2) and probabilities (n, C)."""
    groups: list[list[int]] = []
    before = OUTSIDE, ""
    chosen = scores.argmax(axis=1).tolist() if len(scores) else []
    for t, tag in enumerate(chosen):
        prefix, kind = kinds[tag]
        if prefix != OUTSIDE:
            if prefix in "BS" or before[0] in (OUTSIDE, "E", "S") or before[1] != kind:
                groups.append([])
            groups[-1].append(t)
        before = kinds[tag]
    return [
        (
            kinds[chosen[group[0]]][1],
            int(offsets[group[0], 0]),
            int(offsets[group[-1], 1]),
            float(np.mean([scores[t, chosen[t]] for t in group])),
        )
        for group in groups
    ]

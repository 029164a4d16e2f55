"""Word alignment: which words of a sentence and of its translation mean the same, by the vectors of their tokens.

    S_ij = (1 + cos(x_i, y_j)) / 2      for the units i of the sentence and j of the translation
    argmax     A_ij = 1 where j is the best in row i and i is the best in column j ("intersection")
    itermax    argmax again on M ⊙ S, twice in all, where M_ij is 1 if neither i nor j is aligned so far,
               α = 0.9 if one of them is, and 0 if both are; pairs add up

A unit is a run of letters, marks and digits, that is, a word; its vector is the mean of its tokens'. In scripts that
are written without spaces (Chinese characters, kana, Thai, Lao, Khmer, Burmese) each token is a unit, and so is each
token of punctuation or symbols. Of equal values the first is the best.

Left out: Match, the paper's rule for a maximum matching, and its correction for position, "distortion".
Source: SimAlign, Jalili Sabet et al., 2020, section 2; the vectors are those of one layer.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

import numpy as np

from ..array import Array
from ..training.retrieval import normalised
from .encoder import Encoder
from .results import TokenVectors

ITERMAX, ARGMAX = METHODS = ("itermax", "argmax")
ALPHA, ITERATIONS = 0.9, 2
# How the Unicode names of letters begin, in scripts that are written without spaces.
UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")

Span = tuple[int, int]


class AlignedPair(NamedTuple):
    """Characters [start, end) of the sentence and of the translation, and the cosine of the two units' vectors."""

    source: Span
    target: Span
    score: float


def align(
    sentence: str,
    translation: str,
    encoder: Encoder,
    method: str = ITERMAX,
    *,
    language: str | None = None,
    translation_language: str | None = None,
) -> list[AlignedPair]:
    """The pairs of units that belong together, by their place in the sentence, then in the translation.

    method: "itermax" finds more pairs, among them several for one unit; "argmax" only those that are each other's best.
    language, translation_language: if the encoder centres (see `Encoder.vectors`).

    The encoder's layer and centring count; with `normalize`, all tokens of a word weigh the same in its mean. What is
    truncated is not aligned. Raises ValueError for an unknown method, and as `Encoder.tokens`.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    sides = []
    for name, text, own in (("sentence", sentence, language), ("translation", translation, translation_language)):
        if not isinstance(text, str):
            raise TypeError(f"{name}: expected a text, got {text!r:.80}")
        sides.append(units(text, encoder.tokens([text], [name], own)[0]))
    (spans, x), (other_spans, y) = sides
    if not spans or not other_spans:
        return []
    cosines = normalised(x) @ normalised(y).T
    aligned = itermax((1.0 + cosines) / 2.0, 1 if method == ARGMAX else ITERATIONS)
    return [AlignedPair(spans[i], other_spans[j], float(cosines[i, j])) for i, j in np.argwhere(aligned).tolist()]


def itermax(scores: Array, iterations: int = ITERATIONS, alpha: float = ALPHA) -> Array:  # (m, n) -> (m, n) booleans
    """Which pairs are aligned. `scores`: similarities in [0, 1]. One iteration is the rule argmax."""
    aligned = np.zeros(scores.shape, bool)
    for _ in range(iterations):
        taken = aligned.any(axis=1, keepdims=True).astype(int) + aligned.any(axis=0)
        factors = np.array([1.0, alpha, 0.0], scores.dtype)[taken]
        # Where all is aligned, every product is 0, and none is the best.
        aligned |= mutual_best(factors * scores) & (taken < 2)
    return aligned


def mutual_best(scores: Array) -> Array:  # (m, n) -> (m, n) booleans
    """Where an entry is the first largest one of its row and of its column."""
    m, n = scores.shape
    rows, columns = scores.argmax(axis=1)[:, None], scores.argmax(axis=0)
    return (rows == np.arange(n)) & (columns == np.arange(m)[:, None])


def units(text: str, tokens: TokenVectors) -> tuple[list[Span], Array]:  # -> n spans, (n, E)
    """The units of a text: the characters of each, and the mean of its tokens' vectors."""
    groups: list[list[int]] = []
    for i, (start, end) in enumerate(tokens.spans):
        if not text[start:end].strip():
            continue
        if groups and joined(text, tokens.spans[groups[-1][-1]], (start, end)):
            groups[-1].append(i)
        else:
            groups.append([i])
    spans = [(tokens.spans[group[0]][0], max(tokens.spans[i][1] for i in group)) for group in groups]
    means = [tokens.vectors[group].mean(axis=0) for group in groups]
    return spans, np.array(means).reshape(len(groups), tokens.vectors.shape[1])


def joined(text: str, before: Span, after: Span) -> bool:
    """Whether two neighbouring tokens are parts of one word, or of one character."""
    if after[0] < before[1]:
        return True
    return after[0] == before[1] and is_spaced(text[before[1] - 1]) and is_spaced(text[after[0]])


def is_spaced(character: str) -> bool:
    """Whether it is a letter, mark or digit of a script that puts spaces between words."""
    return unicodedata.category(character)[0] in "LMN" and not unicodedata.name(character, "").startswith(UNSPACED)

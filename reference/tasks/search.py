"""Search by cosine: for each query, the k nearest vectors of a corpus, which may be larger than memory.

    x -> round(2^26 x / |x|)        each vector, once; the cosine of two is their product / 2^52

These are whole numbers, and no sum of products exceeds 2^53, so matrix products in float64 are exact, in any order of
summation: hits do not depend on block sizes, threads or the BLAS library, and equal vectors have equal scores. Rounding
moves a cosine by at most √E 2^-26, about as much as float32 does.

The corpus is read once, block by block, and each query keeps its best k so far. A later vector must be better, not
equal, to take a place, so of equal ones the first are kept.

Left out: an index, which is faster than reading everything; README.md says how to go on with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..array import Array, floating
from .arguments import at_least_one, several
from .encoder import Encoder

SCALE = 2.0**26
# Queries, and vectors of the corpus, in one product: 16 MB of scores.
QUERIES, BLOCK = 256, 8192

Texts = Sequence[str]


class Hits(NamedTuple):
    """For Q queries, from the best on: rows of the corpus, int64 (Q, k), and their cosines (Q, k)."""

    indices: Array
    scores: Array


def search(
    queries: Texts | Array,
    corpus: Texts | Array,
    k: int = 10,
    *,
    encoder: Encoder | None = None,
    language: str | Sequence[str] | None = None,
    corpus_language: str | Sequence[str] | None = None,
    block: int = BLOCK,
) -> Hits:
    """The k vectors of the corpus with the largest cosines for each query, all if there are fewer; ties by index.

    queries: (Q, E), or Q texts for `encoder`. corpus: (N, E), such as `numpy.load("x.npy", mmap_mode="r")` of a file
    that `ernie-m encode` wrote; or N texts, all of which are encoded first.
    language, corpus_language: of the texts, if the encoder centres (see `Encoder.vectors`).
    block: how many vectors of the corpus are in memory at a time; the result is the same for every number.

    Scores are in the wider dtype of the two, float32 at least. Raises TypeError for arguments of another type, and
    ValueError for another shape or k, for vectors of different widths, for a vector that is zero or not finite, naming
    its row, and for texts without an encoder.
    """
    k, block = at_least_one("k", k), at_least_one("block", block)
    asked = vectors_of("queries", queries, encoder, language)
    kept = vectors_of("corpus", corpus, encoder, corpus_language)
    if asked.shape[1] != kept.shape[1]:
        raise ValueError(
            f"corpus: expected vectors of width {asked.shape[1]}, as the queries, got width {kept.shape[1]}"
        )
    units = on_grid("queries", asked, 0)
    Q, N = len(asked), len(kept)
    k = min(k, N)
    scores = np.full((Q, k), -np.inf)
    indices = np.zeros((Q, k), np.int64)
    for start in range(0, N, block):
        others = on_grid("corpus", kept[start : start + block], start)
        for i in range(0, Q, QUERIES):
            part = slice(i, i + QUERIES)
            merge(scores[part], indices[part], units[part] @ others.T, start)
    found = np.clip(scores / SCALE**2, -1.0, 1.0)
    return Hits(indices, found.astype(np.result_type(asked.dtype, kept.dtype, np.float32)))


def vectors_of(
    name: str, given: Texts | Array, encoder: Encoder | None, language: str | Sequence[str] | None
) -> Array:  # -> (N, E)
    """The array that was given, or the vectors of the texts. Raises ValueError for neither."""
    if isinstance(given, np.ndarray) and given.dtype.kind not in "OU":
        if language is not None:
            raise ValueError(f"language: expected none for {name} that are vectors already, got {language!r}")
        if given.ndim != 2:
            raise ValueError(f"{name}: expected shape (N, E), got {given.shape}")
        return floating(name, given)
    try:
        texts = several(name, given)
    except TypeError:
        got = f"an array of shape {given.shape}" if isinstance(given, np.ndarray) else f"{given!r:.80}"
        raise TypeError(f"{name}: expected an array of vectors or a list of texts, got {got}") from None
    if encoder is None:
        raise ValueError(f"{name}: expected vectors, or an encoder for the texts, got texts without one")
    return encoder.vectors(texts, [f"{name}[{i}]" for i in range(len(texts))], language)


def on_grid(name: str, vectors: Array, start: int) -> Array:  # (n, E) -> (n, E), float64
    """2^26 times the vectors at length 1, rounded to whole numbers. `start`: the row that the first one is."""
    x = np.array(vectors, np.float64, order="C")
    largest = np.abs(x).max(axis=1, initial=0.0, keepdims=True)
    bad = ~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0.0)
    if bad.any():
        row = int(bad.argmax())
        what = "a zero vector, which has no direction" if largest[row, 0] == 0.0 else "nan or inf"
        raise ValueError(f"{name}: expected finite vectors other than 0, got {what}, in row {start + row}")
    # First by the largest, as squares could overflow, or vanish.
    x /= largest
    x *= SCALE / np.linalg.norm(x, axis=1, keepdims=True)
    return np.rint(x, out=x)


def merge(scores: Array, indices: Array, new: Array, start: int) -> None:  # (Q, k), (Q, k), (Q, n)
    """Put the better ones of `new`, the scores of the corpus from row `start` on, among the best so far, in place."""
    k = scores.shape[1]
    for row in np.flatnonzero(new.max(axis=1) > scores[:, -1]):
        better = np.flatnonzero(new[row] > scores[row, -1])
        # What is there already was first in the corpus, and stays first among equals.
        values = np.concatenate([scores[row], new[row, better]])
        places = np.concatenate([indices[row], start + better])
        best = np.argsort(-values, kind="stable")[:k]
        scores[row], indices[row] = values[best], places[best]

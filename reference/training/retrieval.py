"""Retrieval: how often a text's translation is its nearest neighbour among those of the other language.

    cos(x, y) of every text of one language with every text of the other;  acc@1 = how often the translation is first

The mean vector of a language says which language it is, not what is said, and it pulls the texts of a language
together. Subtracting it ("centring") removes that.

Source: Tatoeba retrieval, as in XTREME (Hu et al., 2020).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..array import Array


def centred(vectors: Array, mean: Array | None = None) -> Array:  # (N, E) -> (N, E)
    """The vectors less their mean, or less `mean`, at length 1."""
    return normalised(vectors - (vectors.mean(axis=0) if mean is None else mean))


def normalised(vectors: Array) -> Array:  # (..., E) -> (..., E)
    """The vectors at length 1; a zero vector stays one."""
    lengths: Array = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(vectors.dtype).tiny)


def found_first(a: Array, b: Array) -> Array:  # (N, E) x 2 -> (N,) booleans
    """For each row of `a`, whether the same row of `b` has the largest product with it, and no other one as large."""
    scores = a @ b.T
    own = np.diagonal(scores).copy()
    np.fill_diagonal(scores, -np.inf)
    return own > scores.max(axis=1)


def accuracies(vectors: Mapping[str, Array], hub: str | None = None, centre: bool = True) -> dict[str, float]:
    """acc@1 of each pair of languages, "de-en", the mean of both directions. `hub`: only pairs with this language.

    vectors: by language, (N, E); row i of every language says the same.
    """
    unit = {name: centred(x, None if centre else np.zeros(x.shape[1], x.dtype)) for name, x in sorted(vectors.items())}
    return {
        f"{a}-{b}": float((found_first(unit[a], unit[b]).mean() + found_first(unit[b], unit[a]).mean()) / 2)
        for a in unit
        for b in unit
        if a < b and hub in (None, a, b)
    }

"""Softmax with a mask:  softmax(s)_j = e^{s_j} / Σ_k e^{s_k},  over the keys k that a row may attend to.

Subtracting the row maximum first changes nothing in exact arithmetic (it cancels) and keeps every exponent at or below
0, so nothing overflows.

Source: Attention Is All You Need (Vaswani et al., 2017), section 3.2.1. Other implementations add a large negative
number to masked scores, so a row without any key becomes uniform over masked keys. Here such a row is 0.
"""

from __future__ import annotations

import numpy as np

from .array import Array


def softmax(scores: Array, mask: Array | None = None) -> Array:  # (..., S) -> (..., S)
    """Probabilities over the last axis; each row sums to 1.

    `mask` broadcasts to `scores`. It is boolean (True = included; the others are exactly 0, and a row with nothing
    included is all 0) or floating point (added to the scores). The result has the dtype of `scores`. Raises TypeError
    for a mask of integers, which could mean either.
    """
    dtype = scores.dtype
    if mask is not None:
        if mask.dtype.kind not in "bf":
            raise TypeError(f"mask: expected booleans, or floating point to add to the scores, got {mask.dtype}")
        # A sum has the wider dtype: what a mask adds, such as -1e9, may be too large for the scores'.
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    row_max = scores.max(axis=-1, keepdims=True)
    probs = scores - np.where(row_max == -np.inf, 0.0, row_max).astype(scores.dtype)
    np.exp(probs, out=probs)
    row_sum = probs.sum(axis=-1, keepdims=True)
    probs /= np.where(row_sum == 0.0, 1.0, row_sum).astype(scores.dtype)
    return probs.astype(dtype, copy=False)


def softmax_vjp(dy: Array, scores: Array, mask: Array | None = None) -> Array:  # (..., S) x 2 -> (..., S)
    """The gradient of the scores; `mask` is as in `softmax`, and no gradient is computed for it.

    ∂p_j/∂s_k = p_j (δ_jk − p_k), so

        ds_k = Σ_j dy_j p_j (δ_jk − p_k) = p_k (dy_k − Σ_j p_j dy_j)

    It is 0 where p is 0, so at masked keys. Each row sums to 0: a shift of all scores changes nothing.
    """
    return softmax_vjp_of(dy, softmax(scores, mask))


def softmax_vjp_of(dy: Array, probs: Array) -> Array:  # (..., S) x 2 -> (..., S)
    """`softmax_vjp`, for callers that have the probabilities."""
    weighted = probs * dy
    weighted -= probs * weighted.sum(axis=-1, keepdims=True)
    return weighted

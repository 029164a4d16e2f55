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
    included is all 0) or floating point (added to the scores).
    """
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    row_max = scores.max(axis=-1, keepdims=True)
    probs = scores - np.where(row_max == -np.inf, 0.0, row_max).astype(scores.dtype)
    np.exp(probs, out=probs)
    row_sum = probs.sum(axis=-1, keepdims=True)
    probs /= np.where(row_sum == 0.0, 1.0, row_sum).astype(scores.dtype)
    return probs

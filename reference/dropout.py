"""Dropout: in training, set each number to 0 with probability p and scale the others by 1 / (1 − p).

This preserves the expected value. The random numbers come from the caller's generator; without one, nothing is dropped.

Source: Dropout (Srivastava et al., 2014), in its "inverted" form (torch.nn.Dropout).
"""

from __future__ import annotations

import numpy as np

from .array import Array


def dropout(x: Array, p: float, rng: np.random.Generator | None, where: Array | None = None) -> Array:
    """Drop elements of `x`, of any shape, with probability `p`.

    `where`, a boolean array broadcast to the leading axes of `x`, limits dropout to real tokens. Random numbers are
    drawn only for these, in order, so the same generator state drops the same elements of each token, however much
    padding surrounds it, packed or not, in every dtype.
    """
    if rng is None or p == 0.0:
        return x
    eligible: Array = np.ones((), bool) if where is None else where.reshape(*where.shape, *[1] * (x.ndim - where.ndim))
    eligible = np.broadcast_to(eligible, x.shape)
    keep = np.ones(x.shape, bool)
    keep[eligible] = rng.random(np.count_nonzero(eligible), np.float32) >= p
    return np.where(keep, x / (1.0 - p), 0.0).astype(x.dtype, copy=False)

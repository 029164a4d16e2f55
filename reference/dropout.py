"""Dropout: while training, each number is set to 0 with probability p, and the others grow by 1 / (1 − p).

So the expected value stays what it was. The random numbers come from the generator that the caller passes; without
one nothing is random, and nothing is dropped.

Source: Dropout (Srivastava et al., 2014), in its "inverted" form (torch.nn.Dropout).
"""

from __future__ import annotations

import numpy as np

from .array import Array


def dropout(x: Array, p: float, rng: np.random.Generator | None, where: Array | None = None) -> Array:
    """Drop numbers of `x`, of any shape, with probability `p`.

    `where`, boolean and broadcast to `x`'s leading axes, limits this to the places that hold tokens. Random numbers
    are drawn for these alone, in order, so that the same generator drops the same numbers of a token however
    much padding surrounds it, packed or not, in every dtype.
    """
    if rng is None or p == 0.0:
        return x
    places: Array = np.ones((), bool) if where is None else where.reshape(*where.shape, *[1] * (x.ndim - where.ndim))
    places = np.broadcast_to(places, x.shape)
    keep = np.ones(x.shape, bool)
    keep[places] = rng.random(np.count_nonzero(places), np.float32) >= p
    return np.where(keep, x / (1.0 - p), 0.0).astype(x.dtype, copy=False)

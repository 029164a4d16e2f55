"""Solutions of `exercises/01_numpy`. Try first; then compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def softmax(scores: Array) -> Array:  # (N, C) -> (N, C)
    # A factor exp(-max) above and below the fraction cancels, and no exponent is above 0 any more: nothing overflows,
    # and the largest term of the sum is exactly 1, so that nothing is divided by 0 either.
    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float) -> Array:  # (N, E), (E,), (E,) -> (N, E)
    centred = x - x.mean(axis=-1, keepdims=True)
    # The mean of the squares around the mean. The other formula, mean(x²) - mean(x)², is the difference of two large
    # numbers where the mean is large, and keeps none of the digits that matter.
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    # eps is a Python float: it takes on the array's dtype. A np.float64 would make everything float64.
    return centred / np.sqrt(variance + eps) * gamma + beta


def mask_from_lengths(lengths: Array, S: int) -> Array:  # (B,) -> (B, S)
    # Positions count from 0: a row of 3 tokens has them at 0, 1 and 2. Shapes (S,) and (B, 1) broadcast to (B, S).
    return np.arange(S) < lengths[:, None]


def unpad(x: Array, mask: Array) -> Array:  # (B, S, E), (B, S) -> (T, E)
    # A boolean index over the first two axes keeps what is True, row after row.
    return x[mask]


def pad(packed: Array, mask: Array) -> Array:  # (T, E), (B, S) -> (B, S, E)
    # Zeros of packed's dtype: np.zeros alone gives float64.
    padded = np.zeros((*mask.shape, packed.shape[1]), packed.dtype)
    # The same index, on the left: it takes the rows of `packed` in the order in which `unpad` gave them.
    padded[mask] = packed
    return padded

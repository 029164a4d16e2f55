"""Solutions to `exercises/01_numpy`. Try the exercises first, then compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def softmax(scores: Array) -> Array:  # (N, C) -> (N, C)
    # Multiplying numerator and denominator by exp(-max) cancels, and leaves no exponent above 0: nothing overflows. The
    # largest term of the sum is exactly 1, so nothing is divided by 0 either.
    row_max = scores.max(axis=-1, keepdims=True)
    exps = np.exp(scores - row_max)
    row_sum = exps.sum(axis=-1, keepdims=True)
    return exps / row_sum


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float) -> Array:  # (N, E), (E,), (E,) -> (N, E)
    centred = x - x.mean(axis=-1, keepdims=True)
    # The mean squared deviation. The other formula, mean(x²) - mean(x)², subtracts two large numbers if the mean is
    # large, and loses the digits that matter.
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    # eps is a Python float, so it adopts the array's dtype. A np.float64 would make the result float64.
    return centred / np.sqrt(variance + eps) * gamma + beta


def mask_from_lengths(lengths: Array, S: int) -> Array:  # (B,) -> (B, S)
    # Positions start at 0: a row of 3 tokens has them at 0, 1 and 2. Shapes (S,) and (B, 1) broadcast to (B, S).
    return np.arange(S) < lengths[:, None]


def unpad(x: Array, mask: Array) -> Array:  # (B, S, E), (B, S) -> (T, E)
    # A boolean index over the first two axes selects the True positions, row by row.
    return x[mask]


def pad(packed: Array, mask: Array) -> Array:  # (T, E), (B, S) -> (B, S, E)
    # Pass packed's dtype: the default of np.zeros is float64.
    padded = np.zeros((*mask.shape, packed.shape[1]), packed.dtype)
    # Assigning through the same index puts the rows of `packed` back in the order in which `unpad` returned them.
    padded[mask] = packed
    return padded

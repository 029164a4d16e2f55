"""Layer normalisation: give each token's E numbers mean 0 and variance 1, then apply a learned scale γ and shift β.

    y = (x − mean(x)) / √(var(x) + ε) · γ + β,   var(x) = mean((x − mean(x))²)

The variance divides by E, not E − 1. It is computed after subtracting the mean: if the mean is large, the shortcut
mean(x²) − mean(x)² subtracts two large numbers and loses the significant digits.

Source: Layer Normalization (Ba, Kiros, Hinton, 2016), section 3; torch.nn.LayerNorm for the position of ε.
"""

from __future__ import annotations

import numpy as np

from .array import Array


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float) -> Array:  # (..., E), (E,), (E,) -> (..., E)
    """Normalise over the last axis. float16 is computed in float32 and rounded once, at the end."""
    if x.dtype == np.float16:
        return layer_norm(x.astype(np.float32), gamma, beta, eps).astype(np.float16)
    y = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(y).mean(axis=-1, keepdims=True)
    y /= np.sqrt(variance + eps)
    y *= gamma
    y += beta
    return y


def add_layer_norm(
    x: Array, bias: Array, residual: Array, gamma: Array, beta: Array, eps: float
) -> Array:  # (..., E), (E,), (..., E), (E,), (E,) -> (..., E)
    """The end of each half of a Transformer layer, in one step: LayerNorm(x + bias + residual).

    `x` is a matrix product whose bias has not been added yet.
    """
    return layer_norm(x + bias + residual, gamma, beta, eps)

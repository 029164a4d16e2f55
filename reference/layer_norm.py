"""Layer normalisation: give each token's E numbers mean 0 and variance 1, then apply a learned scale γ and shift β.

    y = (x − mean(x)) / √(var(x) + ε) · γ + β,   var(x) = mean((x − mean(x))²)

The variance divides by E, not E − 1. It is computed after subtracting the mean: if the mean is large, the shortcut
mean(x²) − mean(x)² subtracts two large numbers and loses the significant digits.

Source: Layer Normalization (Ba, Kiros, Hinton, 2016), section 3; torch.nn.LayerNorm for the position of ε.
"""

from __future__ import annotations

import numpy as np

from .array import Array, floating, sum_of_tokens


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float) -> Array:  # (..., E), (E,), (E,) -> (..., E)
    """Normalise over the last axis. float16 is computed in float32 and rounded once, at the end.

    Raises TypeError or ValueError, naming the argument, if x is not floating-point or a vector does not fit it.
    """
    check_sizes(x, {}, {"gamma": gamma, "beta": beta})
    if x.dtype == np.float16:
        return layer_norm(x.astype(np.float32), gamma, beta, eps).astype(np.float16)
    y = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(y).mean(axis=-1, keepdims=True)
    y /= np.sqrt(variance + eps)
    y *= gamma
    y += beta
    return y


def check_sizes(x: Array, rows: dict[str, Array], vectors: dict[str, Array]) -> None:
    """Raise unless x is floating-point, `rows` have its shape and `vectors` that of one row: NumPy would broadcast."""
    shape = floating("x", x).shape
    for name, array in {**rows, **vectors}.items():
        expected = shape if name in rows else shape[-1:]
        if np.shape(array) != expected:
            letters = "(..., E)" if name in rows else "(E,)"
            raise ValueError(f"{name}: expected shape {letters} = {expected}, got {np.shape(array)}")


def add_layer_norm(
    x: Array, bias: Array, residual: Array, gamma: Array, beta: Array, eps: float
) -> Array:  # (..., E), (E,), (..., E), (E,), (E,) -> (..., E)
    """The end of each half of a Transformer layer, in one step: LayerNorm(x + bias + residual).

    `x` is a matrix product whose bias has not been added yet.
    """
    check_sizes(x, {"residual": residual}, {"bias": bias})
    return layer_norm(x + bias + residual, gamma, beta, eps)


def layer_norm_vjp(
    dy: Array, x: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array]:  # (..., E), (..., E), (E,) -> (..., E), (E,), (E,)
    """The gradients of x, γ and β.

    With n = (x − mean) / s, s = √(var + ε), so y = n γ + β:

        dβ = Σ dy        dγ = Σ dy n        over the tokens
        dx = (g − mean(g) − n mean(g n)) / s,   g = dy γ

    In dx, mean(g) comes from x's mean, and n mean(g n) from its variance: x changes both, and with them every column.
    """
    check_sizes(x, {"dy": dy}, {"gamma": gamma})
    if x.dtype == np.float16:
        wide = layer_norm_vjp(dy.astype(np.float32), x.astype(np.float32), gamma.astype(np.float32), eps)
        return wide[0].astype(np.float16), wide[1].astype(np.float16), wide[2].astype(np.float16)
    n = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt(np.square(n).mean(axis=-1, keepdims=True) + eps)
    n /= s
    dgamma, dbeta = sum_of_tokens(dy * n), sum_of_tokens(dy)
    dx = dy * gamma
    correction = n * (dx * n).mean(axis=-1, keepdims=True)
    dx -= dx.mean(axis=-1, keepdims=True)
    dx -= correction
    dx /= s
    return dx, dgamma, dbeta


def add_layer_norm_vjp(
    dy: Array, x: Array, bias: Array, residual: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array, Array, Array]:  # -> (..., E), (E,), (..., E), (E,), (E,)
    """The gradients of x, the bias, the residual, γ and β.

    All three terms of the sum get the sum's gradient; the bias, which every token shares, gets its sum over tokens.
    """
    check_sizes(x, {"residual": residual}, {"bias": bias})
    dx, dgamma, dbeta = layer_norm_vjp(dy, x + bias + residual, gamma, eps)
    return dx, sum_of_tokens(dx), dx.copy(), dgamma, dbeta

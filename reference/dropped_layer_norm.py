"""The end of each half of a Transformer layer in training: dropout, the residual, then layer normalisation.

    y = LayerNorm(dropout(x + bias) + residual)

`x` is a matrix product whose bias has not been added yet. Without dropout, this is `add_layer_norm`. The encoder
computes the same in steps, as it keeps the sum for its gradient (`layer_steps`); kernels take one pass over memory.

Source: transformers 4.40.2, `ErnieMEncoderLayer`, for the order of the steps.
"""

from __future__ import annotations

from typing import Any

from .array import Array, sum_of_tokens
from .dropout import dropout, dropout_vjp
from .layer_norm import check_sizes, layer_norm, layer_norm_vjp


def dropped_layer_norm(
    x: Array,
    bias: Array,
    residual: Array,
    gamma: Array,
    beta: Array,
    eps: float,
    p: float,
    seed: Any,
    tokens: Array | None = None,
) -> Array:  # (..., E), (E,), (..., E), (E,), (E,), (...) -> (..., E)
    """LayerNorm(dropout(x + bias) + residual); `p`, `seed` and `tokens` are those of `dropout`."""
    check_sizes(x, {"residual": residual}, {"bias": bias})
    return layer_norm(dropout(x + bias, p, seed, tokens) + residual, gamma, beta, eps)


def dropped_layer_norm_vjp(
    dy: Array,
    x: Array,
    bias: Array,
    residual: Array,
    gamma: Array,
    eps: float,
    p: float,
    seed: Any,
    tokens: Array | None = None,
) -> tuple[Array, Array, Array, Array, Array]:  # -> (..., E), (E,), (..., E), (E,), (E,)
    """The gradients of x, the bias, the residual, γ and β.

    The residual gets the gradient of the sum, x that gradient after dropout with the same bits, and the bias, which
    every token shares, the sum of x's over tokens.
    """
    check_sizes(x, {"residual": residual}, {"bias": bias})
    dv, dgamma, dbeta = layer_norm_vjp(dy, dropout(x + bias, p, seed, tokens) + residual, gamma, eps)
    dx = dropout_vjp(dv, p, seed, tokens)
    return dx, sum_of_tokens(dx), dv.copy(), dgamma, dbeta

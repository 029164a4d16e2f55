"""The linear map: y = x Wᵀ + b.

The weight is stored as (outputs, inputs), as in torch and in Hugging Face files, so the product uses its transpose,
which is a view, not a copy.
"""

from __future__ import annotations

import numpy as np

from .array import Array, sum_of_tokens
from .parameters import Linear

FEW_TOKENS = 64


def linear(x: Array, p: Linear) -> Array:  # (..., inputs) -> (..., outputs)
    """Apply `p.weight` (outputs, inputs) and `p.bias` (outputs,) to the last axis of `x`.

    All other axes are flattened into one, for one large matrix product instead of many small ones.
    """
    outputs, inputs = p.weight.shape
    rows = x.reshape(-1, inputs)
    if len(rows) < FEW_TOKENS:
        # The same product as (W xᵀ)ᵀ: for a few tokens, OpenBLAS is twice as fast this way round.
        y = np.add((p.weight @ rows.T).T, p.bias, order="C")
    else:
        y = rows @ p.weight.T
        y += p.bias
    return y.reshape(*x.shape[:-1], outputs)


def linear_vjp(dy: Array, x: Array, p: Linear) -> tuple[Array, Linear]:  # (..., outputs), (..., inputs) -> as x, as p
    """The gradients of x and of the weight and bias.

    With one row per token, Y = X Wᵀ + b gives, by the chain rule,

        dX = dY W        dW = dYᵀ X        db = Σ dY, over the tokens
    """
    outputs, inputs = p.weight.shape
    rows = dy.reshape(-1, outputs)
    dx = (rows @ p.weight).reshape(x.shape)
    return dx, Linear(rows.T @ x.reshape(-1, inputs), sum_of_tokens(rows))

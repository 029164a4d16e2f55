"""The linear map: y = x Wᵀ + b.

The weight is stored (outputs, inputs), as torch and Hugging Face's files have it, so the product takes its transpose;
that is a view, not a copy.
"""

from __future__ import annotations

from .array import Array
from .parameters import Linear


def linear(x: Array, p: Linear) -> Array:  # (..., inputs) -> (..., outputs)
    """Apply `p.weight` (outputs, inputs) and `p.bias` (outputs,) to the last axis of `x`.

    All other axes are folded into one, so that there is one large matrix product instead of a batch of small ones.
    """
    outputs, inputs = p.weight.shape
    y = x.reshape(-1, inputs) @ p.weight.T
    y += p.bias
    return y.reshape(*x.shape[:-1], outputs)

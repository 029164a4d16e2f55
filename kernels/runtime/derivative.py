"""Elementwise functions with a derivative of their own.

What autograd derives from a formula is wrong in the limits (inf · 0 is nan, |x| has slope 0 at 0) and keeps every
intermediate. Here a function comes with its derivative, and only its argument is kept. Half precision is computed in
float32 and rounded once.

Each operation of a formula passes over its whole argument. On a CPU, a large argument is therefore computed piece by
piece, so that intermediates stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .dispatch import eager_on_cpu, wants_derivative
from .dtypes import widen

Elementwise = Callable[[Tensor], Tensor]

# Numbers in a piece: 512 KiB in float32.
PIECE = 2**17


def by_pieces(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:  # (...) x n -> (...)
    """`function`, which is elementwise, of tensors of one shape, computed in the wide dtype; the result is like `x`."""

    def wide(*parts: Tensor) -> Tensor:
        return function(*map(widen, parts))

    tensors = (x, *others)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if recorded or not eager_on_cpu(x) or x.numel() <= PIECE:
        return wide(*tensors).to(x.dtype)
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    for place, *parts in zip(*(t.reshape(-1).split(PIECE) for t in (result, *tensors)), strict=True):
        place.copy_(wide(*parts))
    return result


class _Backward(Function):
    """value(x), whose gradient is `derivative(x)`; that of the gradient follows from the code of `derivative`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Elementwise, derivative: Elementwise) -> Tensor:
        return by_pieces(value, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Elementwise, Elementwise], output: Tensor) -> None:
        x, _, ctx.derivative = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return by_pieces(lambda x, dy: dy * ctx.derivative(x), x, gradient), None, None


class _BothWays(_Backward):
    """With forward-mode derivatives, which `torch.compile` cannot trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return by_pieces(lambda x, tangent: tangent * ctx.derivative(x), x, tangent)


def with_derivative(value: Elementwise, derivative: Elementwise) -> Elementwise:
    """The function `value`, with the given derivative.

    Both are written for float32 or float64, of any shape; the result takes and returns half precision too.
    """

    def function(x: Tensor) -> Tensor:
        if not wants_derivative(x):
            return by_pieces(value, x)
        cls = _Backward if torch.compiler.is_compiling() else _BothWays
        result: Tensor = cls.apply(x, value, derivative)
        return result

    return function

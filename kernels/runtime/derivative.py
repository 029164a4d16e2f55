"""Elementwise functions with a derivative of their own.

What autograd derives from a formula is wrong in the limits (inf · 0 is nan, |x| has slope 0 at 0) and keeps every
intermediate. Here a function comes with its derivative, and only its argument is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Elementwise = Callable[[Tensor], Tensor]


class _Backward(Function):
    """value(x), whose gradient is `derivative(x)`; that of the gradient follows from the code of `derivative`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Elementwise, derivative: Elementwise) -> Tensor:
        return value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Elementwise, Elementwise], output: Tensor) -> None:
        x, _, ctx.derivative = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradient * ctx.derivative(x), None, None


class _BothWays(_Backward):
    """With forward-mode derivatives, which `torch.compile` cannot trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * ctx.derivative(x)


def with_derivative(value: Elementwise, derivative: Elementwise) -> Elementwise:
    """The function `value`, with the given derivative. Both take a float32 or float64 tensor of any shape."""

    def function(x: Tensor) -> Tensor:
        cls = _Backward if torch.compiler.is_compiling() else _BothWays
        result: Tensor = cls.apply(x, value, derivative)
        return result

    return function

"""Elementwise functions with a derivative of their own, and a table of which one row gets no gradient.

What autograd derives from a formula is wrong in the limits (inf · 0 is nan, |x| has slope 0 at 0) and keeps every
intermediate. Here a function comes with its derivative, and only its argument is kept. Half precision is computed in
float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .dispatch import wants_derivative
from .dtypes import widen

Elementwise = Callable[[Tensor], Tensor]


def in_wide(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:  # (...) x n -> (...)
    """`function`, which is elementwise, computed in the wide dtype of `x`, and the result in its own."""
    return function(*map(widen, (x, *others))).to(x.dtype)


class _Backward(Function):
    """value(x) with the gradient derivative(x); higher derivatives are those of the code of `derivative`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Elementwise, derivative: Elementwise) -> Tensor:
        y = in_wide(value, x)
        # A result that is the tensor an operation was given, as in y.mul_(c) or y.to(y.dtype), has a gradient of 0 in
        # torch.compile of torch 2.11; a view of it has the right one.
        return y.view_as(y) if torch.compiler.is_compiling() else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Elementwise, Elementwise], output: Tensor) -> None:
        x, _, ctx.derivative = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return in_wide(lambda x, dy: dy * ctx.derivative(x), x, gradient), None, None


class _BothWays(_Backward):
    """With forward-mode derivatives, which `torch.compile` cannot trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return in_wide(lambda x, tangent: tangent * ctx.derivative(x), x, tangent)


def with_derivative(value: Elementwise, derivative: Elementwise) -> Elementwise:
    """The function `value`, with the given derivative.

    Both are written for float32 or float64, of any shape; the result takes and returns half precision too. For
    `torch.jit.trace`, which cannot save a function of ours, the derivative is what autograd makes of `value`: the same
    within rounding, but nan at infinity.
    """

    def function(x: Tensor) -> Tensor:
        if not wants_derivative(x) or torch.jit.is_tracing():
            return in_wide(value, x)
        cls = _Backward if torch.compiler.is_compiling() else _BothWays
        result: Tensor = cls.apply(x, value, derivative)
        return result

    return function


def refuse_second_derivatives(operation: Any) -> None:
    """Make a backward through `operation`, which is itself a backward, raise RuntimeError."""
    name = operation._name

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{name}: kernels have no second derivatives; use float64 or the transforms of torch.func, which take the "
            "plain form"
        )

    operation.register_autograd(refuse)


class _WithoutRow(Function):
    """A table of which one row gets no gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, row: int) -> Tensor:
        ctx.row = row
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # In place: it was made for this, and a copy of a vocabulary's gradient is large.
        gradient[ctx.row] = 0.0
        return gradient, None


def without_row(table: Tensor, row: int | None) -> Tensor:  # (V, E) -> (V, E)
    """`table`; its row gets no gradient, as with the `padding_idx` of torch's Embedding. None: all rows do."""
    if row is None or not (torch.is_grad_enabled() and table.requires_grad):
        return table
    same: Tensor = _WithoutRow.apply(table, row)
    return same

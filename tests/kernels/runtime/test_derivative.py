"""Elementwise functions with their derivatives: dtypes, strides, derivatives of derivatives and transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ernie_m.kernels.runtime.derivative import with_derivative

# All of its steps are exact on small integers.
cube = with_derivative(lambda x: x * x * x, lambda x: 3 * x * x)


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()) % 5 - 2).view(shape).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_keep_the_dtype_and_any_strides(dtype: torch.dtype) -> None:
    """For values and gradients. Seen red: the gradient in float32."""
    x = integers(5, 4, dtype=dtype)[:, ::2]
    leaf = x.clone().requires_grad_()
    y = cube(x)
    (gradient,) = torch.autograd.grad(cube(leaf), leaf, x)
    assert y.dtype == gradient.dtype == dtype
    assert torch.equal(y, x**3) and torch.equal(gradient, 3 * x**3)


def test_half_precision_is_computed_in_float32_and_rounded_once() -> None:
    """1 + 2⁻⁹ - 1 is 0 in bfloat16."""
    shifted = with_derivative(lambda x: (x + 1.0) - 1.0, torch.ones_like)
    x = torch.full((3,), 2.0**-9, dtype=torch.bfloat16)
    assert torch.equal(shifted(x), x) and torch.equal(shifted(x.clone().requires_grad_()), x)


def test_derivatives_of_derivatives_and_transforms() -> None:
    x: Any = integers(4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(cube, x)
    x = x.detach()
    value, along = torch.func.jvp(cube, (x,), (torch.ones_like(x),))
    assert torch.equal(value, x**3) and torch.equal(along, 3 * x * x)
    assert torch.equal(torch.func.vmap(torch.func.grad(cube))(x), 3 * x * x)

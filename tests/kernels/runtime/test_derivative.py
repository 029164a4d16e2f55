"""Elementwise functions with their derivatives: piece by piece, in half precision, and as they are transformed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.kernels.runtime import derivative
from ernie_m.kernels.runtime.derivative import by_pieces, with_derivative

# All of its steps are exact on small integers.
cube = with_derivative(lambda x: x * x * x, lambda x: 3 * x * x)


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()) % 5 - 2).view(shape).to(dtype)


@given(
    size=st.integers(0, 40),
    piece=st.sampled_from([1, 3, 8, 100]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    strided=st.booleans(),
)
def test_pieces_make_no_difference(size: int, piece: int, dtype: torch.dtype, strided: bool) -> None:
    """For values and gradients. Seen red: the last, shorter piece left out; a strided argument's pieces permuted."""
    x = (
        integers(size, 2, dtype=dtype).repeat_interleave(2, dim=1)[:, ::2]
        if strided
        else integers(size, 2, dtype=dtype)
    )
    leaf = x.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derivative, "PIECE", piece)
        y = cube(x)
        (gradient,) = torch.autograd.grad(cube(leaf), leaf, x)
    assert y.dtype == gradient.dtype == dtype
    assert torch.equal(y, x**3) and torch.equal(gradient, 3 * x**3)


def test_pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivative, "PIECE", 10)
    seen: list[tuple[int, torch.dtype]] = []

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append((x.numel(), x.dtype))
        return x + y

    result = by_pieces(function, integers(5, 5, dtype=torch.bfloat16), integers(5, 5, dtype=torch.bfloat16))
    assert torch.equal(result, 2 * integers(5, 5, dtype=torch.bfloat16))
    assert seen == [(10, torch.float32), (10, torch.float32), (5, torch.float32)]


@pytest.mark.parametrize("piece", [2, 100])
def test_derivatives_of_derivatives_and_transforms(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red: pieces written into memory that autograd does not follow."""
    monkeypatch.setattr(derivative, "PIECE", piece)
    x: Any = integers(4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(cube, x)
    x = x.detach()
    value, along = torch.func.jvp(cube, (x,), (torch.ones_like(x),))
    assert torch.equal(value, x**3) and torch.equal(along, 3 * x * x)
    assert torch.equal(torch.func.vmap(torch.func.grad(cube))(x), 3 * x * x)

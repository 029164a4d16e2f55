"""Bias + residual + LayerNorm: statistics, independence of rows, memory accesses, and error messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from guards import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import U32, U64

from ernie_m.kernels import layer_norm as kernel
from ernie_m.kernels.checking import bounds
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.runtime.dispatch import INTERPRETED

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu" if INTERPRETED else "cuda"


def drawn(rows: int, E: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    """x, bias, residual, gamma, beta, all random."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, E), (E,), (rows, E), (E,), (E,))
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def assert_within_bound(y: torch.Tensor, tensors: list[torch.Tensor], eps: float = 1e-5) -> None:
    """The derived bound of the dtype. For float64: float32's in float64's u, for each of the two sides."""
    double = y.dtype == torch.float64
    format = FORMATS["float32" if double else str(y.dtype).removeprefix("torch.")]
    expected = bounds.add_layer_norm(format, *(x.double().cpu().numpy() for x in tensors), eps)
    limit = expected.limit * (2 * U64 / U32 if double else 1.0)
    assert (np.abs(y.double().cpu().numpy() - expected.exact) <= limit).all()


def test_add_layer_norm_on_a_worked_example() -> None:
    x, bias, residual = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1.0, 0.0, -1.0]), torch.tensor([[0.0, 0.0, 6.0]])
    gamma, beta = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 0.0, 1.0])  # the sum is 2, 2, 8: mean 4, var 8
    tensors = [t.to(DEVICE) for t in (x, bias, residual, gamma, beta)]
    y, mean, rstd = kernel.add_layer_norm(*tensors, 1.0, return_statistics=True)
    assert y[0].tolist() == pytest.approx([-2 / 3, -4 / 3, 16 / 3 + 1], rel=1e-6)
    assert mean.tolist() == pytest.approx([4.0], rel=1e-6)
    assert rstd.tolist() == pytest.approx([1 / 3], rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.all), "bfloat16"])
def test_add_layer_norm_equals_its_twin(dtype: str) -> None:
    """On random inputs, within the derived bounds. Seen red: the bias, gamma or beta not read, E - 1 instead of E."""
    check(kernel.add_layer_norm, op="add_layer_norm", dtypes=[dtype], examples=25)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 5),
    E=st.sampled_from([1, 2, 3, 24, 127, 128, 129, 768, 1024, 1500]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_add_layer_norm_saves_mean_and_rstd_in_float32(rows: int, E: int, dtype: torch.dtype, seed: int) -> None:
    x, bias, residual, gamma, beta = drawn(rows, E, dtype, seed)
    _, mean, rstd = kernel.add_layer_norm(x, bias, residual, gamma, beta, 1e-3, return_statistics=True)
    v = x.double() + bias.double() + residual.double()
    true_mean = v.mean(-1)
    true_rstd = (v.var(-1, correction=0) + 1e-3).rsqrt()
    assert mean.dtype == rstd.dtype == torch.float32
    # At most E + 3 roundings of numbers no larger than these; rstd is 1/√ of a sum of squares.
    size = (x.double().abs() + bias.double().abs() + residual.double().abs()).amax(-1)
    assert ((mean - true_mean).abs() <= (E + 3) * 2**-24 * size).all()
    assert ((rstd - true_rstd).abs() <= 2**-23 * (E + 8) * true_rstd * (1 + size**2 * true_rstd**2)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("E", [1, 100, 768])
def test_add_layer_norm_reads_and_writes_only_its_own_memory(dtype: torch.dtype, E: int) -> None:
    """Seen red: the mask on a load, on a store, or on the centred row dropped."""
    with guarded() as guards:
        tensors = [guards.hold(x) for x in drawn(3, E, dtype)]
        results = kernel.add_layer_norm(*tensors, 1e-5, return_statistics=True)
        assert not any(x.isnan().any() for x in results)
    assert_within_bound(results[0], tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_layer_norm_of_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x, bias, residual, gamma, beta = drawn(6, 200, dtype)
    whole = kernel.add_layer_norm(x, bias, residual, gamma, beta, 1e-5)
    x[1:] = float("nan")
    for row in (whole[:1], kernel.add_layer_norm(x[:1], bias, residual[:1], gamma, beta, 1e-5)):
        assert torch.equal(row, kernel.add_layer_norm(x, bias, residual, gamma, beta, 1e-5)[:1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_layer_norm_accepts_any_strides_and_keeps_its_arguments(dtype: torch.dtype) -> None:
    tensors = drawn(6, 40, dtype)
    strided = [torch.stack([x, x], dim=-1)[..., 0] for x in tensors]
    kept = [x.clone() for x in strided]
    assert torch.equal(kernel.add_layer_norm(*strided, 1e-5), kernel.add_layer_norm(*tensors, 1e-5))
    assert all(torch.equal(a, b) for a, b in zip(strided, kept, strict=True))


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8), (0, 8), (2, 0, 8)])
def test_add_layer_norm_works_on_the_last_axis_of_any_shape(shape: tuple[int, ...]) -> None:
    _, bias, _, gamma, beta = drawn(1, 8)
    x, residual = torch.randn(shape, device=DEVICE), torch.randn(shape, device=DEVICE)
    y, mean, _ = kernel.add_layer_norm(x, bias, residual, gamma, beta, 1e-5, return_statistics=True)
    assert y.shape == shape
    assert mean.shape == shape[:-1]
    rows = kernel.add_layer_norm(x.reshape(-1, 8), bias, residual.reshape(-1, 8), gamma, beta, 1e-5)
    assert torch.equal(y.reshape(-1, 8), rows)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_plain_form_equals_the_reference(dtype: torch.dtype) -> None:
    tensors = drawn(5, 33, dtype)
    y = kernel.plain_add_layer_norm(*tensors, 1e-5)[0]
    assert y.dtype == dtype
    assert_within_bound(y, tensors)


def test_gradients_flow_through_the_plain_form() -> None:
    tensors = [x.requires_grad_() for x in drawn(3, 5, torch.float64)]
    assert torch.autograd.gradcheck(lambda *a: kernel.add_layer_norm(*a, 1e-5), tensors)


def test_add_layer_norm_error_messages() -> None:
    x, bias, residual, gamma, beta = drawn(2, 8)
    for error, message, arguments in (
        (ValueError, r"bias: expected shape \(E,\) = \(8,\), got \(7,\)", (x, bias[:7], residual, gamma, beta)),
        (ValueError, r"residual: expected shape .* \(2, 8\), got \(1, 8\)", (x, bias, residual[:1], gamma, beta)),
        (ValueError, r"gamma: expected shape \(E,\) = \(8,\), got \(1, 8\)", (x, bias, residual, gamma[None], beta)),
        (TypeError, "beta: expected torch.float32 like x, got torch.float16", (x, bias, residual, gamma, beta.half())),
        (TypeError, "x: expected float32, .* got torch.int64", (x.long(), bias, residual, gamma, beta)),
        (ValueError, r"x: expected shape \(..., E\), got \(\)", (x[0, 0], bias, residual, gamma, beta)),
        (ValueError, "residual: expected a tensor on", (x, bias, residual.to("meta"), gamma, beta)),
    ):
        with pytest.raises(error, match=message):
            kernel.add_layer_norm(*arguments, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(kernel._add_layer_norm, (*drawn(3, 8, dtype), 1e-5))


@pytest.mark.parametrize("form", ["kernel", "plain"])
def test_opcheck_of_strided_arguments(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red: the plain form's result has other strides than the fake's."""
    if form == "plain":
        monkeypatch.setattr(kernel, "runs_triton", lambda x: False)
    torch.library.opcheck(
        kernel._add_layer_norm, (*(x.t().contiguous().t() if x.dim() == 2 else x for x in drawn(3, 8)), 1e-5)
    )

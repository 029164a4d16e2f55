"""The slope of GELU in a kernel: its limits, its symmetry, and its error over whole formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ernie_m.kernels import gelu, gelu_backward
from ernie_m.kernels.checking.bounds import expected
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.verdicts import componentwise
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.reference.erf import TAIL_END, normal_tail
from ernie_m.reference.gelu import gelu_slope

# Slow in the interpreter; `verify`, in `make test`, checks the same kernels with fewer inputs.
pytestmark = pytest.mark.all

DEVICE = "cpu" if INTERPRETED else "cuda"
U = 2.0**-24


def slope(x: torch.Tensor) -> torch.Tensor:
    """By a cotangent of ones and a bias of zeros."""
    return gelu.bias_gelu_vjp(torch.ones_like(x), x, torch.zeros_like(x[0]))[0]


def slope_error_bound(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bound on the error of the kernel's slope in float32, for exact z.

    With T = Φ(−a) and D = a φ(a), T is off by (9 + 18 a + 1.5 a²) ε of itself as in `gelu.gelu_error_bound`; D by
    (a² + 4 + 3) ε: the exponent, exp2 and three roundings. Their difference, and 1 less it, round once more. What exp2
    flushes to 0 is 2⁻¹²⁶, times M and a/√(2π), which are below 1 and 6.
    """
    a = np.minimum(np.abs(z), TAIL_END)
    tail, density = normal_tail(a), a * np.exp(-0.5 * a * a) / np.sqrt(2 * np.pi)
    below = (10 + 18 * a + 1.5 * a * a) * tail + (8 + a * a) * density
    return np.asarray(U * (below + (z > 0)) + 8 * 2.0**-126)


def assert_within(y: torch.Tensor, x: torch.Tensor) -> None:
    z = x.double().cpu().numpy()
    limit = expected(FORMATS[str(x.dtype).removeprefix("torch.")], gelu_slope(z), slope_error_bound(z))
    verdict = componentwise(y.double().cpu().numpy(), limit)
    assert verdict.holds, (verdict, verdict.index and z[verdict.index])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_slope_of_every_half_precision_number(dtype: torch.dtype) -> None:
    """Seen red: no clamp. Only a GPU can lose nan: a gate of the machine code looks for it."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).view(64, 1024).to(DEVICE)
    with np.errstate(invalid="ignore"):  # half of the nans are signalling
        y = slope(x)
    assert torch.equal(y.isnan(), x.isnan())
    assert (y[x == float("inf")] == 1).all() and (y[x == float("-inf")] == 0).all()
    finite = x.isfinite()
    assert_within(y[finite], x[finite])


def test_slope_over_the_range_of_float32() -> None:
    """Every 16,381st float32 number, and an even grid from -16.5 to 16.5. Seen red: a/√(2π) 1e-6 too large."""
    every = np.arange(0, 1 << 32, 16381, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = np.concatenate([every[np.isfinite(every)], np.linspace(-16.5, 16.5, 50_000, dtype=np.float32)])
    x = torch.from_numpy(values[: len(values) // 1024 * 1024]).view(-1, 1024).to(DEVICE)
    assert_within(slope(x), x)


def test_the_slope_is_a_half_at_0_and_symmetric() -> None:
    """gelu′(z) + gelu′(−z) = 1, to the rounding of 1 less the smaller."""
    z = torch.linspace(-12, 12, 999, device=DEVICE)[None]
    assert float(slope(torch.zeros(1, 1, device=DEVICE))) == 0.5
    assert bool((slope(z) + slope(-z) - 1).abs().max() <= 2 * U)


def test_the_bias_has_the_sum_of_the_slopes() -> None:
    """Exact in float32: slopes of 1 and of 0, in more tiles than there are partial sums."""
    rows = 8 * 256 * 2 + 3
    x = torch.where(torch.arange(rows, device=DEVICE) % 3 == 0, 50.0, -50.0)[:, None].repeat(1, 3)
    dy = torch.ones_like(x) * torch.tensor([1.0, 2.0, -4.0], device=DEVICE)
    dx, dbias = gelu.bias_gelu_vjp(dy, x, torch.zeros(3, device=DEVICE))
    assert torch.equal(dx, torch.where(x > 0, dy, 0.0 * dy))
    assert dbias.tolist() == [n * -(-rows // 3) for n in (1, 2, -4)]


def test_blocks_hold_few_rows() -> None:
    for F in (1, 3, 1000, 3072, 10_000):
        blocks = gelu_backward.configuration(F, "sm_90").blocks
        assert blocks["ROWS"] <= gelu_backward.MOST_ROWS

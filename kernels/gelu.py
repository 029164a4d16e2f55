"""Bias and GELU in one pass over memory, with a cheap error function of known accuracy.

    gelu(z) = max(z, 0) − a Φ(−a),    z = x + bias,  a = |z|
    Φ(−a) = exp(−a²/2) · M(a),    M(a) = ½ − a N(t),    N(t) = t (q₀t⁶ + q₁t⁵ + ... + q₆),    t = 1/(1 + a/4)

M is smooth and falls from ½ to 1/(a√(2π)), so a polynomial in t fits it for all a >= 0. It starts from ½, so errors in
t do not matter where gelu(z) ≈ z/2. The small number Φ(−a) is computed directly, so the tail keeps its digits, where
½(1 + erf) has none left at z = -5.5. libdevice's erf takes 38 instructions; all of this takes 23.

Grid: one program per tile of ROWS x COLUMNS; it reads its part of the bias once. float32 inside, rounded once.
Left out: the tanh approximation, which is a different function.
Twin: reference/gelu.py. Source: M. Abramowitz, I. Stegun, "Handbook of Mathematical Functions", 7.1.26, for a Gaussian
times a polynomial in 1/(1 + pa); the form of M and the coefficients are this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ernie_m.reference.erf import TAIL_END, normal_tail

from .runtime.arguments import check_floats, check_shape
from .runtime.derivative import with_derivative
from .runtime.dispatch import runs_triton, wants_plain
from .runtime.dtypes import TRITON_TYPES, name_of, widen
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant, next_power_of_2, target_of

# q₀ ... q₆, such that |M̃/M − 1| <= 0.73 · 2⁻²⁴ (1 + a²/2) for a in [0, 13.25], beyond which exp(−a²/2) < 2⁻¹²⁶. The
# weight is what one rounding of the exponent costs. M multiplies 2^(EXPONENT a²), so it absorbs the error of that
# float32 constant, −½ log₂e. tests/kernels/test_gelu.py repeats the minimax fit and compares.
COEFFICIENTS = (-0.024422681, 0.06832016, -0.013207925, 0.07312477, 0.06924277, 0.10093815, 0.12494643)
EXPONENT = -0.7213475108146667
_Q = tl.constexpr(COEFFICIENTS)
_EXPONENT = tl.constexpr(EXPONENT)

# √½ = HIGH + LOW, where HIGH has 26 bits. Adding and subtracting ROUNDER keeps 26 bits of a float64 below 64 too, so
# products with the two upper parts are exact.
ROOT = math.sqrt(0.5)
HIGH, LOW = 0.7071067839860916, -2.799544089368687e-09
ROUNDER = 1.5 * 2.0**32

# Elements per program.
TILE = 4096
EPS = 2.0**-24


@triton.jit
def gelu(z):  # (...) float32 -> (...)
    """gelu(inf) = inf, gelu(-inf) = 0, gelu(nan) = nan. `a` is clamped where the tail is 0, to avoid inf · 0."""
    a = tl.minimum(tl.abs(z), 16.0)
    # Squaring a reciprocal square root takes six fewer instructions than a division.
    root = tl.math.rsqrt(1.0 + 0.25 * a)
    t = root * root
    q = _Q[0] * t + _Q[1]
    for k in tl.static_range(2, 7):
        q = q * t + _Q[k]
    b_m = 0.5 - a * t * q
    tail = a * tl.math.exp2(a * a * _EXPONENT) * b_m
    # On a GPU, plain minimum and maximum drop nan; one of the two has to propagate it.
    return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL) - tail


@triton.jit
def bias_gelu_kernel(
    x, bias, y, N, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # (N, F), (F,) -> (N, F)
    """One ROWS x COLUMNS tile of gelu(x + bias)."""
    i_block = tl.program_id(0)
    # Neighbouring programs work on neighbouring columns.
    blocks: tl.constexpr = (F + COLUMNS - 1) // COLUMNS
    o_n = (i_block // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_f = (i_block % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    m_f = o_f < F
    m_nf = (o_n < N)[:, None] & m_f[None, :]
    o_nf = o_n[:, None] * F + o_f[None, :]
    b_bias = tl.load(bias + o_f, mask=m_f, other=0.0).to(tl.float32)
    z = tl.load(x + o_nf, mask=m_nf, other=0.0).to(tl.float32) + b_bias[None, :]
    tl.store(y + o_nf, gelu(z).to(y.dtype.element_ty), mask=m_nf)


def configuration(F: int, target: str) -> Configuration:
    """Blocks and warps for rows of F columns: 128 threads with 32 numbers each, in 8 columns (float32: 4), so that a
    thread's part of the bias stays in registers. AMD's warps have 64 threads."""
    columns = min(next_power_of_2(F), 1024)
    return Configuration({"ROWS": TILE // columns, "COLUMNS": columns}, num_warps=2 if target == "gfx942" else 4)


def grid(N: int, F: int, chosen: Configuration) -> tuple[int, ...]:
    """All tiles on axis x."""
    return (-(-N // chosen.blocks["ROWS"]) * -(-F // chosen.blocks["COLUMNS"]),)


def variants(target: str) -> Iterator[Variant]:
    """The kernel at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for F in (3072, 4096):
            chosen = configuration(F, target)
            signature = {"x": f"*{kind}", "bias": f"*{kind}", "y": f"*{kind}", "N": "i32"}
            name = name_of(dtype)
            constants = {"F": F, **chosen.blocks}
            yield Variant("bias_gelu", name, f"F={F}", bias_gelu_kernel, signature, constants, chosen, tile=TILE)


@torch.library.custom_op("ernie_m::bias_gelu", mutates_args=())
def _bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    x, bias = x.contiguous(), bias.contiguous()
    if not runs_triton(x):
        return plain_bias_gelu(x, bias)
    y = torch.empty_like(x)
    if x.numel():
        F = x.shape[-1]
        N = x.numel() // F
        chosen = configuration(F, target_of(x.device))
        launch(bias_gelu_kernel, grid(N, F, chosen), x, x, bias, y, N, F=F, **chosen.blocks, **chosen.options)
    return y


@_bias_gelu.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def normal_cdf(z: Tensor) -> Tensor:  # (...) -> (...)
    """Φ(z) = ½ erfc(−z/√2) for |z| <= TAIL_END, in float32 for all z, with a small relative error in the tail too.

    Rounding −z/√2 to w costs a relative error of up to z² u in the tail. float32 accepts it, as the kernel does.
    float64 corrects it: erfc(w + δ) ≈ erfc(w) (1 − 2wδ) for large w.
    """
    w = -ROOT * z
    if z.dtype != torch.float64:
        return torch.erfc(w).mul_(0.5)
    tail = 0.5 * torch.erfc(w)
    upper = (z + ROUNDER) - ROUNDER
    delta = -(upper * HIGH + w) - (upper * LOW + (z - upper) * ROOT)
    return tail * (1.0 - 2.0 * w.clamp(min=0.0) * delta)


def normal_density(z: Tensor) -> Tensor:  # (...) -> (...)
    """φ(z) = exp(−z²/2)/√(2π) for |z| <= TAIL_END. In float64, z² is split so that its rounding is not magnified."""
    if z.dtype != torch.float64:
        return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    upper = (z + ROUNDER) - ROUNDER
    rest = torch.exp(-0.5 * (z - upper) * (z + upper))
    return torch.exp(-0.5 * upper * upper) * rest / math.sqrt(2 * math.pi)


def _gelu(z: Tensor) -> Tensor:
    """z Φ(z). Clamping z where Φ(z) is 0 avoids inf · 0."""
    c = z.clamp(min=-TAIL_END)
    return normal_cdf(c if z.dtype == torch.float32 else c.clamp(max=TAIL_END)).mul_(c)


def gelu_derivative(z: Tensor) -> Tensor:  # (...) -> (...)
    """Φ(z) + z φ(z): 0 at -inf, 1 at inf, nan at nan. Off by at most (10 + 3 z²) u (Φ(z) + |z| φ(z)); in float64, by
    10 u (Φ(z) + |z| φ(z))."""
    c = z.clamp(-TAIL_END, TAIL_END)
    return normal_cdf(c).add_(c * normal_density(c))


# The exact GELU in plain torch, with its derivative. torch's own is nan at both infinities and has
# no correct digit below -5.5 in float32.
plain_gelu = with_derivative(_gelu, gelu_derivative)


def plain_bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The same in plain torch, differentiable; half precision is computed in float32 here too."""
    return plain_gelu(widen(x) + widen(bias)).to(x.dtype)


def bias_gelu_unchecked(x: Tensor, bias: Tensor) -> Tensor:  # (..., F), (F,) -> (..., F)
    """`bias_gelu` for callers that have checked the arguments."""
    return plain_bias_gelu(x, bias) if wants_plain(x, bias) else _bias_gelu(x, bias)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:  # (..., F), (F,) -> (..., F)
    """gelu(x + bias), the activation after a linear map whose bias has not been added yet.

    The error is at most `gelu_error_bound` plus half a unit in the last place of the result's dtype, in a kernel and in
    plain torch; in float64, at most that of `reference.gelu`. gelu(inf) = inf, gelu(-inf) = 0, gelu(nan) = nan. The
    gradient is that of `gelu_derivative`. Raises TypeError or ValueError, naming the argument.
    """
    check_floats(x=x, bias=bias)
    if x.dim() < 1:
        raise ValueError(f"x: expected shape (..., F), got {tuple(x.shape)}")
    check_shape("bias", bias, (x.shape[-1],), "(F,)")
    return bias_gelu_unchecked(x, bias)


def gelu_error_bound(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:  # (...) -> (...)
    """Bound on the error in float32 before the last rounding, for finite float64 z = x + bias; to first order in ε.

    ε = 2⁻²⁴, T = aΦ(−a). In units of ε, the relative error of the tail T is at most the sum of

        17.6 a              aN, at most 1.2 a M. N has an error of 22 for small a, 11 for large a: 6.3 from t
                            (1 + a/4: 1; its rsqrt: 2^-22.9 by the PTX manual, twice; the square: 1) times t N'/N,
                            which is 1.2 to 2.5; 4.2 from Horner's rule, 2 from products
        a²                  the exponent: two roundings, of a² and of a²/2
        0.73 (1 + a²/2)     the fit
        4 + 3               exp2 (2⁻²², again by the PTX manual); the roundings of M and of two products

    which is less than 9 + 18 a + 1.5 a². z itself is rounded: |z gelu'(z)| <= max(z, 0) + (1 + a²) T. The subtraction
    adds one more rounding of z > 0. Where exp2 flushes results below 2⁻¹²⁶ to 0, another 2⁻¹²⁶ is lost.

    The plain form stays below: 2 a² for rounding a/√2, 8 for erfc (CUDA's manual: 4 ulp), 1 for the product.
    """
    a = np.abs(z)
    tail = a * normal_tail(np.minimum(a, TAIL_END))
    return np.asarray(EPS * (2 * np.maximum(z, 0) + (10 + 18 * a + 2.5 * np.square(a)) * tail))

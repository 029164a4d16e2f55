"""Bias and GELU in one pass over memory, with a cheap tail of the normal distribution of known accuracy.

    gelu(z) = max(z, 0) − a Φ(−a),    z = x + bias,  a = |z|,    Φ(−a) = exp(−a²/2) · M(a)

M starts from ½ (`normal.py`), so errors of its fit do not matter where gelu(z) ≈ z/2; and Φ(−a), computed itself, keeps
its digits where it is small. libdevice's erf takes 38 instructions; all of this takes 23.

Grid: one program per tile of ROWS x COLUMNS; it reads its part of the bias once. float32 inside, rounded once.
The gradients have a kernel of their own (`gelu_backward.py`), which starts from x: nothing else is kept.
Left out: the tanh approximation, which is a different function.
Twin: reference/gelu.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ernie_m.reference.erf import TAIL_END, normal_tail

from .gelu_backward import bias_gelu_backward
from .gelu_backward import variants_backward as variants_backward
from .normal import COEFFICIENTS as COEFFICIENTS
from .normal import EXPONENT as EXPONENT
from .normal import normal_cdf, normal_density, scaled_tail
from .runtime.arguments import check_floats, check_shape
from .runtime.derivative import refuse_second_derivatives, with_derivative
from .runtime.dispatch import exports_onnx, runs_triton, wants_plain
from .runtime.dtypes import TRITON_TYPES, name_of, widen
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant, next_power_of_2, target_of

# Elements per program.
TILE = 4096
EPS = 2.0**-24


@triton.jit
def gelu(z):  # (...) float32 -> (...)
    """gelu(inf) = inf, gelu(-inf) = 0, gelu(nan) = nan. `a` is clamped where the tail is 0, to avoid inf · 0."""
    a = tl.minimum(tl.abs(z), 16.0)
    b_m, gaussian = scaled_tail(a)
    tail = a * gaussian * b_m
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


def _gelu(z: Tensor) -> Tensor:
    """z Φ(z). Clamping z where Φ(z) is 0 avoids inf · 0. ONNX has no erfc, so its tail is that of 1 + erf."""
    if exports_onnx():
        return torch.nn.functional.gelu(z)
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


def plain_bias_gelu_vjp(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients in plain torch, differentiable once more."""
    dx = widen(dy) * gelu_derivative(widen(x) + widen(bias))
    return dx.to(x.dtype), dx.flatten(0, -2).sum(0).to(bias.dtype) if dx.dim() > 1 else dx.to(bias.dtype)


@torch.library.custom_op("ernie_m::bias_gelu_vjp", mutates_args=())
def _bias_gelu_vjp(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    dy, x, bias = dy.contiguous(), x.contiguous(), bias.contiguous()
    return bias_gelu_backward(dy, x, bias) if runs_triton(x) else plain_bias_gelu_vjp(dy, x, bias)


@_bias_gelu_vjp.register_fake
def _(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), bias.new_empty(bias.shape)


refuse_second_derivatives(_bias_gelu_vjp)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    dx, dbias = _bias_gelu_vjp(dy, *ctx.saved_tensors)
    return dx, dbias


_bias_gelu.register_autograd(_backward, setup_context=_keep)


def bias_gelu_unchecked(x: Tensor, bias: Tensor) -> Tensor:  # (..., F), (F,) -> (..., F)
    """`bias_gelu` for callers that have checked the arguments."""
    plain = wants_plain(x, bias, differentiable=True)
    y: Tensor = plain_bias_gelu(x, bias) if plain else _bias_gelu(x, bias)
    return y


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:  # (..., F), (F,) -> (..., F)
    """gelu(x + bias), the activation after a linear map whose bias has not been added yet.

    The error is at most `gelu_error_bound` plus half a unit in the last place of the result's dtype, in a kernel and in
    plain torch; in float64, at most that of `reference.gelu`. gelu(inf) = inf, gelu(-inf) = 0, gelu(nan) = nan. The
    gradients are those of `bias_gelu_vjp`. Raises TypeError or ValueError, naming the argument.
    """
    check_floats(x=x, bias=bias)
    _check_shapes(x, bias)
    return bias_gelu_unchecked(x, bias)


def bias_gelu_vjp(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:  # (..., F) x 2, (F,) -> ..., (F,)
    """The gradients of x and the bias, if `dy` is that of `bias_gelu(x, bias)`: dy · gelu′(x + bias), and its sum over
    all tokens, added in float32 in an order that only depends on the shape.

    Raises TypeError or ValueError, naming the argument.
    """
    check_floats(dy=dy, x=x, bias=bias)
    _check_shapes(x, bias)
    check_shape("dy", dy, tuple(x.shape), "the shape of x")
    plain = wants_plain(dy, x, bias, differentiable=True)
    dx, dbias = (plain_bias_gelu_vjp if plain else _bias_gelu_vjp)(dy, x, bias)
    return dx, dbias


def _check_shapes(x: Tensor, bias: Tensor) -> None:
    if x.dim() < 1:
        raise ValueError(f"x: expected shape (..., F), got {tuple(x.shape)}")
    check_shape("bias", bias, (x.shape[-1],), "(F,)")


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

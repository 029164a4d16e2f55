"""Bias, residual and layer normalisation in one pass over memory.

    v = x + bias + residual
    y = (v − mean(v)) / √(var(v) + ε) · γ + β

Grid: one program per row; BLOCK covers all E columns, so v stays in registers from load to store. As separate steps,
the two additions and the normalisation would read and write the row three times. One warp handles a row of up to 1,024
columns, so its two sums need no barrier and no shared memory. All arithmetic is float32, rounded once at the end; the
statistics are saved in float32.

Twin: reference/layer_norm.py. Source: Layer Normalization (Ba, Kiros, Hinton, 2016), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .runtime.arguments import check_eps, check_floats, check_shape
from .runtime.dispatch import runs_triton, wants_plain
from .runtime.dtypes import TRITON_TYPES, name_of, widen
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant, next_power_of_2


@triton.jit
def normalise_row(v, m_e, gamma, beta, o_e, eps, E: tl.constexpr):
    """(BLOCK,) float32 with zeros past E -> y, mean, rstd. Squaring before subtracting the mean would lose digits."""
    mean = tl.sum(v, 0) / E
    centred = tl.where(m_e, v - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / E + eps)
    b_gamma = tl.load(gamma + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + o_e, mask=m_e, other=0.0).to(tl.float32)
    return centred * rstd * b_gamma + b_beta, mean, rstd


@triton.jit
def add_layer_norm_kernel(
    x, bias, residual, gamma, beta, y, means, rstds, eps, E: tl.constexpr, BLOCK: tl.constexpr
):  # (N, E), (E,), (N, E), (E,), (E,) -> (N, E), (N,), (N,)
    """One row of LayerNorm(x + bias + residual), with its mean and 1/√(var + ε)."""
    i_row = tl.program_id(0).to(tl.int64)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    v = tl.load(x + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    v += tl.load(bias + o_e, mask=m_e, other=0.0).to(tl.float32)
    v += tl.load(residual + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_y, mean, rstd = normalise_row(v, m_e, gamma, beta, o_e, eps, E)
    tl.store(y + i_row * E + o_e, b_y.to(y.dtype.element_ty), mask=m_e)
    tl.store(means + i_row, mean)
    tl.store(rstds + i_row, rstd)


def configuration(E: int) -> Configuration:
    """Blocks and warps for rows of E columns."""
    block = next_power_of_2(E)
    return Configuration({"BLOCK": block}, num_warps=1 if block <= 1024 else min(block // 1024, 8))


def grid(N: int) -> tuple[int, ...]:
    """One program per row."""
    return (N,)


def variants(target: str) -> Iterator[Variant]:
    """The kernel at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for E in (768, 1024):
            chosen = configuration(E)
            tensors = dict.fromkeys(("x", "bias", "residual", "gamma", "beta", "y"), f"*{kind}")
            signature = {**tensors, "means": "*fp32", "rstds": "*fp32", "eps": "fp32"}
            name = name_of(dtype)
            constants = {"E": E, **chosen.blocks}
            yield Variant("add_layer_norm", name, f"E={E}", add_layer_norm_kernel, signature, constants, chosen, tile=1)


@torch.library.custom_op("ernie_m::add_layer_norm", mutates_args=())
def _add_layer_norm(
    x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, residual = x.contiguous(), residual.contiguous()
    if not runs_triton(x):
        return plain_add_layer_norm(x, bias, residual, gamma, beta, eps)
    E = x.shape[-1]
    y = torch.empty_like(x)
    means, rstds = (torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) for _ in range(2))
    if x.numel():
        chosen = configuration(E)
        launch(
            add_layer_norm_kernel,
            grid(x.numel() // E),
            x,
            *(x, bias.contiguous(), residual, gamma.contiguous(), beta.contiguous(), y, means, rstds, eps),
            E=E,
            **chosen.blocks,
            **chosen.options,
        )
    return y, means, rstds


@_add_layer_norm.register_fake
def _(
    x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    means, rstds = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.contiguous_format), means, rstds


def plain_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of a float32 or float64 `x`, at least as precise as gamma and beta. Returns y, mean and rstd."""
    y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], gamma, beta, eps)
    return y, mean.squeeze(-1), rstd.squeeze(-1)


def plain_add_layer_norm(
    x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, differentiable; half precision is computed in float32 here too."""
    v = widen(x) + widen(bias) + widen(residual)
    y, mean, rstd = plain_layer_norm(v, widen(gamma), widen(beta), eps)
    return y.to(x.dtype), mean, rstd


def add_layer_norm_unchecked(
    x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:  # (..., E), (E,), (..., E), (E,), (E,) -> (..., E), (...), (...)
    """`add_layer_norm` with statistics, for callers that have checked the arguments."""
    plain = wants_plain(x, bias, residual, gamma, beta)
    y, means, rstds = (plain_add_layer_norm if plain else _add_layer_norm)(x, bias, residual, gamma, beta, eps)
    return y, means, rstds


def add_layer_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    return_statistics: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:  # (..., E), (E,), (..., E), (E,), (E,) -> (..., E)
    """LayerNorm(x + bias + residual), the last step of each half of a Transformer layer.

    `x` is a matrix product whose bias has not been added yet. With `return_statistics`, also return each row's mean
    and 1/√(var + ε), float32, of shape (...). Raises TypeError or ValueError, naming the argument.
    """
    check_floats(x=x, bias=bias, residual=residual, gamma=gamma, beta=beta)
    eps = check_eps(eps)
    if x.dim() < 1:
        raise ValueError(f"x: expected shape (..., E), got {tuple(x.shape)}")
    check_shape("residual", residual, tuple(x.shape), "the shape of x")
    for name, vector in (("bias", bias), ("gamma", gamma), ("beta", beta)):
        check_shape(name, vector, (x.shape[-1],), "(E,)")
    result = add_layer_norm_unchecked(x, bias, residual, gamma, beta, eps)
    return result if return_statistics else result[0]

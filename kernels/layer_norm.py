"""Bias, residual and layer normalisation in one pass over memory.

    v = x + bias + residual
    y = (v − mean(v)) / √(var(v) + ε) · γ + β

Grid: one program per row; BLOCK covers all E columns, so v stays in registers from load to store. As separate steps,
the two additions and the normalisation would read and write the row three times. One warp handles a row of up to 1,024
columns, so its two sums need no barrier and no shared memory. All arithmetic is float32, rounded once at the end; the
statistics are saved in float32 for the backward pass (`layer_norm_backward.py`).

Twin: reference/layer_norm.py. Source: Layer Normalization (Ba, Kiros, Hinton, 2016), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .layer_norm_backward import add_layer_norm_backward
from .layer_norm_backward import variants_backward as variants_backward
from .runtime.arguments import check_eps, check_floats, check_shape
from .runtime.derivative import refuse_second_derivatives
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
    y = torch.empty_like(residual)
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
    return torch.empty_like(residual, memory_format=torch.contiguous_format), means, rstds


def plain_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of a float32 or float64 `x`, at least as precise as gamma and beta. Returns y, mean and rstd."""
    y, mean, rstd = torch.native_layer_norm(x, gamma.shape, gamma, beta, eps)
    return y, mean.squeeze(-1), rstd.squeeze(-1)


def plain_add_layer_norm(
    x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, differentiable; half precision is computed in float32 here too."""
    v = widen(x) + widen(bias) + widen(residual)
    y, mean, rstd = plain_layer_norm(v, widen(gamma), widen(beta), eps)
    return y.to(residual.dtype), mean, rstd


def plain_layer_norm_vjp(
    dy: Tensor, v: Tensor, gamma: Tensor, means: Tensor, rstds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # (..., E) x 2, (E,), (...) x 2 -> (..., E), (E,) x 2
    """The gradients of v, γ and β in plain torch; float32 or float64."""
    rstds = rstds[..., None]
    n, g = (v - means[..., None]) * rstds, dy * gamma
    dv = (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)) * rstds
    E = v.shape[-1]
    return dv, (dy * n).reshape(-1, E).sum(0), dy.reshape(-1, E).sum(0)


def plain_add_layer_norm_vjp(
    dy: Tensor, x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, means: Tensor, rstds: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same as the kernel in plain torch."""
    v = widen(x) + widen(bias) + widen(residual)
    dv, dgamma, dbeta = plain_layer_norm_vjp(widen(dy), v, widen(gamma), means, rstds)
    dbias = dv.reshape(-1, v.shape[-1]).sum(0)
    return dv.to(residual.dtype), dbias.to(bias.dtype), dgamma.to(gamma.dtype), dbeta.to(gamma.dtype)


@torch.library.custom_op("ernie_m::add_layer_norm_vjp", mutates_args=())
def _add_layer_norm_vjp(
    dy: Tensor, x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, means: Tensor, rstds: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = [t.contiguous() for t in (dy, x, bias, residual, gamma, means, rstds)]
    return add_layer_norm_backward(*tensors) if runs_triton(x) else plain_add_layer_norm_vjp(*tensors)


@_add_layer_norm_vjp.register_fake
def _(
    dy: Tensor, x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, means: Tensor, rstds: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias, dgamma, dbeta = (gamma.new_empty(gamma.shape) for _ in range(3))
    return torch.empty_like(residual, memory_format=torch.contiguous_format), dbias, dgamma, dbeta


refuse_second_derivatives(_add_layer_norm_vjp)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, means, rstds = output
    ctx.mark_non_differentiable(means, rstds)
    ctx.save_for_backward(*inputs[:4], means, rstds)


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    # Read once: gradient checkpointing computes again what was saved, and refuses to do so twice.
    x, *rest = ctx.saved_tensors
    d_residual, dbias, dgamma, dbeta = _add_layer_norm_vjp(dy, x, *rest)
    return d_residual.to(x.dtype), dbias, d_residual, dgamma, dbeta, None


_add_layer_norm.register_autograd(_backward, setup_context=_keep)


def add_layer_norm_unchecked(
    x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:  # (..., E), (E,), (..., E), (E,), (E,) -> (..., E), (...), (...)
    """`add_layer_norm` with statistics, for callers that have checked the arguments.

    Under autocast, `x` may be in half precision and the rest in float32: the result has the residual's dtype.
    """
    plain = wants_plain(x, bias, residual, gamma, beta, differentiable=True)
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
    and 1/√(var + ε), float32, of shape (...), which have no gradient. Raises TypeError or ValueError, naming the
    argument.
    """
    check_floats(x=x, bias=bias, residual=residual, gamma=gamma, beta=beta)
    eps = check_eps(eps)
    check_shapes(x, residual=residual, bias=bias, gamma=gamma, beta=beta)
    result = add_layer_norm_unchecked(x, bias, residual, gamma, beta, eps)
    return result if return_statistics else result[0]


def add_layer_norm_vjp(
    dy: Tensor, x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # (..., E) x 2, (E,), (..., E), (E,) -> ..., (E,), ..., (E,) x 2
    """The gradients of x, the bias, the residual, γ and β, if `dy` is that of `add_layer_norm`; those of vectors are
    sums over all tokens, added in float32 in an order that only depends on the shape.

    Raises TypeError or ValueError, naming the argument.
    """
    check_floats(dy=dy, x=x, bias=bias, residual=residual, gamma=gamma)
    eps = check_eps(eps)
    check_shapes(x, dy=dy, residual=residual, bias=bias, gamma=gamma)
    if wants_plain(dy, x, bias, residual, gamma, differentiable=True):
        # Not those of the forward, which have no gradient: this form is differentiable once more.
        variances, means = torch.var_mean(widen(x) + widen(bias) + widen(residual), -1, correction=0)
        found = plain_add_layer_norm_vjp(dy, x, bias, residual, gamma, means, (variances + eps).rsqrt())
    else:
        _, means, rstds = _add_layer_norm(x, bias, residual, gamma, gamma, eps)
        found = _add_layer_norm_vjp(dy, x, bias, residual, gamma, means, rstds)
    dx, dbias, dgamma, dbeta = found
    return dx, dbias, dx.clone(), dgamma, dbeta


def check_shapes(x: Tensor, **others: Tensor) -> None:
    """Rows have the shape of `x`, vectors (E,)."""
    if x.dim() < 1:
        raise ValueError(f"x: expected shape (..., E), got {tuple(x.shape)}")
    for name, other in others.items():
        if name in ("dy", "residual"):
            check_shape(name, other, tuple(x.shape), "the shape of x")
        else:
            check_shape(name, other, (x.shape[-1],), "(E,)")

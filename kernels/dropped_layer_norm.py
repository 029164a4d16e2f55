"""Bias, dropout, residual and layer normalisation in one pass over memory: `layer_norm.py` in training.

    v = dropout(x + bias) + residual
    y = (v − mean(v)) / √(var(v) + ε) · γ + β

As separate steps, dropout would read and write each row once more in both passes, and round it.

Grid: as in layer_norm.py. Each call of Philox serves four columns. The kernel of the backward pass is in
dropped_layer_norm_backward.py.

Twin: reference/dropped_layer_norm.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .attention import DROPS
from .dropout import bits_of, check_bits, threshold_of
from .dropped_layer_norm_backward import dropped_layer_norm_backward, plain_dropped_layer_norm_vjp, plain_sum
from .layer_norm import (
    add_layer_norm_unchecked,
    add_layer_norm_vjp,
    check_shapes,
    configuration,
    grid,
    normalise_row,
    plain_layer_norm,
)
from .philox import LOW_HALF
from .runtime.arguments import check_eps, check_floats
from .runtime.derivative import refuse_second_derivatives
from .runtime.dispatch import runs_triton, transformed
from .runtime.dtypes import TRITON_TYPES, name_of, wide_dtype, widen
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Variant


@triton.jit
def dropped_layer_norm_kernel(
    x, bias, residual, gamma, beta, seed, tokens, y, means, rstds, eps, threshold, keep,
    E: tl.constexpr, BLOCK: tl.constexpr,
):  # (N, E), (E,), (N, E), (E,), (E,), (), (N,) -> (N, E), (N,), (N,)  # fmt: skip
    """One row of LayerNorm(dropout(x + bias) + residual), with its mean and 1/√(var + ε); `keep` is 1/(1 − p)."""
    i_row = tl.program_id(0).to(tl.int64)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    b_bits = bits_of(tl.load(seed), tl.load(tokens + i_row), tl.arange(0, BLOCK // 4))
    v = tl.load(x + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    v += tl.load(bias + o_e, mask=m_e, other=0.0).to(tl.float32)
    v = tl.where(b_bits < tl.cast(threshold, tl.uint32), 0.0, v * keep)
    v += tl.load(residual + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_y, mean, rstd = normalise_row(v, m_e, gamma, beta, o_e, eps, E)
    tl.store(y + i_row * E + o_e, b_y.to(y.dtype.element_ty), mask=m_e)
    tl.store(means + i_row, mean)
    tl.store(rstds + i_row, rstd)


def variants(target: str) -> Iterator[Variant]:
    """The forward kernel at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for E in (768, 1024):
            chosen = configuration(E)
            tensors = dict.fromkeys(("x", "bias", "residual", "gamma", "beta", "y"), f"*{kind}")
            floats = {"means": "*fp32", "rstds": "*fp32", "eps": "fp32", "keep": "fp32"}
            signature = {**tensors, **floats, "seed": "*i64", "tokens": "*i64", "threshold": "i64"}
            described = ("add_layer_norm", name_of(dtype), f"E={E}{DROPS}", dropped_layer_norm_kernel, signature)
            yield Variant(*described, {"E": E, **chosen.blocks}, chosen, tile=1)


@torch.library.custom_op("ernie_m::dropped_layer_norm", mutates_args=())
def _dropped_layer_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    p: float,
    seed: Tensor,
    tokens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    x, bias, residual, gamma, beta, tokens = (t.contiguous() for t in (x, bias, residual, gamma, beta, tokens))
    if not _launches(x, p):
        v = plain_sum(x, bias, residual, p, seed, tokens)
        y, means, rstds = plain_layer_norm(v, widen(gamma), widen(beta), eps)
        return y.to(residual.dtype), means, rstds
    E, y = x.shape[-1], torch.empty_like(residual)
    means, rstds = (torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) for _ in range(2))
    if x.numel():
        chosen = configuration(max(E, 4))
        arguments = (x, bias, residual, gamma, beta, seed, tokens, y, means, rstds, eps, threshold_of(p), 1 / (1 - p))
        launch(dropped_layer_norm_kernel, grid(x.numel() // E), x, *arguments, E=E, **chosen.blocks, **chosen.options)
    return y, means, rstds


@_dropped_layer_norm.register_fake
def _(x: Tensor, bias: Tensor, residual: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    means, rstds = (x.new_empty(x.shape[:-1], dtype=wide_dtype(x)) for _ in range(2))
    return torch.empty_like(residual, memory_format=torch.contiguous_format), means, rstds


@torch.library.custom_op("ernie_m::dropped_layer_norm_vjp", mutates_args=())
def _dropped_layer_norm_vjp(
    dy: Tensor,
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gamma: Tensor,
    means: Tensor,
    rstds: Tensor,
    p: float,
    seed: Tensor,
    tokens: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = (dy, x, bias, residual, gamma, means, rstds, tokens)
    dy, x, bias, residual, gamma, means, rstds, tokens = (t.contiguous() for t in rows)
    backward = dropped_layer_norm_backward if _launches(x, p) else plain_dropped_layer_norm_vjp
    return backward(dy, x, bias, residual, gamma, means, rstds, p, seed, tokens)


@_dropped_layer_norm_vjp.register_fake
def _(
    dy: Tensor, x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, d_residual = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, residual))
    dbias, dgamma, dbeta = (gamma.new_empty(gamma.shape) for _ in range(3))
    return dx, dbias, d_residual, dgamma, dbeta


refuse_second_derivatives(_dropped_layer_norm_vjp)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, means, rstds = output
    x, bias, residual, gamma, _, _, ctx.p, seed, tokens = inputs
    ctx.mark_non_differentiable(means, rstds)
    ctx.save_for_backward(x, bias, residual, gamma, means, rstds, seed, tokens)


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *saved, seed, tokens = ctx.saved_tensors
    return *_dropped_layer_norm_vjp(dy, *saved, ctx.p, seed, tokens), None, None, None, None


_dropped_layer_norm.register_autograd(_backward, setup_context=_keep)


def _launches(x: Tensor, p: float) -> bool:
    """With p = 1, the threshold would not fit in 32 bits."""
    return runs_triton(x) and threshold_of(p) <= LOW_HALF


def fuses_dropout(x: Tensor) -> bool:
    """Whether there is a kernel for this; else dropout, addition and LayerNorm are computed one after the other."""
    return runs_triton(x) and not transformed()


def dropped_layer_norm_unchecked(*given: Any) -> Tensor:
    """LayerNorm(dropout(x + bias) + residual) where `fuses_dropout`; the arguments of the operation, not checked.
    Dtypes are as in `add_layer_norm_unchecked`."""
    y, _, _ = _dropped_layer_norm(*given)
    return y


def dropped_layer_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    p: float,
    seed: Any,
    tokens: Tensor | None = None,
) -> Tensor:  # (..., E), (E,), (..., E), (E,), (E,), (...) -> (..., E)
    """LayerNorm(dropout(x + bias) + residual), the last step of each half of a Transformer layer in training.

    `p`, `seed` and `tokens` are those of `dropout`. Raises TypeError or ValueError, naming the argument.
    """
    check_floats(x=x, bias=bias, residual=residual, gamma=gamma, beta=beta)
    eps = check_eps(eps)
    check_shapes(x, residual=residual, bias=bias, gamma=gamma, beta=beta)
    bits = check_bits(x, p, seed, tokens)
    if bits is None:
        return add_layer_norm_unchecked(x, bias, residual, gamma, beta, eps)[0]
    if fuses_dropout(x):
        return dropped_layer_norm_unchecked(x, bias, residual, gamma, beta, eps, p, *bits)
    y, _, _ = plain_layer_norm(plain_sum(x, bias, residual, p, *bits), widen(gamma), widen(beta), eps)
    return y.to(x.dtype)


def dropped_layer_norm_vjp(
    dy: Tensor,
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gamma: Tensor,
    eps: float,
    p: float,
    seed: Any,
    tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # (..., E) x 2, (E,), (..., E), (E,), (...) -> see below
    """The gradients of x, the bias, the residual, γ and β, if `dy` is that of `dropped_layer_norm`; those of vectors
    are sums over all tokens, as in `add_layer_norm_vjp`. Raises TypeError or ValueError, naming the argument."""
    check_floats(dy=dy, x=x, bias=bias, residual=residual, gamma=gamma)
    eps = check_eps(eps)
    check_shapes(x, dy=dy, residual=residual, bias=bias, gamma=gamma)
    bits = check_bits(x, p, seed, tokens)
    given = (x, bias, residual, gamma)
    if bits is None:
        return add_layer_norm_vjp(dy, *given, eps)
    if not fuses_dropout(x):
        # Not those of the forward, which have no gradient: this form is differentiable once more.
        variances, means = torch.var_mean(plain_sum(x, bias, residual, p, *bits), -1, correction=0)
        return plain_dropped_layer_norm_vjp(dy, *given, means, (variances + eps).rsqrt(), p, *bits)
    _, means, rstds = _dropped_layer_norm(*given, gamma, eps, p, *bits)
    return tuple(_dropped_layer_norm_vjp(dy, *given, means, rstds, p, *bits))

"""Bias, dropout, residual and layer normalisation in one pass over memory: `layer_norm.py` in training.

    v = dropout(x + bias) + residual
    y = (v − mean(v)) / √(var(v) + ε) · γ + β

The backward pass computes the bits of dropout again instead of keeping which elements were dropped:

    dv as in layer_norm_backward.py,   d_residual = dv,   dx = dropout(dv),   dbias = Σ dx over the rows

As separate steps, dropout would read and write each row once more in both passes, and round it.

Grids: as in layer_norm.py and layer_norm_backward.py. Each call of Philox serves four columns.

Twin: `dropout` and `layer_norm` in reference/encoder.py, `layer_steps`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .attention import DROPS
from .dropout import bits_of, plain_dropout, threshold_of
from .layer_norm import configuration, grid, normalise_row, plain_layer_norm, plain_layer_norm_vjp
from .layer_norm_backward import configuration as backward_configuration
from .layer_norm_backward import normalised_vjp
from .partials import count_partials, sum_partials
from .philox import LOW_HALF
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


@triton.jit
def dropped_layer_norm_vjp_kernel(
    dy, x, bias, residual, gamma, seed, tokens, means, rstds, dx, d_residual, partials, N, P, threshold, keep,
    E: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # (N, E) x 2, (E,), (N, E), (E,), (), (N,) x 3 -> (N, E) x 2, (P, 3, E)  # fmt: skip
    """Every P-th tile of dx and d_residual, and these tiles' sums for the bias, γ and β."""
    i_partial = tl.program_id(0)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    b_bias = tl.load(bias + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_gamma = tl.load(gamma + o_e, mask=m_e, other=0.0).to(tl.float32)
    d_bias = tl.zeros((BLOCK,), tl.float32)
    d_gamma = tl.zeros((BLOCK,), tl.float32)
    d_beta = tl.zeros((BLOCK,), tl.float32)
    for i_tile in tl.range(i_partial, tl.cdiv(N, ROWS), P):
        o_n = tl.cast(i_tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        m_n = o_n < N
        m_ne = m_n[:, None] & m_e[None, :]
        o_ne = o_n[:, None] * E + o_e[None, :]
        b_tokens = tl.load(tokens + o_n, mask=m_n, other=0)
        b_bits = bits_of(tl.load(seed), b_tokens[:, None], tl.arange(0, BLOCK // 4)[None, :])
        dropped = b_bits < tl.cast(threshold, tl.uint32)
        v = tl.load(x + o_ne, mask=m_ne, other=0.0).to(tl.float32) + b_bias[None, :]
        v = tl.where(dropped, 0.0, v * keep)
        v += tl.load(residual + o_ne, mask=m_ne, other=0.0).to(tl.float32)
        b_dy = tl.load(dy + o_ne, mask=m_ne, other=0.0).to(tl.float32)
        mean = tl.load(means + o_n, mask=m_n, other=0.0)
        rstd = tl.load(rstds + o_n, mask=m_n, other=0.0)
        dv, n = normalised_vjp(b_dy, v, mean, rstd, b_gamma, E)
        tl.store(d_residual + o_ne, dv.to(d_residual.dtype.element_ty), mask=m_ne)
        b_dx = tl.where(dropped, 0.0, dv * keep)
        tl.store(dx + o_ne, b_dx.to(dx.dtype.element_ty), mask=m_ne)
        d_bias += tl.sum(b_dx, 0)
        d_gamma += tl.sum(b_dy * n, 0)
        d_beta += tl.sum(b_dy, 0)
    p_partial = partials + i_partial * (3 * E) + o_e
    tl.store(p_partial, d_bias, mask=m_e)
    tl.store(p_partial + E, d_gamma, mask=m_e)
    tl.store(p_partial + 2 * E, d_beta, mask=m_e)


def _described(kind: str, *matrices: str) -> dict[str, str]:
    """The types of a kernel's arguments, in order."""
    tensors = dict.fromkeys(matrices, f"*{kind}")
    return {**tensors, "seed": "*i64", "tokens": "*i64", "means": "*fp32", "rstds": "*fp32"}


def variants(target: str) -> Iterator[Variant]:
    """The forward kernel at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for E in (768, 1024):
            chosen = configuration(E)
            signature = _described(kind, "x", "bias", "residual", "gamma", "beta", "y")
            signature |= {"eps": "fp32", "threshold": "i64", "keep": "fp32"}
            described = ("add_layer_norm", name_of(dtype), f"E={E}{DROPS}", dropped_layer_norm_kernel, signature)
            yield Variant(*described, {"E": E, **chosen.blocks}, chosen, tile=1)


def variants_backward(target: str) -> Iterator[Variant]:
    """The backward kernel at the same sizes."""
    for dtype, kind in TRITON_TYPES.items():
        for E in (768, 1024):
            chosen = backward_configuration(E)
            signature = _described(kind, "dy", "x", "bias", "residual", "gamma", "dx", "d_residual")
            signature |= {"partials": "*fp32", "N": "i32", "P": "i32", "threshold": "i64", "keep": "fp32"}
            described = ("add_layer_norm_vjp", name_of(dtype), f"E={E}{DROPS}", dropped_layer_norm_vjp_kernel)
            blocks = chosen.blocks
            yield Variant(*described, signature, {"E": E, **blocks}, chosen, tile=blocks["ROWS"], loop=True)


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
        v = plain_dropout(widen(x) + widen(bias), p, seed, tokens) + widen(residual)
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
def _(
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
    E = x.shape[-1]
    if not _launches(x, p):
        v = plain_dropout(widen(x) + widen(bias), p, seed, tokens) + widen(residual)
        dv, dgamma, dbeta = plain_layer_norm_vjp(widen(dy), v, widen(gamma), means, rstds)
        d_sum = plain_dropout(dv, p, seed, tokens)
        dbias, dgamma, dbeta = (g.to(gamma.dtype) for g in (d_sum.reshape(-1, E).sum(0), dgamma, dbeta))
        return d_sum.to(x.dtype), dv.to(residual.dtype), dbias, dgamma, dbeta
    dx, d_residual = torch.empty_like(x), torch.empty_like(residual)
    if not x.numel():
        dbias, dgamma, dbeta = (torch.zeros_like(gamma) for _ in range(3))
        return dx, d_residual, dbias, dgamma, dbeta
    N, chosen = x.numel() // E, backward_configuration(max(E, 4))
    P = count_partials(-(-N // chosen.blocks["ROWS"]))
    partials = torch.empty(P, 3, E, dtype=torch.float32, device=x.device)
    arguments = (dy, x, bias, residual, gamma, seed, tokens, means, rstds, dx, d_residual, partials, N, P)
    rate = (threshold_of(p), 1 / (1 - p))
    launch(dropped_layer_norm_vjp_kernel, (P,), x, *arguments, *rate, E=E, **chosen.blocks, **chosen.options)
    dbias, dgamma, dbeta = sum_partials(partials, gamma.dtype)
    return dx, d_residual, dbias, dgamma, dbeta


@_dropped_layer_norm_vjp.register_fake
def _(
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
    dx, d_residual = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, residual))
    dbias, dgamma, dbeta = (gamma.new_empty(gamma.shape) for _ in range(3))
    return dx, d_residual, dbias, dgamma, dbeta


refuse_second_derivatives(_dropped_layer_norm_vjp)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, means, rstds = output
    x, bias, residual, gamma, _, _, ctx.p, seed, tokens = inputs
    ctx.mark_non_differentiable(means, rstds)
    ctx.save_for_backward(x, bias, residual, gamma, means, rstds, seed, tokens)


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *saved, seed, tokens = ctx.saved_tensors
    dx, d_residual, dbias, dgamma, dbeta = _dropped_layer_norm_vjp(dy, *saved, ctx.p, seed, tokens)
    return dx, dbias, d_residual, dgamma, dbeta, None, None, None, None


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

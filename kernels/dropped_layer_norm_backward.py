"""The backward pass of dropout, residual and layer normalisation, which computes the bits of dropout again.

    dv = (g − mean(g) − n mean(g n)) · rstd   as in layer_norm_backward.py, with v = dropout(x + bias) + residual
    d_residual = dv,   dx = dropout(dv)       with the forward's bits: nothing says which elements were dropped
    dbias = Σ dx,   dγ = Σ dy n,   dβ = Σ dy  over the rows

dv and dx are rounded once, and what is added to dbias is not.

Grid: as in layer_norm_backward.py. Each call of Philox serves four columns.

Twin: `dropped_layer_norm_vjp` in reference/dropped_layer_norm.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .dropout import bits_of, plain_dropout, threshold_of
from .layer_norm import plain_layer_norm_vjp
from .layer_norm_backward import configuration, normalised_vjp
from .partials import count_partials, sum_partials, sum_variants
from .runtime.dtypes import TRITON_TYPES, name_of, widen
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Variant


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


def variants_backward(target: str) -> Iterator[Variant]:
    """The kernels at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for E in (768, 1024):
            chosen = configuration(E)
            tensors = dict.fromkeys(("dy", "x", "bias", "residual", "gamma", "dx", "d_residual"), f"*{kind}")
            floats = dict.fromkeys(("means", "rstds", "partials"), "*fp32")
            signature = {**tensors, **floats, "seed": "*i64", "tokens": "*i64", "N": "i32", "P": "i32"}
            signature |= {"threshold": "i64", "keep": "fp32"}
            described = ("dropped_layer_norm_vjp", name_of(dtype), f"E={E}", dropped_layer_norm_vjp_kernel, signature)
            constants = {"E": E, **chosen.blocks}
            yield Variant(*described, constants, chosen, tile=chosen.blocks["ROWS"], loop=True)
    yield from sum_variants("dropped_layer_norm_vjp", 3, (768, 1024))


def dropped_layer_norm_backward(
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
    """dx, dbias, dresidual, dγ and dβ of contiguous tensors on which a kernel runs."""
    dx, d_residual = torch.empty_like(x), torch.empty_like(residual)
    if not x.numel():
        dbias, dgamma, dbeta = (torch.zeros_like(gamma) for _ in range(3))
        return dx, dbias, d_residual, dgamma, dbeta
    E = x.shape[-1]
    N, chosen = x.numel() // E, configuration(max(E, 4))
    P = count_partials(-(-N // chosen.blocks["ROWS"]))
    partials = torch.empty(P, 3, E, dtype=torch.float32, device=x.device)
    arguments = (dy, x, bias, residual, gamma, seed, tokens, means, rstds, dx, d_residual, partials, N, P)
    rate = (threshold_of(p), 1 / (1 - p))
    launch(dropped_layer_norm_vjp_kernel, (P,), x, *arguments, *rate, E=E, **chosen.blocks, **chosen.options)
    dbias, dgamma, dbeta = sum_partials(partials, gamma.dtype)
    return dx, dbias, d_residual, dgamma, dbeta


def plain_sum(x: Tensor, bias: Tensor, residual: Tensor, p: float, seed: Tensor, tokens: Tensor) -> Tensor:
    """What is normalised, in plain torch."""
    return plain_dropout(widen(x) + widen(bias), p, seed, tokens) + widen(residual)


def plain_dropped_layer_norm_vjp(
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
    """The same as the kernel in plain torch, differentiable."""
    v = plain_sum(x, bias, residual, p, seed, tokens)
    dv, dgamma, dbeta = plain_layer_norm_vjp(widen(dy), v, widen(gamma), means, rstds)
    dx = plain_dropout(dv, p, seed, tokens)
    dbias, dgamma, dbeta = (g.to(gamma.dtype) for g in (dx.reshape(-1, x.shape[-1]).sum(0), dgamma, dbeta))
    return dx.to(x.dtype), dbias, dv.to(residual.dtype), dgamma, dbeta

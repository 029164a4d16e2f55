"""The backward pass of bias, residual and layer normalisation, from the inputs and the statistics of the forward.

    n = (v − mean) · rstd,   g = dy · γ        v = x + bias + residual
    dx = (g − mean(g) − n mean(g n)) · rstd    the gradient of v, and so of x and of the residual
    dbias = Σ dx,   dγ = Σ dy n,   dβ = Σ dy   over the rows

n comes from v, not from y: dividing y − β by γ fails where γ is 0. All arithmetic is float32, and so are the
statistics; dx is rounded once, and what is added to dbias is not.

Grid: one program per partial sum (`partials.py`), which takes every P-th tile of ROWS rows; BLOCK covers all E columns.
A thread holds the same columns of all rows of a tile, so the three sums over rows stay in registers.

Twin: `add_layer_norm_vjp` in reference/layer_norm.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .partials import count_partials, sum_partials, sum_variants
from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant, next_power_of_2

TILE = 4096
# Few, so that a tile's rows are added in a short chain.
MOST_ROWS = 8


@triton.jit
def normalised_vjp(b_dy, v, mean, rstd, b_gamma, E: tl.constexpr):  # (R, E) x 2, (R,) x 2, (E,) -> (R, E) x 2
    """The gradient of v and the normalised rows n. Where dy is 0, past the ends, nothing is added to any sum."""
    n = (v - mean[:, None]) * rstd[:, None]
    g = b_dy * b_gamma[None, :]
    mean_g = tl.sum(g, 1) / E
    mean_gn = tl.sum(g * n, 1) / E
    return (g - mean_g[:, None] - n * mean_gn[:, None]) * rstd[:, None], n


@triton.jit
def add_layer_norm_vjp_kernel(
    dy, x, bias, residual, gamma, means, rstds, dx, partials, N, P,
    E: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # (N, E) x 2, (E,), (N, E), (E,), (N,) x 2 -> (N, E), (P, 3, E)  # fmt: skip
    """Every P-th tile of dx, and these tiles' sums for the bias, γ and β."""
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
        v = tl.load(x + o_ne, mask=m_ne, other=0.0).to(tl.float32) + b_bias[None, :]
        v += tl.load(residual + o_ne, mask=m_ne, other=0.0).to(tl.float32)
        b_dy = tl.load(dy + o_ne, mask=m_ne, other=0.0).to(tl.float32)
        mean = tl.load(means + o_n, mask=m_n, other=0.0)
        rstd = tl.load(rstds + o_n, mask=m_n, other=0.0)
        b_dx, n = normalised_vjp(b_dy, v, mean, rstd, b_gamma, E)
        tl.store(dx + o_ne, b_dx.to(dx.dtype.element_ty), mask=m_ne)
        d_bias += tl.sum(b_dx, 0)
        d_gamma += tl.sum(b_dy * n, 0)
        d_beta += tl.sum(b_dy, 0)
    p_partial = partials + i_partial * (3 * E) + o_e
    tl.store(p_partial, d_bias, mask=m_e)
    tl.store(p_partial + E, d_gamma, mask=m_e)
    tl.store(p_partial + 2 * E, d_beta, mask=m_e)


def configuration(E: int) -> Configuration:
    """Blocks and warps for rows of E columns: 32 numbers for each thread."""
    block = next_power_of_2(E)
    rows = max(1, min(TILE // block, MOST_ROWS))
    return Configuration({"ROWS": rows, "BLOCK": block}, num_warps=4 if block <= TILE else 8)


def variants_backward(target: str) -> Iterator[Variant]:
    """The kernels at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for E in (768, 1024):
            chosen = configuration(E)
            tensors = dict.fromkeys(("dy", "x", "bias", "residual", "gamma", "dx"), f"*{kind}")
            floats = dict.fromkeys(("means", "rstds", "partials"), "*fp32")
            signature = {**tensors, **floats, "N": "i32", "P": "i32"}
            described = ("add_layer_norm_vjp", name_of(dtype), f"E={E}", add_layer_norm_vjp_kernel, signature)
            constants = {"E": E, **chosen.blocks}
            yield Variant(*described, constants, chosen, tile=chosen.blocks["ROWS"], loop=True)
    yield from sum_variants("add_layer_norm_vjp", 3, (768, 1024))


def add_layer_norm_backward(
    dy: Tensor, x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, means: Tensor, rstds: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # (..., E) x 2, (E,), (..., E), (E,), (...) x 2 -> (..., E), (E,) x 3
    """dx, dbias, dγ and dβ of contiguous tensors on which a kernel runs; dx has the residual's dtype."""
    dx = torch.empty_like(residual)
    if not x.numel():
        dbias, dgamma, dbeta = (torch.zeros_like(gamma) for _ in range(3))
        return dx, dbias, dgamma, dbeta
    E = x.shape[-1]
    N = x.numel() // E
    chosen = configuration(E)
    P = count_partials(-(-N // chosen.blocks["ROWS"]))
    partials = torch.empty(P, 3, E, dtype=torch.float32, device=x.device)
    arguments = (dy, x, bias, residual, gamma, means, rstds, dx, partials, N, P)
    launch(add_layer_norm_vjp_kernel, (P,), x, *arguments, E=E, **chosen.blocks, **chosen.options)
    dbias, dgamma, dbeta = sum_partials(partials, gamma.dtype)
    return dx, dbias, dgamma, dbeta

"""The backward pass of bias and GELU: from x and the cotangent alone, in one pass over memory.

    dx = dy · gelu′(z),    z = x + bias,  a = |z|        dbias = Σ dx, over the rows
    gelu′(−a) = Φ(−a) − a φ(a) = exp(−a²/2) · (M(a) − a/√(2π)),    gelu′(a) = 1 − gelu′(−a)

Φ(−a) is that of the forward (`normal.py`), and φ shares its exponential, so the slope costs two instructions more than
the activation.

Grid: one program per block of COLUMNS and partial sum: it adds up its tiles' part of dbias (`partials.py`). float32
inside; dx is rounded once, and what is added to dbias is not.
Twin: `bias_gelu_vjp` in reference/gelu.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .normal import scaled_tail
from .partials import count_partials, sum_partials, sum_variants
from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant, next_power_of_2, target_of

_DENSITY = tl.constexpr(1.0 / math.sqrt(2.0 * math.pi))
TILE = 4096
# Few, so that a tile's rows are added in a short chain.
MOST_ROWS = 8


@triton.jit
def gelu_slope(z):  # (...) float32 -> (...)
    """gelu′: 0 at -inf, 1 at inf, nan at nan. `a` is clamped where the tail is 0, to avoid inf · 0."""
    # On a GPU, a plain minimum drops nan.
    a = tl.minimum(tl.abs(z), 16.0, propagate_nan=tl.PropagateNan.ALL)
    b_m, gaussian = scaled_tail(a)
    below = gaussian * (b_m - _DENSITY * a)
    return tl.where(z > 0.0, 1.0 - below, below)


@triton.jit
def bias_gelu_vjp_kernel(
    dy, x, bias, dx, partials, N, P, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # (N, F) x 2, (F,) -> (N, F), (P, F)
    """Every P-th ROWS x COLUMNS tile of dx in one block of columns, and the sum of these tiles over rows."""
    blocks: tl.constexpr = (F + COLUMNS - 1) // COLUMNS
    i_partial = tl.program_id(0) // blocks
    o_f = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    m_f = o_f < F
    b_bias = tl.load(bias + o_f, mask=m_f, other=0.0).to(tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for i_tile in tl.range(i_partial, tl.cdiv(N, ROWS), P):
        o_n = tl.cast(i_tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        m_nf = (o_n < N)[:, None] & m_f[None, :]
        o_nf = o_n[:, None] * F + o_f[None, :]
        z = tl.load(x + o_nf, mask=m_nf, other=0.0).to(tl.float32) + b_bias[None, :]
        # 0 past the last row, so that nothing is added to the total.
        b_dx = tl.load(dy + o_nf, mask=m_nf, other=0.0).to(tl.float32) * gelu_slope(z)
        tl.store(dx + o_nf, b_dx.to(dx.dtype.element_ty), mask=m_nf)
        total += tl.sum(b_dx, 0)
    tl.store(partials + i_partial * F + o_f, total, mask=m_f)


def configuration(F: int, target: str) -> Configuration:
    """Blocks and warps for rows of F columns: 32 numbers for each of 128 threads."""
    columns = min(next_power_of_2(F), 1024)
    rows = min(TILE // columns, MOST_ROWS)
    return Configuration({"ROWS": rows, "COLUMNS": columns}, num_warps=2 if target == "gfx942" else 4)


def variants_backward(target: str) -> Iterator[Variant]:
    """The kernels at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for F in (3072, 4096):
            chosen = configuration(F, target)
            tensors = dict.fromkeys(("dy", "x", "bias", "dx"), f"*{kind}")
            signature = {**tensors, "partials": "*fp32", "N": "i32", "P": "i32"}
            described = ("bias_gelu_vjp", name_of(dtype), f"F={F}", bias_gelu_vjp_kernel, signature)
            tile = chosen.blocks["ROWS"] * chosen.blocks["COLUMNS"]
            yield Variant(*described, {"F": F, **chosen.blocks}, chosen, tile=tile, loop=True)
    yield from sum_variants("bias_gelu_vjp", 1, (3072, 4096))


def bias_gelu_backward(
    dy: Tensor, x: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:  # (..., F) x 2, (F,) -> (..., F), (F,)
    """dx and dbias of contiguous tensors on which a kernel runs."""
    dx = torch.empty_like(x)
    if not x.numel():
        return dx, torch.zeros_like(bias)
    F = x.shape[-1]
    N = x.numel() // F
    chosen = configuration(F, target_of(x.device))
    P = count_partials(-(-N // chosen.blocks["ROWS"]))
    partials = torch.empty(P, 1, F, dtype=torch.float32, device=x.device)
    grid = (P * -(-F // chosen.blocks["COLUMNS"]),)
    launch(bias_gelu_vjp_kernel, grid, x, dy, x, bias, dx, partials, N, P, F=F, **chosen.blocks, **chosen.options)
    (dbias,) = sum_partials(partials, bias.dtype)
    return dx, dbias

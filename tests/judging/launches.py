"""LayerNorm as a Triton kernel, right by default; `fault` names one in its launch or its addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from ernie_m.kernels.runtime.optional_triton import tl, triton
from ernie_m.kernels.runtime.variants import next_power_of_2

FAULTS = (
    "row offsets in int32",
    "rows on the second axis of the grid",
    "no mask on the store",
    "the padding of a block not masked after the mean",
    "the last column left out",
    "the strides of x ignored",
)


@triton.jit
def layer_norm_kernel(x, gamma, beta, y, eps, E, BLOCK: tl.constexpr, FAULT: tl.constexpr):
    i_row = tl.program_id(1) if FAULT == "rows on the second axis of the grid" else tl.program_id(0)
    if FAULT != "row offsets in int32":
        i_row = i_row.to(tl.int64)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < (E - 1 if FAULT == "the last column left out" else E)
    b_x = tl.load(x + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_x -= tl.sum(b_x, 0) / E
    if FAULT != "the padding of a block not masked after the mean":
        b_x = tl.where(m_e, b_x, 0.0)
    b_y = b_x / tl.sqrt(tl.sum(b_x * b_x, 0) / E + eps)
    b_y = b_y * tl.load(gamma + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_y = b_y + tl.load(beta + o_e, mask=m_e, other=0.0).to(tl.float32)
    tl.store(y + i_row * E + o_e, b_y.to(y.dtype.element_ty), mask=m_e | (FAULT == "no mask on the store"))


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, fault: str = "", block: int = 0) -> Tensor:
    """LayerNorm, (N, E), (E,) x 2 -> (N, E), one program a row. block: the least size of a block."""
    x = x if fault == "the strides of x ignored" else x.contiguous()
    gamma, beta = gamma.contiguous(), beta.contiguous()
    N, E = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (1, N) if fault == "rows on the second axis of the grid" else (N,)
    size = max(next_power_of_2(E), block)
    layer_norm_kernel[grid](x, gamma, beta, y, eps, E, BLOCK=size, FAULT=fault)
    return y

"""Versions of bias + residual + LayerNorm, whose machine code is to be compared. Used by the notebooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def naive_kernel(x, bias, residual, gamma, beta, y, E, eps, BLOCK: tl.constexpr):
    """One row, one thread for each number; E is an ordinary argument, and all offsets have 64 bits."""
    column = tl.arange(0, BLOCK).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * E + column
    mask = column < E
    v = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    v += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    v += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, v - tl.sum(v, 0) / E, 0.0)
    normed = centred / tl.sqrt(tl.sum(centred * centred, 0) / E + eps)
    b_gamma = tl.load(gamma + column, mask=mask, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + place, (normed * b_gamma + b_beta).to(y.dtype.element_ty), mask=mask)


@triton.jit
def rows_kernel(
    x, bias, residual, gamma, beta, y, N, eps, E: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """ROWS rows in one warp; E is known to the compiler."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    in_row = column < E
    mask = (row < N)[:, None] & in_row[None, :]
    place = row.to(tl.int64)[:, None] * E + column[None, :]
    v = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    v += tl.load(bias + column, mask=in_row, other=0.0).to(tl.float32)[None, :]
    v += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    centred = tl.where(in_row[None, :], v - (tl.sum(v, 1) / E)[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / E + eps)
    b_gamma = tl.load(gamma + column, mask=in_row, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + column, mask=in_row, other=0.0).to(tl.float32)
    normed = centred * scale[:, None] * b_gamma[None, :] + b_beta[None, :]
    tl.store(y + place, normed.to(y.dtype.element_ty), mask=mask)


def version(rows: int = 0) -> Callable[..., Tensor]:
    """LayerNorm(x + bias + residual) by `rows_kernel` with so many rows per warp, or by `naive_kernel`."""

    def add_layer_norm(*tensors_and_eps: Any) -> Tensor:  # (N, E), (E,), (N, E), (E,), (E,), float -> (N, E)
        *tensors, eps = tensors_and_eps
        tensors = [tensor.contiguous() for tensor in tensors]
        (N, E), y = tensors[0].shape, torch.empty_like(tensors[0])
        block = triton.next_power_of_2(E)
        if rows:
            grid = (triton.cdiv(N, rows),)
            rows_kernel[grid](*tensors, y, N, eps, E=E, ROWS=rows, BLOCK=block, num_warps=1)
        else:
            naive_kernel[(N,)](*tensors, y, E, eps, BLOCK=block, num_warps=min(max(block // 32, 1), 32))
        return y

    return add_layer_norm


naive, one_row, four_rows, eight_rows = map(version, (0, 1, 4, 8))

"""Typical wrong answers to `notebooks/exercises/02_triton_warm_up`."""

from __future__ import annotations

import torch
from torch import Tensor

from ernie_m.kernels.runtime.optional_triton import tl, triton


@triton.jit
def first_block_kernel(x, y, c, n, BLOCK: tl.constexpr):
    o_n = tl.arange(0, BLOCK)
    tl.store(y + o_n, tl.load(x + o_n, mask=o_n < n, other=0.0) + c, mask=o_n < n)


def first_block(x: Tensor, c: float) -> Tensor:
    y = torch.empty_like(x)
    first_block_kernel[(triton.cdiv(x.numel(), 8),)](x, y, c, x.numel(), BLOCK=8)
    return y


@triton.jit
def no_mask_kernel(x, y, c, n, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o_n, tl.load(x + o_n) + c)


def add_constant_without_mask(x: Tensor, c: float) -> Tensor:
    y = torch.empty_like(x)
    no_mask_kernel[(triton.cdiv(x.numel(), 8),)](x, y, c, x.numel(), BLOCK=8)
    return y


@triton.jit
def bias_by_row_kernel(x, bias, y, N, E, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    o_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    o_rc = o_r[:, None] * E + o_c[None, :]
    m_rc = (o_r < N)[:, None] & (o_c < E)[None, :]
    b_bias = tl.load(bias + o_r, mask=o_r < E, other=0.0)
    tl.store(y + o_rc, tl.load(x + o_rc, mask=m_rc, other=0.0) + b_bias[:, None], mask=m_rc)


def bias_by_row(x: Tensor, bias: Tensor) -> Tensor:
    N, E = x.shape
    y = torch.empty_like(x)
    bias_by_row_kernel[(triton.cdiv(N, 4), triton.cdiv(E, 8))](x, bias, y, N, E, ROWS=4, COLUMNS=8)
    return y


@triton.jit
def row_sum_kernel(x, y, BLOCK: tl.constexpr, STRIDE: tl.constexpr, COUNT: tl.constexpr, PLACES: tl.constexpr):
    o_e = tl.arange(0, BLOCK)
    b_x = tl.load(x + tl.program_id(0) * STRIDE + o_e, mask=o_e < COUNT, other=0.0)
    tl.store(y + tl.program_id(0) * PLACES, tl.sum(b_x, 0))


def row_sums(x: Tensor, **wrong: int) -> Tensor:
    """Right except for the constants that are given."""
    N, E = x.shape
    y, block = torch.empty(N, dtype=x.dtype), triton.next_power_of_2(E)
    constants = {"STRIDE": E, "COUNT": E, "PLACES": 1, **wrong}
    row_sum_kernel[(N,)](x, y, BLOCK=block, **constants)
    return y


def sum_of_the_first_row(x: Tensor) -> Tensor:
    return row_sums(x, STRIDE=0)


def row_sum_without_mask(x: Tensor) -> Tensor:
    return row_sums(x, COUNT=triton.next_power_of_2(x.shape[1]))


def sums_to_place_0(x: Tensor) -> Tensor:
    return row_sums(x, PLACES=0)


def sums_of_rows_of_a_block(x: Tensor) -> Tensor:
    return row_sums(x, STRIDE=triton.next_power_of_2(x.shape[1]))


@triton.jit
def masked_max_kernel(x, lengths, y, C, BLOCK: tl.constexpr, FILL: tl.constexpr):
    o_c = tl.arange(0, BLOCK)
    length = tl.load(lengths + tl.program_id(0))
    b_x = tl.load(x + tl.program_id(0) * C + o_c, mask=o_c < length, other=FILL)
    tl.store(y + tl.program_id(0), tl.max(b_x, 0))


def masked_max(x: Tensor, lengths: Tensor, fill: float) -> Tensor:
    """Right if `fill` is -inf."""
    N, C = x.shape
    y = torch.empty(N, dtype=x.dtype)
    masked_max_kernel[(N,)](x, lengths, y, C, BLOCK=triton.next_power_of_2(C), FILL=fill)
    return y


def max_with_zeros(x: Tensor, lengths: Tensor) -> Tensor:
    return masked_max(x, lengths, 0.0)


def max_with_a_large_number(x: Tensor, lengths: Tensor) -> Tensor:
    return masked_max(x, lengths, -1e9)


@triton.jit
def matmul_kernel(a, b, y, M, K, N, TILE: tl.constexpr, KEPT: tl.constexpr, ROW_AXIS: tl.constexpr):
    o_m = tl.program_id(ROW_AXIS) * TILE + tl.arange(0, TILE)
    o_n = tl.program_id(1 - ROW_AXIS) * TILE + tl.arange(0, TILE)
    m_m, m_n = (o_m < M)[:, None], (o_n < N)[None, :]
    acc = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, K, TILE):
        o_k = start + tl.arange(0, TILE)
        b_a = tl.load(a + o_m[:, None] * K + o_k[None, :], mask=m_m & (o_k < K)[None, :], other=0.0)
        b_b = tl.load(b + o_k[:, None] * N + o_n[None, :], mask=(o_k < K)[:, None] & m_n, other=0.0)
        acc = acc * KEPT + tl.dot(b_a, b_b, input_precision="ieee")
    tl.store(y + o_m[:, None] * N + o_n[None, :], acc, mask=m_m & m_n)


def matmul(a: Tensor, b: Tensor, **wrong: int) -> Tensor:
    """Right except for the constants that are given."""
    (M, K), N = a.shape, b.shape[1]
    y = torch.empty(M, N, dtype=a.dtype)
    constants = {"TILE": 16, "KEPT": 1, "ROW_AXIS": 0, **wrong}
    matmul_kernel[(triton.cdiv(M, 16), triton.cdiv(N, 16))](a, b, y, M, K, N, **constants)
    return y


def last_product(a: Tensor, b: Tensor) -> Tensor:
    return matmul(a, b, KEPT=0)


def product_with_swapped_programs(a: Tensor, b: Tensor) -> Tensor:
    return matmul(a, b, ROW_AXIS=1)

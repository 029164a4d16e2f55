"""Solutions to `exercises/02_triton_warm_up`. Try the exercises first, then compare."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def add_constant_kernel(x, y, c, n, BLOCK: tl.constexpr):
    # Program 0 takes elements 0 to 7, program 1 takes 8 to 15, and so on.
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # The last block may extend past the end of the array: its lanes there are masked off.
    m_n = o_n < n
    b_x = tl.load(x + o_n, mask=m_n, other=0.0)
    tl.store(y + o_n, b_x + c, mask=m_n)


def add_constant(x: Tensor, c: float) -> Tensor:  # (N,) -> (N,)
    y = torch.empty_like(x)
    add_constant_kernel[(triton.cdiv(x.numel(), 8),)](x, y, c, x.numel(), BLOCK=8)
    return y


@triton.jit
def add_bias_kernel(x, bias, y, N, E, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    o_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    # (ROWS, 1) and (1, COLUMNS) broadcast to (ROWS, COLUMNS): a matrix of addresses. A row begins every E elements.
    o_rc = o_r[:, None] * E + o_c[None, :]
    m_rc = (o_r < N)[:, None] & (o_c < E)[None, :]
    b_x = tl.load(x + o_rc, mask=m_rc, other=0.0)
    b_bias = tl.load(bias + o_c, mask=o_c < E, other=0.0)
    tl.store(y + o_rc, b_x + b_bias[None, :], mask=m_rc)


def add_bias(x: Tensor, bias: Tensor) -> Tensor:  # (N, E), (E,) -> (N, E)
    N, E = x.shape
    y = torch.empty_like(x)
    add_bias_kernel[(triton.cdiv(N, 4), triton.cdiv(E, 8))](x, bias, y, N, E, ROWS=4, COLUMNS=8)
    return y


@triton.jit
def row_sum_kernel(x, y, E, BLOCK: tl.constexpr):
    i_row = tl.program_id(0)
    o_e = tl.arange(0, BLOCK)
    # Without the mask, the block would go on into the next row, and add its numbers too.
    b_x = tl.load(x + i_row * E + o_e, mask=o_e < E, other=0.0)
    tl.store(y + i_row, tl.sum(b_x, 0))


def row_sum(x: Tensor) -> Tensor:  # (N, E) -> (N,)
    N, E = x.shape
    y = torch.empty(N, dtype=x.dtype, device=x.device)
    row_sum_kernel[(N,)](x, y, E, BLOCK=triton.next_power_of_2(E))
    return y


@triton.jit
def masked_max_kernel(x, lengths, y, C, BLOCK: tl.constexpr):
    i_row = tl.program_id(0)
    o_c = tl.arange(0, BLOCK)
    length = tl.load(lengths + i_row)
    # -inf changes no maximum, as 0 changes no sum. A length is at most C, so one comparison covers both ends.
    b_x = tl.load(x + i_row * C + o_c, mask=o_c < length, other=-float("inf"))
    tl.store(y + i_row, tl.max(b_x, 0))


def masked_max(x: Tensor, lengths: Tensor) -> Tensor:  # (N, C), (N,) -> (N,)
    N, C = x.shape
    y = torch.empty(N, dtype=x.dtype, device=x.device)
    masked_max_kernel[(N,)](x, lengths, y, C, BLOCK=triton.next_power_of_2(C))
    return y


@triton.jit
def matmul_kernel(a, b, y, M, K, N, TILE: tl.constexpr):
    o_m = tl.program_id(0) * TILE + tl.arange(0, TILE)
    o_n = tl.program_id(1) * TILE + tl.arange(0, TILE)
    m_m, m_n = (o_m < M)[:, None], (o_n < N)[None, :]
    acc = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, K, TILE):
        o_k = start + tl.arange(0, TILE)
        # Zeros past the end of K add nothing to the sum.
        b_a = tl.load(a + o_m[:, None] * K + o_k[None, :], mask=m_m & (o_k < K)[None, :], other=0.0)
        b_b = tl.load(b + o_k[:, None] * N + o_n[None, :], mask=(o_k < K)[:, None] & m_n, other=0.0)
        acc += tl.dot(b_a, b_b, input_precision="ieee")
    tl.store(y + o_m[:, None] * N + o_n[None, :], acc, mask=m_m & m_n)


def matmul(a: Tensor, b: Tensor) -> Tensor:  # (M, K), (K, N) -> (M, N)
    (M, K), N = a.shape, b.shape[1]
    y = torch.empty(M, N, dtype=a.dtype, device=a.device)
    matmul_kernel[(triton.cdiv(M, 16), triton.cdiv(N, 16))](a, b, y, M, K, N, TILE=16)
    return y

"""Solutions to `exercises/03_triton`. Try the exercises first, then compare.

They are kept simple. For optimised versions, see `ernie_m.kernels`: `gelu.py`, `layer_norm.py`, `attention.py`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def gelu_kernel(x, y, n, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # The last block extends past the end of the array: without the mask, the kernel would overwrite other memory.
    m_n = o_n < n
    # bfloat16 has 8 bits of precision: every step in it would cost as much as the final rounding. Widen and round once.
    b_x = tl.load(x + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_y = 0.5 * b_x * (1.0 + tl.math.erf(b_x * 0.7071067811865476))
    tl.store(y + o_n, b_y.to(y.dtype.element_ty), mask=m_n)


def gelu(x: Tensor) -> Tensor:  # (N, F) -> (N, F)
    y = torch.empty_like(x)
    gelu_kernel[(triton.cdiv(x.numel(), 128),)](x, y, x.numel(), BLOCK=128)
    return y


@triton.jit
def softmax_kernel(scores, probs, C, BLOCK: tl.constexpr):
    i_row = tl.program_id(0)
    o_c = tl.arange(0, BLOCK)
    m_c = o_c < C
    # Past the end of the row the score is -inf, so exp is 0 and adds nothing to the sum. With other=0.0 it would add
    # exp(0 - max).
    b_scores = tl.load(scores + i_row * C + o_c, mask=m_c, other=-float("inf")).to(tl.float32)
    row_max = tl.max(b_scores, 0)
    b_exps = tl.exp(b_scores - row_max)
    row_sum = tl.sum(b_exps, 0)
    b_probs = b_exps / row_sum
    tl.store(probs + i_row * C + o_c, b_probs.to(probs.dtype.element_ty), mask=m_c)


def softmax(scores: Tensor) -> Tensor:  # (N, C) -> (N, C)
    N, C = scores.shape
    probs = torch.empty_like(scores)
    # A block's size must be a power of two; this one holds a whole row.
    softmax_kernel[(N,)](scores, probs, C, BLOCK=triton.next_power_of_2(C))
    return probs


@triton.jit
def add_layer_norm_kernel(x, bias, residual, gamma, beta, y, eps, E, BLOCK: tl.constexpr):
    i_row = tl.program_id(0)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    # The sum stays in float32, in registers. Storing it in between would round it to the format once more.
    b_v = tl.load(x + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_v += tl.load(bias + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_v += tl.load(residual + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    # Zeros past the end do not change the first sum, but 0 - mean would change the second, so they are reset to 0.
    b_mean = tl.sum(b_v, 0) / E
    b_centred = tl.where(m_e, b_v - b_mean, 0.0)
    b_std = tl.sqrt(tl.sum(b_centred * b_centred, 0) / E + eps)
    b_gamma = tl.load(gamma + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_y = b_centred / b_std * b_gamma + b_beta
    tl.store(y + i_row * E + o_e, b_y.to(y.dtype.element_ty), mask=m_e)


def add_layer_norm(x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    # (N, E), (E,), (N, E), (E,), (E,) -> (N, E)
    N, E = x.shape
    y = torch.empty_like(x)
    add_layer_norm_kernel[(N,)](x, bias, residual, gamma, beta, y, eps, E, BLOCK=triton.next_power_of_2(E))
    return y


@triton.jit
def attention_kernel(q, k, v, y, scale, S, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    o_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, D)
    m_r = (o_r < S)[:, None]
    b_q = tl.load(q + o_r[:, None] * D + o_d[None, :], mask=m_r, other=0.0)
    row_max = tl.full((ROWS,), -float("inf"), tl.float32)
    row_sum = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, S, COLUMNS):
        o_c = start + tl.arange(0, COLUMNS)
        m_c = (o_c < S)[:, None]
        b_k = tl.load(k + o_c[:, None] * D + o_d[None, :], mask=m_c, other=0.0)
        b_v = tl.load(v + o_c[:, None] * D + o_d[None, :], mask=m_c, other=0.0)
        # "ieee": full float32. By default, a GPU's tensor cores keep only 10 bits of the fraction.
        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        b_scores = tl.where((o_c < S)[None, :], b_scores, -float("inf"))
        # The sums so far are relative to the old maximum; rescaling makes them relative to the new one.
        new_max = tl.maximum(row_max, tl.max(b_scores, 1))
        rescale = tl.exp(row_max - new_max)
        b_exps = tl.exp(b_scores - new_max[:, None])
        row_sum = row_sum * rescale + tl.sum(b_exps, 1)
        # tl.dot needs both operands in one dtype. Rounding to that of v is common to all such kernels.
        acc = acc * rescale[:, None] + tl.dot(b_exps.to(b_v.dtype), b_v, input_precision="ieee")
        row_max = new_max
    b_y = acc / row_sum[:, None]
    tl.store(y + o_r[:, None] * D + o_d[None, :], b_y.to(y.dtype.element_ty), mask=m_r)


def attention_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # (S, D) x 3 -> (S, D)
    S, D = q.shape
    y = torch.empty_like(q)
    grid = (triton.cdiv(S, 32),)
    attention_kernel[grid](q, k, v, y, 1 / math.sqrt(D), S, D=D, ROWS=32, COLUMNS=32)
    return y

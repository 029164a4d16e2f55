"""Solutions of `exercises/02_triton`. Try first; then compare.

They are plain on purpose. What is done for speed is in `ernie_m.kernels`: `gelu.py`, `layer_norm.py`, `attention.py`.
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
    # The last block hangs over the end, where other arrays lie: without the mask they would be written to.
    m_n = o_n < n
    # bfloat16 has 8 bits: every step in it would cost as much as the last rounding. Widen once, round once.
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
    # Past the end of the row the score is -inf, so exp is 0 there and the sum does not see it. With other=0.0 it would
    # see exp(0 - max).
    b_scores = tl.load(scores + i_row * C + o_c, mask=m_c, other=-float("inf")).to(tl.float32)
    b_exps = tl.exp(b_scores - tl.max(b_scores, 0))
    b_probs = b_exps / tl.sum(b_exps, 0)
    tl.store(probs + i_row * C + o_c, b_probs.to(probs.dtype.element_ty), mask=m_c)


def softmax(scores: Tensor) -> Tensor:  # (N, C) -> (N, C)
    N, C = scores.shape
    probs = torch.empty_like(scores)
    # A block's size is a power of two; this one holds a whole row.
    softmax_kernel[(N,)](scores, probs, C, BLOCK=triton.next_power_of_2(C))
    return probs


@triton.jit
def add_layer_norm_kernel(x, bias, residual, gamma, beta, y, eps, E, BLOCK: tl.constexpr):
    i_row = tl.program_id(0)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    # The sum stays in float32 and in registers. Stored in between, it would be rounded to the format once more.
    b_v = tl.load(x + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_v += tl.load(bias + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_v += tl.load(residual + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    # Zeros past the end do not change a sum; 0 - mean would, so those places are set to 0 again.
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
    b_max = tl.full((ROWS,), -float("inf"), tl.float32)
    b_sum = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, S, COLUMNS):
        o_c = start + tl.arange(0, COLUMNS)
        m_c = (o_c < S)[:, None]
        b_k = tl.load(k + o_c[:, None] * D + o_d[None, :], mask=m_c, other=0.0)
        b_v = tl.load(v + o_c[:, None] * D + o_d[None, :], mask=m_c, other=0.0)
        # "ieee": float32 as it is. By default a GPU's tensor cores keep 10 bits of it.
        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        b_scores = tl.where((o_c < S)[None, :], b_scores, -float("inf"))
        # What was summed so far was relative to the old maximum: this makes it relative to the new one.
        b_new = tl.maximum(b_max, tl.max(b_scores, 1))
        b_old = tl.exp(b_max - b_new)
        b_probs = tl.exp(b_scores - b_new[:, None])
        b_sum = b_sum * b_old + tl.sum(b_probs, 1)
        # tl.dot wants both factors in one format: that of v, one rounding that every such kernel pays.
        acc = acc * b_old[:, None] + tl.dot(b_probs.to(b_v.dtype), b_v, input_precision="ieee")
        b_max = b_new
    b_y = acc / b_sum[:, None]
    tl.store(y + o_r[:, None] * D + o_d[None, :], b_y.to(y.dtype.element_ty), mask=m_r)


def attention_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # (S, D) x 3 -> (S, D)
    S, D = q.shape
    y = torch.empty_like(q)
    grid = (triton.cdiv(S, 32),)
    attention_kernel[grid](q, k, v, y, 1 / math.sqrt(D), S, D=D, ROWS=32, COLUMNS=32)
    return y

"""The backward pass of first-token attention. A sequence has one query, so nothing is added across programs.

    p = softmax(K q / √D)      dp = V dO      δ = Σ_j p_j dp_j      ds = p (dp − δ)
    dq = Kᵀ ds / √D            dK = ds qᵀ / √D                      dV = p dOᵀ

Grid: as in the forward pass, the heads of all sequences on one axis. A program reads its sequence's keys and values
twice: for the maximum, the sum and δ, which an online softmax carries together, and for the gradients. All arithmetic
is float32, rounded once at the end.

Twin: `first_token_attention_vjp` in reference/first_token.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant
from .sequences import LOG2_E, sequence_bounds

LOG2E = tl.constexpr(LOG2_E)


@triton.jit
def load_block(p_k, b_q, b_dy, o_block, o_n, n, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    """BN keys, with their scores in units of log 2, -inf past the end, and the cotangents of their probabilities."""
    m_n = o_block + o_n < n
    p_block = p_k + tl.cast(o_block, tl.int64) * STRIDE
    b_k = tl.load(p_block, mask=m_n[:, None], other=0.0).to(tl.float32)
    b_v = tl.load(p_block + WIDTH, mask=m_n[:, None], other=0.0).to(tl.float32)
    scores = tl.where(m_n, tl.sum(b_k * b_q[None, :], 1), float("-inf"))
    return b_k, scores, tl.sum(b_v * b_dy[None, :], 1), m_n


@triton.jit
def first_token_attention_vjp_kernel(
    d_context, q, kv, cu_seqlens, dq, dkv, T, scale, H: tl.constexpr, D: tl.constexpr, BN: tl.constexpr
):  # (B, H, D) x 2, (T, 2, H, D), (B + 1,) -> (B, H, D), (T, 2, H, D)
    """One sequence, in one head; `scale` is 1/√D."""
    i_head = tl.program_id(0) % H
    i_sequence = tl.program_id(0) // H
    start, n = sequence_bounds(cu_seqlens, i_sequence, T)
    STRIDE: tl.constexpr = 2 * H * D
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, D)
    o_row = i_sequence.to(tl.int64) * (H * D) + i_head * D + o_d
    b_dy = tl.load(d_context + o_row).to(tl.float32)
    b_q = tl.load(q + o_row).to(tl.float32) * scale
    b_q2 = b_q * LOG2E
    o_first = start.to(tl.int64) * STRIDE + i_head * D + o_n[:, None] * STRIDE + o_d[None, :]

    # As in the forward pass, with Σ exp(score − row_max) dp as a third sum.
    row_max = -1.0e38
    row_sum = 0.0
    delta = 0.0
    for o_block in tl.range(0, n, BN):
        b_k, scores, d_probs, m_n = load_block(kv + o_first, b_q2, b_dy, o_block, o_n, n, STRIDE, H * D)
        new = tl.maximum(row_max, tl.max(scores, 0))
        probs = tl.math.exp2(scores - new)
        rescale = tl.math.exp2(row_max - new)
        row_sum = row_sum * rescale + tl.sum(probs, 0)
        delta = delta * rescale + tl.sum(probs * d_probs, 0)
        row_max = new
    row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)
    delta = delta / row_sum

    acc = tl.zeros((D,), tl.float32)
    for o_block in tl.range(0, n, BN):
        b_k, scores, d_probs, m_n = load_block(kv + o_first, b_q2, b_dy, o_block, o_n, n, STRIDE, H * D)
        probs = tl.math.exp2(scores - row_max) / row_sum
        d_scores = probs * (d_probs - delta)
        acc += tl.sum(d_scores[:, None] * b_k, 0)
        p_out = dkv + o_first + tl.cast(o_block, tl.int64) * STRIDE
        tl.store(p_out, (d_scores[:, None] * b_q[None, :]).to(dkv.dtype.element_ty), mask=m_n[:, None])
        tl.store(p_out + H * D, (probs[:, None] * b_dy[None, :]).to(dkv.dtype.element_ty), mask=m_n[:, None])
    tl.store(dq + o_row, (acc * scale).to(dq.dtype.element_ty))


def configuration(D: int) -> Configuration:
    """Blocks of 2,048 numbers of keys and 2,048 of values, across 4 warps: both passes hold two more such blocks."""
    return Configuration({"BN": 2048 // D}, num_warps=4)


def variants_backward(target: str) -> Iterator[Variant]:
    """The kernel at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for H, D in ((12, 64), (16, 64)):
            chosen = configuration(D)
            tensors = dict.fromkeys(("d_context", "q", "kv", "dq", "dkv"), f"*{kind}")
            yield Variant(
                *("first_token_attention_vjp", name_of(dtype), f"H={H} D={D}", first_token_attention_vjp_kernel),
                {**tensors, "cu_seqlens": "*i32", "T": "i32", "scale": "fp32"},
                {"H": H, "D": D, **chosen.blocks},
                chosen,
                tile=chosen.blocks["BN"] * D,
                loop=True,
            )


def first_token_attention_backward(
    d_context: Tensor, q: Tensor, kv: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:  # (B, H, D) x 2, (T, 2, H, D), (B + 1,) -> (B, H, D), (T, 2, H, D)
    """dq and dkv of contiguous tensors on which the kernel runs."""
    (B, H, D), T = q.shape, kv.shape[0]
    dq, dkv = torch.zeros_like(q), torch.empty_like(kv)
    if q.numel():
        chosen = configuration(D)
        arguments = (d_context, q, kv, cu_seqlens, dq, dkv, T, 1.0 / math.sqrt(D))
        grid = (B * H,)
        launch(first_token_attention_vjp_kernel, grid, q, *arguments, H=H, D=D, **chosen.blocks, **chosen.options)
    return dq, dkv

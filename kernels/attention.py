"""Attention over packed sequences, straight from the fused projection's output, without writing scores to memory.

    context[i] = Σ_j softmax_j(q_i · k_j / √D) v_j        over the keys j of i's own sequence

Grid: the blocks of BM queries, in all heads, of all sequences, in this order on one axis. A program keeps its queries,
walks over its sequence's keys BN at a time, and carries three values: `row_max`, the largest score so far; `row_sum`,
the sum of exp(score − row_max); and `acc`, the sum of exp(score − row_max)·v. When a larger score turns up, both sums
are rescaled to it ("online softmax").
Whole blocks need no mask; the last, partial one masks the keys past the end of the sequence.

Scores stay as the dot product returns them and enter exp2(score · log2(e)/√D − row_max): one fused multiply-add and
one exp2 each. All three values are float32. The probabilities are rounded to the inputs' dtype for the second product,
and each row's log-sum-exp is saved for the backward pass (`attention_backward.py`).

Twin: reference/attention.py. Source: M. Milakov, N. Gimelshein, arXiv:1805.02867, algorithm 3; T. Dao,
"FlashAttention-2", arXiv:2307.08691, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .dropping import ProbabilityDrops, probability_drops, threshold_and_scale
from .rectangles import plain_packed_attention
from .runtime.arguments import check_floats
from .runtime.dispatch import runs_triton, wants_plain
from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant, target_of
from .sequences import HEAD_SIZES, LOG2_E, check_arguments, probability_bits, sequence_bounds

LN_2 = tl.constexpr(math.log(2))
# Of variants with dropout: their label, and the types of what it needs.
DROPS = " with dropout"
DROP_SIGNATURE = {"seed": "*i64", "tokens": "*i64", "threshold": "i64", "keep": "fp32"}


@triton.jit
def attend_to_block(
    q, b_k, b_v, row_max, row_sum, acc, m_n, scale2, b_bits, threshold, keep, MASKED: tl.constexpr, DROP: tl.constexpr
):
    """One step: (BM, D) queries, (D, BN) keys, (BN, D) values; if MASKED, `m_n` (BN,) says which keys exist.

    With DROP, probabilities whose bits are below the threshold are dropped, after they have been summed.
    """
    scores = tl.dot(q, b_k, input_precision="ieee")
    if MASKED:
        scores = tl.where(m_n[None, :], scores, float("-inf"))
    new = tl.maximum(row_max, tl.max(scores, 1) * scale2)
    probs = tl.math.exp2(scores * scale2 - new[:, None])
    rescale = tl.math.exp2(row_max - new)
    row_sum = row_sum * rescale + tl.sum(probs, 1)
    if DROP:
        probs = tl.where(b_bits < tl.cast(threshold, tl.uint32), 0.0, probs * keep)
    acc = tl.dot(probs.to(b_v.dtype), b_v, acc * rescale[:, None], input_precision="ieee")
    return new, row_sum, acc


@triton.jit
def mark_past(context, lse, start, first, n, i_head, T, H: tl.constexpr, D: tl.constexpr):
    """Write nan for the queries from `first` on, which no program covers: the sequence is longer than `max_seqlen`."""
    for i in tl.range(first, n):
        row = (start + i).to(tl.int64)
        tl.store(context + (row * H + i_head) * D + tl.arange(0, D), float("nan"))
        tl.store(lse + i_head.to(tl.int64) * T + row, float("nan"))


@triton.jit
def packed_attention_kernel(
    qkv, cu_seqlens, context, lse, seed, tokens, T, scale2, BLOCKS, threshold, keep,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, LOOP: tl.constexpr, DROP: tl.constexpr,
):  # (T, 3, H, D), (B + 1,), (), (T,) -> (T, H, D), (H, T)  # fmt: skip
    """One of the BLOCKS blocks of one sequence's queries, in one head; `scale2` is log2(e)/√D, `keep` 1/(1 − p)."""
    i_block = tl.program_id(0) % BLOCKS
    i_row = tl.program_id(0) // BLOCKS
    i_head = i_row % H
    start, n = sequence_bounds(cu_seqlens, i_row // H, T)
    if i_block * BM < n:
        STRIDE: tl.constexpr = 3 * H * D
        o_m = i_block * BM + tl.arange(0, BM)
        o_n = tl.arange(0, BN)
        o_d = tl.arange(0, D)
        m_m = o_m < n
        p_q = qkv + start.to(tl.int64) * STRIDE + i_head * D
        p_k = p_q + H * D + o_n[None, :] * STRIDE + o_d[:, None]
        p_v = p_q + 2 * H * D + o_n[:, None] * STRIDE + o_d[None, :]
        q = tl.load(p_q + o_m[:, None].to(tl.int64) * STRIDE + o_d[None, :], mask=m_m[:, None], other=0.0)

        row_max = tl.full((BM,), float("-inf"), tl.float32)
        row_sum = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, D), tl.float32)
        b_seed, b_tokens, b_bits = 0, o_m, 0
        if DROP:
            b_seed = tl.load(seed)
            b_tokens = tl.load(tokens + start + o_m, mask=m_m, other=0)
            b_bits = tl.zeros((BM, BN), tl.uint32)
        whole = n // BN * BN if LOOP else 0
        for first in tl.range(0, whole, BN):
            b_k = tl.load(p_k)
            b_v = tl.load(p_v)
            p_k += BN * STRIDE
            p_v += BN * STRIDE
            if DROP:
                b_bits = probability_bits(b_seed, b_tokens, first, i_head, BN)
            row_max, row_sum, acc = attend_to_block(
                q, b_k, b_v, row_max, row_sum, acc, o_n < BN, scale2, b_bits, threshold, keep, False, DROP
            )
        if whole < n:
            m_n = whole + o_n < n
            b_k = tl.load(p_k, mask=m_n[None, :], other=0.0)
            b_v = tl.load(p_v, mask=m_n[:, None], other=0.0)
            if DROP:
                b_bits = probability_bits(b_seed, b_tokens, whole, i_head, BN)
            row_max, row_sum, acc = attend_to_block(
                q, b_k, b_v, row_max, row_sum, acc, m_n, scale2, b_bits, threshold, keep, True, DROP
            )

        p_out = context + (start + o_m[:, None]).to(tl.int64) * (H * D) + i_head * D + o_d[None, :]
        tl.store(p_out, (acc / row_sum[:, None]).to(context.dtype.element_ty), mask=m_m[:, None])
        p_lse = lse + i_head.to(tl.int64) * T + start + o_m
        tl.store(p_lse, (row_max + tl.math.log2(row_sum)) * LN_2, mask=m_m)
    if i_block == BLOCKS - 1:
        mark_past(context, lse, start, BLOCKS * BM, n, i_head, T, H, D)


def configuration(target: str, dtype: torch.dtype, D: int, max_seqlen: int) -> Configuration:
    """Blocks, warps and stages. BN sets the order of summation; it, and so the result, depends only on dtype and D.

    Sequences that fit in one block of keys need no loop: 77 registers instead of 109, and no pipeline to fill.
    float32 products are exact ("ieee"; tf32 would err by 2⁻¹¹) and use no tensor cores: slow, and in small blocks.
    """
    if dtype == torch.float32:
        return Configuration({"BM": 32, "BN": 32 if D <= 64 else 16, "LOOP": True}, num_warps=4, num_stages=1)
    if max_seqlen <= 64:
        return Configuration({"BM": 64, "BN": 64, "LOOP": False}, num_warps=4 if D <= 64 else 8, num_stages=1)
    if target == "sm_90" and D == 128:
        # With 128 queries across 8 warps, ptxas 12.8 serialises the matrix instructions (C7515).
        return Configuration({"BM": 64, "BN": 64, "LOOP": True}, num_warps=4, num_stages=2)
    stages = 1 if target == "gfx942" and D == 128 else 2
    return Configuration({"BM": 128, "BN": 64, "LOOP": True}, num_warps=8, num_stages=stages)


def blocks_of(max_seqlen: int, chosen: Configuration) -> int:
    """Blocks of queries of each sequence; at least one."""
    return max(-(-max_seqlen // chosen.blocks["BM"]), 1)


def grid(B: int, H: int, max_seqlen: int, chosen: Configuration) -> tuple[int, ...]:
    """All on axis x: the number of sequences may exceed what the other axes allow."""
    return (B * H * blocks_of(max_seqlen, chosen),)


def variants(target: str) -> Iterator[Variant]:
    """The kernel for 12 heads of 64 (base), 16 of 64 (large) and 12 of every other size, with short and long rows; with
    dropout for base in bfloat16."""
    for dtype, kind in TRITON_TYPES.items():
        for H, D in ((12, 64), (16, 64), (12, 16), (12, 32), (12, 128)):
            for longest in (64, 512) if dtype != torch.float32 else (512,):
                chosen = configuration(target, dtype, D, longest)
                tensors = {"qkv": f"*{kind}", "cu_seqlens": "*i32", "context": f"*{kind}", "lse": "*fp32"}
                for drop in (False, True) if (H, D, dtype) == (12, 64, torch.bfloat16) else (False,):
                    constants = {"H": H, "D": D, **chosen.blocks, "DROP": drop}
                    yield Variant(
                        operation="packed_attention",
                        dtype=name_of(dtype),
                        label=f"H={H} D={D} S<={longest}{DROPS if drop else ''}",
                        kernel=packed_attention_kernel,
                        signature={**tensors, **DROP_SIGNATURE, "T": "i32", "scale2": "fp32", "BLOCKS": "i32"},
                        constants=constants,
                        configuration=chosen,
                        tile=chosen.blocks["BM"] * chosen.blocks["BN"],
                        loop=bool(chosen.blocks["LOOP"]),
                    )


@torch.library.custom_op("ernie_m::packed_attention", mutates_args=())
def _packed_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    p: float = 0.0,
    seed: Tensor | None = None,
    tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    T, _, H, D = qkv.shape
    if not (runs_triton(qkv) and D in HEAD_SIZES):
        return plain_packed_attention(qkv, cu_seqlens, max_seqlen, probability_drops(p, seed, tokens))
    context = torch.empty(T, H, D, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(H, T, dtype=torch.float32, device=qkv.device)
    B = cu_seqlens.shape[0] - 1
    if T and B:
        chosen = configuration(target_of(qkv.device), qkv.dtype, D, max_seqlen)
        launch(
            packed_attention_kernel,
            grid(B, H, max_seqlen, chosen),
            qkv,
            *(qkv.contiguous(), cu_seqlens.contiguous(), context, lse, seed, tokens, T, LOG2_E / math.sqrt(D)),
            *(blocks_of(max_seqlen, chosen), *threshold_and_scale(p)),
            H=H,
            D=D,
            **chosen.blocks,
            DROP=seed is not None,
            **chosen.options,
        )
    return context, lse


@_packed_attention.register_fake
def _(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    p: float = 0.0,
    seed: Tensor | None = None,
    tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    T, _, H, D = qkv.shape
    return qkv.new_empty(T, H, D), qkv.new_empty(H, T, dtype=torch.float32)


def prefers_plain(qkv: Tensor) -> bool:
    """Whether to compute in plain torch; without a kernel for the size of heads, the operation has no backward."""
    return wants_plain(qkv, reads_values=True, differentiable=runs_triton(qkv) and qkv.shape[-1] in HEAD_SIZES)


def packed_attention_unchecked(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, drops: ProbabilityDrops | None = None
) -> tuple[Tensor, Tensor]:  # (T, 3, H, D), (B + 1,) -> (T, H, D), (H, T)
    """`packed_attention` for callers that have checked the arguments; `drops`: which probabilities to drop.

    Returns the context and the log-sum-exps.
    """
    if prefers_plain(qkv):
        return plain_packed_attention(qkv, cu_seqlens, max_seqlen, drops)
    dropped = () if drops is None else (drops.p, drops.seed, drops.tokens)
    context, lse = _packed_attention(qkv, cu_seqlens, max_seqlen, *dropped)
    return context, lse


def packed_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None, validate: bool = False, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:  # (T, 3, H, D), (B + 1,) -> (T, H, D)
    """Attention within each of B sequences; sequence b is rows cu_seqlens[b] to cu_seqlens[b+1], and may be empty.

    max_seqlen: at least the longest sequence's length. Where values are not checked, tokens past it (in a kernel: past
        the block of queries that it ends in) get nan. By default it is read from `cu_seqlens`, which synchronises.
    validate: also check the values of `cu_seqlens` on a GPU, which synchronises.
    return_lse: also return log Σ exp(scores) of every row, (H, T) float32.

    Raises TypeError or ValueError, naming the argument, the value and what was expected.
    """
    check_floats(qkv=qkv)
    max_seqlen = check_arguments(qkv, cu_seqlens, max_seqlen, validate)
    context, lse = packed_attention_unchecked(qkv, cu_seqlens, max_seqlen)
    return (context, lse) if return_lse else context

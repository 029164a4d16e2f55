"""The backward pass of packed attention: the scores are computed again, and nothing is added across programs.

    P = softmax(q kᵀ / √D)        dv = Pᵀ dO        dP = dO vᵀ
    δ_i = Σ_d dO_id O_id          dS = P ∘ (dP − δ)        dq = dS k / √D        dk = dSᵀ q / √D

δ, one number for each query and head, is Σ_j P_ij dP_ij: the sum that softmax's gradient subtracts. With the saved
log-sum-exps, P is one exp2 away from the scores.

Grid: three kernels. `delta_kernel`: a block of queries of all sequences, in one head. `keys_kernel`: a block of BN keys
of one sequence, in one head, walks over its queries and writes dk and dv. `queries_kernel`: a block of BM queries walks
over its keys and writes dq. So the scores are computed twice, which costs two products of seven, but every number is
written by one program, in a fixed order: the result does not depend on the order of programs, bit for bit.
Sequences of at most 64 tokens (32 in float32) fit in one block. In a batch of such sequences, `short_kernel` holds all
of P, needs neither δ nor log-sum-exps, and computes five products.

P and dS are rounded to the inputs' dtype for their products; sums are float32. With DROP, P is dropped where it weighs
values, and dP likewise: from the same bits as in the forward pass, computed again.

Twin: `packed_attention_vjp` in reference/attention.py. Source: T. Dao, "FlashAttention-2", arXiv:2307.08691, section
3.2, which adds dq across programs instead.
"""

from __future__ import annotations

from .runtime.optional_triton import tl, triton
from .sequences import LOG2_E, probability_bits, sequence_bounds

LOG2E = tl.constexpr(LOG2_E)


@triton.jit
def load_rows(p, o_rows, m_rows, STRIDE: tl.constexpr, D: tl.constexpr):
    """(rows, D) of a matrix; rows outside the mask are 0."""
    return tl.load(
        p + o_rows[:, None].to(tl.int64) * STRIDE + tl.arange(0, D)[None, :], mask=m_rows[:, None], other=0.0
    )


@triton.jit
def store_rows(p, values, o_rows, m_rows, STRIDE: tl.constexpr, D: tl.constexpr):
    """The inverse of `load_rows`, rounded to the dtype of `p`."""
    o = o_rows[:, None].to(tl.int64) * STRIDE + tl.arange(0, D)[None, :]
    tl.store(p + o, values.to(p.dtype.element_ty), mask=m_rows[:, None])


@triton.jit
def load_statistics(p, stride, o_rows, m_rows):
    """What `delta_kernel` wrote for rows; 0 outside the mask. There q and dO are 0 too: P is 1, P dO and dS are 0.

    Both numbers in one load: where a load has fewer numbers than threads, Triton 3.6 lets every thread load all that
    it needs, which takes four more instructions per score.
    """
    o = o_rows[:, None] + tl.arange(0, 2)[None, :] * stride
    return tl.split(tl.load(p + o, mask=m_rows[:, None], other=0.0))


@triton.jit
def kept(b_bits, threshold, factor):
    """What probabilities and their cotangents are multiplied by: `factor`, or 0 where the bits are below the threshold.

    Bits lie in other threads than scores. Triton moves numbers with fewer instructions than truth values.
    """
    return tl.where(b_bits < tl.cast(threshold, tl.uint32), 0.0, factor)


@triton.jit
def mark_past(d_qkv, start, first, n, i_head, H: tl.constexpr, D: tl.constexpr):
    """Write nan for the tokens from `first` on, which no program covers: the sequence is longer than `max_seqlen`."""
    for i in tl.range(first, n):
        for part in tl.static_range(3):
            row = ((start + i).to(tl.int64) * 3 + part) * (H * D) + i_head * D
            tl.store(d_qkv + row + tl.arange(0, D), float("nan"))


@triton.jit
def delta_kernel(
    d_context, context, lse, stats, T, H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr
):  # (T, H, D) x 2, (H, T) -> (2, H, T)
    """Log-sum-exps in base 2, and δ, of ROWS tokens in one head."""
    i_head = tl.program_id(0) % H
    o_t = tl.program_id(0) // H * ROWS + tl.arange(0, ROWS)
    m_t = o_t < T
    b_dy = load_rows(d_context + i_head * D, o_t, m_t, H * D, D).to(tl.float32)
    b_y = load_rows(context + i_head * D, o_t, m_t, H * D, D).to(tl.float32)
    o_stats = i_head.to(tl.int64) * T + o_t
    tl.store(stats + o_stats, tl.load(lse + o_stats, mask=m_t, other=0.0) * LOG2E, mask=m_t)
    tl.store(stats + tl.cast(T, tl.int64) * H + o_stats, tl.sum(b_dy * b_y, 1), mask=m_t)


@triton.jit
def keys_kernel(
    d_context, qkv, cu_seqlens, stats, d_qkv, seed, tokens, T, scale, BLOCKS, threshold, keep,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DROP: tl.constexpr,
):  # (T, H, D), (T, 3, H, D), (B + 1,), (2, H, T), (), (T,) -> (T, 3, H, D)  # fmt: skip
    """dk and dv of one block of one sequence's keys, in one head; `scale` is 1/√D."""
    i_block = tl.program_id(0) % BLOCKS
    i_row = tl.program_id(0) // BLOCKS
    i_head = i_row % H
    start, n = sequence_bounds(cu_seqlens, i_row // H, T)
    if i_block * BN < n:
        STRIDE: tl.constexpr = 3 * H * D
        o_n = i_block * BN + tl.arange(0, BN)
        m_n = o_n < n
        p_q = qkv + start.to(tl.int64) * STRIDE + i_head * D
        # Past the end the last key comes again: of zeros, exp2(0 - log-sum-exp) may overflow. No score needs a mask.
        o_last = tl.minimum(o_n, n - 1)
        b_k = load_rows(p_q + H * D, o_last, o_n >= 0, STRIDE, D)
        b_v = load_rows(p_q + 2 * H * D, o_last, o_n >= 0, STRIDE, D)
        p_dy = d_context + start.to(tl.int64) * (H * D) + i_head * D
        o_stats = i_head.to(tl.int64) * T + start
        dk = tl.zeros((BN, D), tl.float32)
        dv = tl.zeros((BN, D), tl.float32)
        for o_block in tl.range(0, n, BM):
            o_m = o_block + tl.arange(0, BM)
            m_m = o_m < n
            b_q = load_rows(p_q, o_m, m_m, STRIDE, D)
            b_dy = load_rows(p_dy, o_m, m_m, H * D, D)
            b_lse, b_delta = load_statistics(stats + o_stats, tl.cast(T, tl.int64) * H, o_m, m_m)
            scores = tl.dot(b_k, tl.trans(b_q), input_precision="ieee")  # (BN, BM)
            probs = tl.math.exp2(scores * (scale * LOG2E) - b_lse[None, :])
            weights = probs
            d_probs = tl.dot(b_v, tl.trans(b_dy), input_precision="ieee")
            if DROP:
                b_tokens = tl.load(tokens + start + o_m, mask=m_m, other=0)
                b_bits = tl.trans(probability_bits(tl.load(seed), b_tokens, i_block * BN, i_head, BN))
                b_kept = kept(b_bits, threshold, 1.0)
                weights = probs * b_kept
                d_probs = d_probs * b_kept * keep
            dv = tl.dot(weights.to(b_dy.dtype), b_dy, dv, input_precision="ieee")
            d_scores = probs * (d_probs - b_delta[None, :])
            dk = tl.dot(d_scores.to(b_q.dtype), b_q, dk, input_precision="ieee")
        if DROP:
            dv *= keep
        p_out = d_qkv + start.to(tl.int64) * STRIDE + i_head * D
        store_rows(p_out + H * D, dk * scale, o_n, m_n, STRIDE, D)
        store_rows(p_out + 2 * H * D, dv, o_n, m_n, STRIDE, D)
    if i_block == BLOCKS - 1:
        mark_past(d_qkv, start, BLOCKS * BN, n, i_head, H, D)


@triton.jit
def add_to_queries(
    b_q,
    b_dy,
    b_k,
    b_v,
    b_lse,
    b_delta,
    dq,
    m_n,
    scale,
    b_bits,
    threshold,
    keep,
    MASKED: tl.constexpr,
    DROP: tl.constexpr,
):
    """One step: (BM, D) queries and cotangents, (BN, D) keys and values; if MASKED, `m_n` says which keys exist."""
    scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
    if MASKED:
        scores = tl.where(m_n[None, :], scores, float("-inf"))
    probs = tl.math.exp2(scores * (scale * LOG2E) - b_lse[:, None])
    d_probs = tl.dot(b_dy, tl.trans(b_v), input_precision="ieee")
    if DROP:
        d_probs *= kept(b_bits, threshold, keep)
    d_scores = probs * (d_probs - b_delta[:, None])
    return tl.dot(d_scores.to(b_k.dtype), b_k, dq, input_precision="ieee")


@triton.jit
def queries_kernel(
    d_context, qkv, cu_seqlens, stats, d_qkv, seed, tokens, T, scale, BLOCKS, threshold, keep,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DROP: tl.constexpr,
):  # (T, H, D), (T, 3, H, D), (B + 1,), (2, H, T), (), (T,) -> (T, 3, H, D)  # fmt: skip
    """dq of one block of one sequence's queries, in one head; `scale` is 1/√D."""
    i_block = tl.program_id(0) % BLOCKS
    i_row = tl.program_id(0) // BLOCKS
    i_head = i_row % H
    start, n = sequence_bounds(cu_seqlens, i_row // H, T)
    if i_block * BM < n:
        STRIDE: tl.constexpr = 3 * H * D
        o_m = i_block * BM + tl.arange(0, BM)
        o_n = tl.arange(0, BN)
        m_m = o_m < n
        p_q = qkv + start.to(tl.int64) * STRIDE + i_head * D
        b_q = load_rows(p_q, o_m, m_m, STRIDE, D)
        b_dy = load_rows(d_context + start.to(tl.int64) * (H * D) + i_head * D, o_m, m_m, H * D, D)
        o_stats = i_head.to(tl.int64) * T + start
        b_lse = tl.load(stats + o_stats + o_m, mask=m_m, other=0.0)
        b_delta = tl.load(stats + tl.cast(T, tl.int64) * H + o_stats + o_m, mask=m_m, other=0.0)
        p_k = p_q + H * D + o_n[:, None] * STRIDE + tl.arange(0, D)[None, :]
        dq = tl.zeros((BM, D), tl.float32)
        b_seed, b_tokens, b_bits = 0, o_m, 0
        if DROP:
            b_seed = tl.load(seed)
            b_tokens = tl.load(tokens + start + o_m, mask=m_m, other=0)
            b_bits = tl.zeros((BM, BN), tl.uint32)
        whole = n // BN * BN
        for first in tl.range(0, whole, BN):
            b_k = tl.load(p_k)
            b_v = tl.load(p_k + H * D)
            p_k += BN * STRIDE
            if DROP:
                b_bits = probability_bits(b_seed, b_tokens, first, i_head, BN)
            dq = add_to_queries(
                b_q, b_dy, b_k, b_v, b_lse, b_delta, dq, o_n < BN, scale, b_bits, threshold, keep, False, DROP
            )
        if whole < n:
            m_n = whole + o_n < n
            b_k = tl.load(p_k, mask=m_n[:, None], other=0.0)
            b_v = tl.load(p_k + H * D, mask=m_n[:, None], other=0.0)
            if DROP:
                b_bits = probability_bits(b_seed, b_tokens, whole, i_head, BN)
            dq = add_to_queries(
                b_q, b_dy, b_k, b_v, b_lse, b_delta, dq, m_n, scale, b_bits, threshold, keep, True, DROP
            )
        store_rows(d_qkv + start.to(tl.int64) * STRIDE + i_head * D, dq * scale, o_m, m_m, STRIDE, D)


@triton.jit
def short_kernel(
    d_context, qkv, cu_seqlens, d_qkv, seed, tokens, T, scale, threshold, keep,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, DROP: tl.constexpr,
):  # (T, H, D), (T, 3, H, D), (B + 1,), (), (T,) -> (T, 3, H, D)  # fmt: skip
    """All of one sequence of at most BM tokens, in one head; `scale` is 1/√D."""
    i_head = tl.program_id(0) % H
    start, n = sequence_bounds(cu_seqlens, tl.program_id(0) // H, T)
    STRIDE: tl.constexpr = 3 * H * D
    o_m = tl.arange(0, BM)
    m_m = o_m < n
    p_q = qkv + start.to(tl.int64) * STRIDE + i_head * D
    b_q = load_rows(p_q, o_m, m_m, STRIDE, D)
    b_k = load_rows(p_q + H * D, o_m, m_m, STRIDE, D)
    b_v = load_rows(p_q + 2 * H * D, o_m, m_m, STRIDE, D)
    b_dy = load_rows(d_context + start.to(tl.int64) * (H * D) + i_head * D, o_m, m_m, H * D, D)
    scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * (scale * LOG2E)
    # In an empty sequence every key is masked, and nothing is stored.
    scores = tl.where(m_m[None, :], scores, -1.0e38)
    probs = tl.math.exp2(scores - tl.max(scores, 1)[:, None])
    probs = probs / tl.sum(probs, 1)[:, None]
    weights = probs
    d_probs = tl.dot(b_dy, tl.trans(b_v), input_precision="ieee")
    if DROP:
        b_tokens = tl.load(tokens + start + o_m, mask=m_m, other=0)
        b_bits = probability_bits(tl.load(seed), b_tokens, 0, i_head, BM)
        b_kept = kept(b_bits, threshold, 1.0)
        weights = probs * b_kept
        d_probs = d_probs * b_kept * keep
    dv = tl.dot(tl.trans(weights.to(b_dy.dtype)), b_dy, input_precision="ieee")
    if DROP:
        dv *= keep
    d_scores = (probs * (d_probs - tl.sum(probs * d_probs, 1)[:, None])).to(b_q.dtype)
    dq = tl.dot(d_scores, b_k, input_precision="ieee") * scale
    dk = tl.dot(tl.trans(d_scores), b_q, input_precision="ieee") * scale
    p_out = d_qkv + start.to(tl.int64) * STRIDE + i_head * D
    store_rows(p_out, dq, o_m, m_m, STRIDE, D)
    store_rows(p_out + H * D, dk, o_m, m_m, STRIDE, D)
    store_rows(p_out + 2 * H * D, dv, o_m, m_m, STRIDE, D)
    mark_past(d_qkv, start, BM, n, i_head, H, D)

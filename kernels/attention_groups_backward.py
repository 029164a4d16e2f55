"""The backward pass of group attention: `attention_backward.py` with a range of keys for each range of queries.

The score of a row with itself is no part of any block. The queries' kernel, which has the row's q and dO anyway, takes
it at the end, and writes what the row's own key and value get:

    p = exp(q·k / √D − lse)     ds = p (dO·v − δ)     dq += ds k / √D     dk = ds q / √D     dv = p dO

A row is a key of one group or of itself, so every number still has one writer.

Grid: `group_keys_kernel`: a block of BN keys of one group, in one head, walks over the group's queries;
`group_queries_kernel`: a block of BM queries walks over the group's keys.

Twin: `group_attention_vjp` in reference/attention_groups.py.
"""

from __future__ import annotations

from .attention_backward import LOG2E, add_to_queries, load_rows, load_statistics, store_rows
from .runtime.optional_triton import tl, triton


@triton.jit
def group_bounds(groups, i_group, T):
    """q0, q1, first, k0 and k1, clamped to [0, T], so that a wrong value never becomes a stray address."""
    p = groups + i_group * 5
    q0 = tl.minimum(tl.maximum(tl.load(p), 0), T)
    q1 = tl.minimum(tl.maximum(tl.load(p + 1), q0), T)
    first = tl.load(p + 2)
    k0 = tl.minimum(tl.maximum(tl.load(p + 3), 0), T)
    k1 = tl.minimum(tl.maximum(tl.load(p + 4), k0), T)
    return q0, q1, first, k0, k1


@triton.jit
def group_keys_kernel(
    d_context, qkv, groups, stats, d_qkv, T, scale, BLOCKS,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # (T, H, D), (T, 3, H, D), (G, 5), (2, H, T) -> (T, 3, H, D)  # fmt: skip
    """dk and dv of one block of one group's keys, in one head; `scale` is 1/√D."""
    i_block = tl.program_id(0) % BLOCKS
    i_row = tl.program_id(0) // BLOCKS
    i_head = i_row % H
    q0, q1, _, k0, k1 = group_bounds(groups, i_row // H, T)
    n = q1 - q0
    if k0 + i_block * BN < k1:
        STRIDE: tl.constexpr = 3 * H * D
        o_n = k0 + i_block * BN + tl.arange(0, BN)
        # Past the end the last key comes again: of zeros, exp2(0 - log-sum-exp) may overflow. No score needs a mask.
        o_last = tl.minimum(o_n, k1 - 1)
        b_k = load_rows(qkv + (H + i_head) * D, o_last, o_n >= 0, STRIDE, D)
        b_v = load_rows(qkv + (2 * H + i_head) * D, o_last, o_n >= 0, STRIDE, D)
        p_q = qkv + q0.to(tl.int64) * STRIDE + i_head * D
        p_dy = d_context + q0.to(tl.int64) * (H * D) + i_head * D
        o_stats = i_head.to(tl.int64) * T + q0
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
            d_probs = tl.dot(b_v, tl.trans(b_dy), input_precision="ieee")
            dv = tl.dot(probs.to(b_dy.dtype), b_dy, dv, input_precision="ieee")
            d_scores = probs * (d_probs - b_delta[None, :])
            dk = tl.dot(d_scores.to(b_q.dtype), b_q, dk, input_precision="ieee")
        store_rows(d_qkv + (H + i_head) * D, dk * scale, o_n, o_n < k1, STRIDE, D)
        store_rows(d_qkv + (2 * H + i_head) * D, dv, o_n, o_n < k1, STRIDE, D)


@triton.jit
def group_queries_kernel(
    d_context, qkv, groups, stats, d_qkv, T, scale, BLOCKS,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # (T, H, D), (T, 3, H, D), (G, 5), (2, H, T) -> (T, 3, H, D)  # fmt: skip
    """dq of one block of one group's queries, in one head, and dk and dv of those that see themselves."""
    i_block = tl.program_id(0) % BLOCKS
    i_row = tl.program_id(0) // BLOCKS
    i_head = i_row % H
    q0, q1, first, k0, k1 = group_bounds(groups, i_row // H, T)
    n = k1 - k0
    if q0 + i_block * BM < q1:
        STRIDE: tl.constexpr = 3 * H * D
        o_m = q0 + i_block * BM + tl.arange(0, BM)
        o_n = tl.arange(0, BN)
        m_m = o_m < q1
        p_q = qkv + i_head * D
        b_q = load_rows(p_q, o_m, m_m, STRIDE, D)
        b_dy = load_rows(d_context + i_head * D, o_m, m_m, H * D, D)
        o_stats = i_head.to(tl.int64) * T + o_m
        b_lse = tl.load(stats + o_stats, mask=m_m, other=0.0)
        b_delta = tl.load(stats + tl.cast(T, tl.int64) * H + o_stats, mask=m_m, other=0.0)
        p_k = p_q + H * D + k0.to(tl.int64) * STRIDE + o_n[:, None] * STRIDE + tl.arange(0, D)[None, :]
        dq = tl.zeros((BM, D), tl.float32)
        whole = n // BN * BN
        for _ in tl.range(0, whole, BN):
            b_k = tl.load(p_k)
            b_v = tl.load(p_k + H * D)
            p_k += BN * STRIDE
            dq = add_to_queries(b_q, b_dy, b_k, b_v, b_lse, b_delta, dq, o_n < BN, scale, 0, 0, 0.0, False, False)
        if whole < n:
            m_n = whole + o_n < n
            b_k = tl.load(p_k, mask=m_n[:, None], other=0.0)
            b_v = tl.load(p_k + H * D, mask=m_n[:, None], other=0.0)
            dq = add_to_queries(b_q, b_dy, b_k, b_v, b_lse, b_delta, dq, m_n, scale, 0, 0, 0.0, True, False)
        p_out = d_qkv + i_head * D
        if q0 + (i_block + 1) * BM > first:
            m_own = m_m & (o_m >= first)
            b_k = load_rows(p_q + H * D, o_m, m_own, STRIDE, D).to(tl.float32)
            b_v = load_rows(p_q + 2 * H * D, o_m, m_own, STRIDE, D).to(tl.float32)
            own = tl.sum(b_q.to(tl.float32) * b_k, 1) * (scale * LOG2E) - b_lse
            probs = tl.math.exp2(tl.where(m_own, own, float("-inf")))
            d_scores = probs * (tl.sum(b_dy.to(tl.float32) * b_v, 1) - b_delta)
            dq += d_scores[:, None] * b_k
            dk = d_scores[:, None] * b_q.to(tl.float32) * scale
            store_rows(p_out + H * D, dk, o_m, m_own, STRIDE, D)
            store_rows(p_out + 2 * H * D, probs[:, None] * b_dy.to(tl.float32), o_m, m_own, STRIDE, D)
        store_rows(p_out, dq * scale, o_m, m_m, STRIDE, D)

"""Attention from only the first token of each sequence.

    context[b] = softmax(q_b Kᵀ / √D) V        K, V: the keys and values of sequence b

A head that reads only the first token needs less of the last layer: the keys and values of all tokens, but one query,
one row of scores and one token through the feed-forward network per sequence. `packed_attention` computes the same
rows, among all others.

Source: the pooler of BERT (Devlin et al., 2018), which reads one token; transformers' `ErnieMPooler`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .array import Array
from .attention import attention, attention_vjp
from .padding import check_cu_seqlens


def first_token_attention(q: Array, kv: Array, cu_seqlens: Array) -> Array:  # (B, H, D), (T, 2, H, D), (B + 1,)
    """Attend from query b to sequence b, rows cu_seqlens[b] to cu_seqlens[b+1] of `kv`; returns (B, H, D).

    The context of an empty sequence is 0. Raises ValueError unless the shapes fit and `cu_seqlens` is non-decreasing
    from 0 to T.
    """
    check_shapes(q, kv, cu_seqlens)
    context = np.zeros_like(q)
    for b, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        if start < end:
            k, v = kv[start:end].transpose(1, 2, 0, 3)  # (H, n, D)
            context[b] = attention(q[b][:, None], k, v)[0][:, 0]
    return context


def first_token_attention_vjp(
    d_context: Array, q: Array, kv: Array, cu_seqlens: Array
) -> tuple[Array, Array]:  # (B, H, D), (B, H, D), (T, 2, H, D), (B + 1,) -> (B, H, D), (T, 2, H, D)
    """The gradients of q and kv: `attention_vjp` with one query. An empty sequence's query gets 0."""
    check_shapes(q, kv, cu_seqlens)
    dq, dkv = np.zeros_like(q), np.empty_like(kv)
    for b, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        if start < end:
            k, v = kv[start:end].transpose(1, 2, 0, 3)  # (H, n, D)
            dq_b, dk, dv = attention_vjp(d_context[b][:, None], q[b][:, None], k, v)
            dq[b] = dq_b[:, 0]
            dkv[start:end] = np.stack([dk, dv]).transpose(2, 0, 1, 3)
    return dq, dkv


def check_shapes(q: Array, kv: Array, cu_seqlens: Array) -> None:
    """Raise ValueError unless they are (B, H, D), (T, 2, H, D) and (B + 1,), non-decreasing from 0 to T."""
    if kv.ndim != 4 or kv.shape[1] != 2:
        raise ValueError(f"kv: expected shape (T, 2, H, D), got {kv.shape}")
    check_cu_seqlens(cu_seqlens, kv.shape[0])
    wanted = (len(cu_seqlens) - 1, *kv.shape[2:])
    if q.shape != wanted:
        raise ValueError(f"q: expected shape (B, H, D) = {wanted}, got {q.shape}")

"""Error bounds for the gradients of attention, head by head, as in `attention_bounds.py`.

A probability is off by at most e_P. With w the error of the softmax there, it is w + P Σ w. Computed from saved
log-sum-exps instead, whose errors do not cancel, it is P (e^r − 1), with r the error of the score, that of the
log-sum-exp, a mean of the scores' errors, and (3n + 16 + 4 |lse| + 4 max |score|) ε. The larger of the two counts. Then

    dP = dO vᵀ             off by 2D ε |dO||v|ᵀ, a product whose additions may truncate
    δ = Σ dO O             off by what O may be off by, rounded to the format, and by 2D ε Σ |dO||O|;
      = Σ P dP             or by Σ (e_P |dP| + P e_dP) and 2n ε Σ P |dP|: the larger of the two
    dS = P (dP − δ)        off by e_P |dP − δ| + (P + e_P) (e_dP + e_δ + ε (|dP| + |δ|)) + ε |dS|
    dq = dS k / √D         off by e_dS |k| / √D, by 2n ε |dS||k| / √D, and by the rounding of dS to the format
    dk = dSᵀ q / √D        likewise
    dv = Pᵀ dO             off by e_Pᵀ |dO|, by 2n ε Pᵀ |dO|, and by the rounding of P to the format

and each result is rounded once more. Where a number of dS may be past the format's range, its query's dq and its key's
dk have no bound.
"""

from __future__ import annotations

import math

import numpy as np

from ernie_m import reference
from ernie_m.reference.array import Array

from .attention_bounds import attention_head, group_rows, head_scores, heads, largest_score
from .bounds import EPS, FLUSHED, Expected, expected, several, softmax_error
from .formats import Format


def head_gradients(
    format: Format, dy: Array, q: Array, k: Array, v: Array, sees: Array | None = None
) -> tuple[Array, Array, Array]:  # (N, D) x 2, (S, D) x 2, (N, S) -> (N, D), (S, D) x 2
    """Bounds on the errors of dq, dk and dv, before their last rounding, of N queries over S keys.

    `sees`: which keys each query sees, at least one; by default all.
    """
    D, u = q.shape[-1], format.u
    sees = np.ones((len(q), len(k)), bool) if sees is None else sees
    # The terms of sums over keys, and over queries.
    S, N = sees.sum(-1, keepdims=True), sees.sum(0)
    scores, probs, delta, _ = head_scores(q, k, sees)
    w = softmax_error(scores, delta, probs)
    largest = scores.max(-1, keepdims=True)
    lse = largest + np.log(np.exp(scores - largest).sum(-1, keepdims=True))
    r = delta + (probs * delta).sum(-1, keepdims=True)
    r += (3 * S + 16 + 4 * np.abs(lse) + 4 * largest_score(scores)) * EPS
    e_probs = np.maximum(np.minimum(w + probs * w.sum(-1, keepdims=True), 1.0), probs * np.expm1(np.minimum(r, 300)))
    d_probs, e_d_probs = dy @ v.T, 2 * D * EPS * (np.abs(dy) @ np.abs(v).T)
    context = attention_head(format, q, k, v, sees)
    d = (dy * context.exact).sum(-1, keepdims=True)
    e_outer = (np.abs(dy) * (context.limit + 2 * D * EPS * np.abs(context.exact))).sum(-1, keepdims=True)
    e_inner = (e_probs * np.abs(d_probs) + probs * (e_d_probs + 2 * S * EPS * np.abs(d_probs))).sum(-1, keepdims=True)
    e_d = np.maximum(e_outer, e_inner)

    d_scores = probs * (d_probs - d)
    e_scores = e_probs * np.abs(d_probs - d) + EPS * np.abs(d_scores)
    e_scores += (probs + e_probs) * (e_d_probs + e_d + EPS * (np.abs(d_probs) + np.abs(d)))
    size = np.abs(d_scores) + e_scores
    off = e_scores + u * size + (format.smallest / 2 + FLUSHED) * sees
    root = math.sqrt(D)
    e_q = (off + 2 * S * EPS * size) @ np.abs(k) / root
    e_k = (off + 2 * N * EPS * size).T @ np.abs(q) / root
    over = size >= format.overflow
    e_q[over.any(1)], e_k[over.any(0)] = np.inf, np.inf
    weights = probs + e_probs
    e_v = (e_probs + (u + 2 * N * EPS) * weights + (format.smallest / 2 + FLUSHED) * sees).T @ np.abs(dy)
    # Multiplying by 1/√D rounds twice.
    return e_q * (1 + 3 * EPS), e_k * (1 + 3 * EPS), e_v


def packed_attention_vjp(
    format: Format, d_context: Array, qkv: Array, cu_seqlens: Array
) -> Expected:  # (T, H, D), (T, 3, H, D), (B + 1,) -> (T, 3, H, D)
    """The gradient of queries, keys and values within each sequence, head by head."""
    exact = reference.packed_attention_vjp(d_context, qkv, cu_seqlens)
    error = np.zeros_like(exact)
    for _, own, h in heads(cu_seqlens, qkv.shape[2]):
        rows = d_context[own, h], *qkv[own, :, h].swapaxes(0, 1)
        error[own, :, h] = np.stack(head_gradients(format, *rows), axis=1)
    longest = int(np.diff(cu_seqlens).max(initial=0))
    large = _largest(d_context, qkv) * max(longest, 1)
    return expected(format, exact, error, large, roundings=3, terms=longest + qkv.shape[3])


def group_attention_vjp(
    format: Format, d_context: Array, qkv: Array, groups: Array
) -> Expected:  # (T, H, D), (T, 3, H, D), (G, 5) -> (T, 3, H, D)
    """The gradient of queries, keys and values of attention between ranges; a row is a key of one range at most."""
    exact = reference.group_attention_vjp(d_context, qkv, groups)
    error, most = np.zeros_like(exact), 1
    for rows, keys, sees in group_rows(groups):
        most = max(most, len(rows), int(sees.sum(-1).max()))
        for h in range(qkv.shape[2]):
            given = d_context[rows, h], qkv[rows, 0, h], qkv[keys, 1, h], qkv[keys, 2, h]
            error[rows, 0, h], error[keys, 1, h], error[keys, 2, h] = head_gradients(format, *given, sees)
    large = _largest(d_context, qkv) * most
    return expected(format, exact, error, large, roundings=3, terms=most + qkv.shape[3])


def first_token_attention_vjp(
    format: Format, d_context: Array, q: Array, kv: Array, cu_seqlens: Array
) -> Expected:  # (B, H, D) x 2, (T, 2, H, D), (B + 1,) -> (B, H, D), (T, 2, H, D)
    """The gradients of one query per sequence, and of its keys and values."""
    dq, dkv = reference.first_token_attention_vjp(d_context, q, kv, cu_seqlens)
    e_q, e_kv = np.zeros_like(dq), np.zeros_like(dkv)
    for b, own, h in heads(cu_seqlens, q.shape[1]):
        rows = d_context[b, None, h], q[b, None, h], *kv[own, :, h].swapaxes(0, 1)
        found = head_gradients(format, *rows)
        e_q[b, h], e_kv[own, :, h] = found[0][0], np.stack(found[1:], axis=1)
    longest = int(np.diff(cu_seqlens).max(initial=0))
    large, terms = _largest(d_context, q, kv) * max(longest, 1), longest + q.shape[2]
    return several(
        dq=expected(format, dq, e_q, large, roundings=3, terms=terms),
        dkv=expected(format, dkv, e_kv, large, roundings=3, terms=terms),
    )


def _largest(*arrays: Array) -> float:
    """At least every intermediate: products of three of the largest numbers, times D."""
    largest = max(1.0, *(float(np.abs(x).max(initial=0.0)) for x in arrays))
    return largest**3 * arrays[0].shape[-1]

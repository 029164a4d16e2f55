"""Error bounds for attention, as in `bounds.py`: softmax(q kᵀ/√D) v for each head of each sequence.

A good computation keeps scores, softmax and sums in float32, and rounds the probabilities to the format so that
tensor cores can multiply them by v. Its error, for keys j with probabilities p_j, is at most

    u |exact|  +  u Σ p |v|  +  Σ w (|v| + |exact|)  +  (3n + 16) ε Σ p |v|  +  (half the smallest number) Σ |v|
    rounding      rounding      errors of the            sums, rescaling          subnormal probabilities
    the result    p             scores, see below        and division

with A = |q|·|k|/√D, the score of absolute values, and M the largest |score| of the row:

    score       2D ε A     a dot product of D terms in any order; each addition may truncate, as on tensor cores
    exponent    6 ε A      multiplying by 1/√D and log₂e, both rounded, and a subtraction
                8 ε M      the row maximum, scaled before; running maxima telescope to at most 2M
                4 ε        exp2

and w the resulting error of the softmax (`bounds.softmax_error`). Whatever the scores, a weighted mean of v stays
within the range of v.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from ernie_m import reference
from ernie_m.reference.array import Array

from .bounds import APPROXIMATE, EPS, FLUSHED, Expected, expected, softmax_error
from .formats import Format


def attention_head(
    format: Format, q: Array, k: Array, v: Array, sees: Array | None = None
) -> Expected:  # (N, D), (S, D) x 2, (N, S) -> (N, D)
    """Attention of N queries over S keys, in one head. `sees`: which keys each sees, at least one; by default all."""
    D, size = q.shape[-1], np.abs(v)
    sees = np.ones((len(q), len(k)), bool) if sees is None else sees
    S = sees.sum(-1, keepdims=True)
    scores, probs, delta, sizes = head_scores(q, k, sees)
    exact = reference.attention(q, k, v, sees)[0]
    w = softmax_error(scores, delta, probs)
    error = w @ size + w.sum(-1, keepdims=True) * np.abs(exact)
    error = np.minimum(error, size.max(0) + np.abs(exact)) + (3 * S + 16) * EPS * (probs @ size)
    error += format.u * (probs @ size + error) + (format.smallest / 2 + FLUSHED) * (sees @ size)
    large = np.maximum(sizes.max(-1, keepdims=True) * math.sqrt(D), sees @ size)
    return expected(format, exact, error, large, roundings=2, terms=int(S.max()) + D)


def head_scores(
    q: Array, k: Array, sees: Array
) -> tuple[Array, Array, Array, Array]:  # (N, D), (S, D), (N, S) -> (N, S) x 4
    """Scores, probabilities, error bounds of the exponents, and the scores of absolute values.

    Scores of keys that are not seen are -inf.
    """
    D = q.shape[-1]
    scores = np.where(sees, q @ k.T / math.sqrt(D), -np.inf)
    sizes = np.where(sees, np.abs(q) @ np.abs(k).T / math.sqrt(D), 0.0)
    delta = EPS * ((2 * D + 6) * sizes + 8 * largest_score(scores)) + APPROXIMATE
    return scores, reference.softmax(scores), delta, sizes


def largest_score(scores: Array) -> Array:  # (N, S) -> (N, 1)
    """The largest |score| of the keys that each query sees."""
    return np.asarray(np.where(np.isneginf(scores), 0.0, np.abs(scores)).max(-1, keepdims=True))


def heads(cu_seqlens: Array, H: int) -> Iterator[tuple[int, slice, int]]:
    """Each head of each sequence that has tokens: the number of the sequence, its tokens, and the head."""
    for b, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        if start < end:
            yield from ((b, slice(start, end), h) for h in range(H))


def packed_attention(format: Format, qkv: Array, cu_seqlens: Array) -> Expected:  # (T, 3, H, D), (B + 1,)
    """Attention within each sequence of a packed batch, head by head."""
    exact = reference.packed_attention(qkv, cu_seqlens)
    limit = np.zeros_like(exact)
    for _, own, h in heads(cu_seqlens, qkv.shape[2]):
        limit[own, h] = attention_head(format, *qkv[own, :, h].swapaxes(0, 1)).limit
    longest = int(np.diff(cu_seqlens).max(initial=0))
    return Expected(format, exact, limit, roundings=2, terms=longest + qkv.shape[3])


def group_rows(groups: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Of each group: the rows that see anything, (N,), their keys and then the rows that see themselves, (S,), and
    which of these each row sees, (N, S)."""
    for q0, q1, first, k0, k1 in groups.tolist():
        rows, keys = np.arange(q0 if k0 < k1 else first, q1), np.arange(k0, k1)
        own = np.arange(first, q1)
        if len(rows):
            sees = np.concatenate([np.ones((len(rows), len(keys)), bool), rows[:, None] == own], axis=1)
            yield rows, np.concatenate([keys, own]), sees


def group_attention(format: Format, qkv: Array, groups: Array) -> Expected:  # (T, 3, H, D), (G, 5) -> (T, H, D)
    """Attention between ranges, head by head; 0 for rows that see nothing."""
    exact = reference.group_attention(qkv, groups)
    limit, most = np.full_like(exact, format.smallest / 2 + FLUSHED), 1
    for rows, keys, sees in group_rows(groups):
        most = max(most, int(sees.sum(-1).max()))
        for h in range(qkv.shape[2]):
            q, k, v = qkv[rows, 0, h], qkv[keys, 1, h], qkv[keys, 2, h]
            limit[rows, h] = attention_head(format, q, k, v, sees).limit
    return Expected(format, exact, limit, roundings=2, terms=most + qkv.shape[3])


def first_token_attention(
    format: Format, q: Array, kv: Array, cu_seqlens: Array
) -> Expected:  # (B, H, D), (T, 2, H, D), (B + 1,) -> (B, H, D)
    """Attention of one query per sequence over all its keys; 0 for an empty sequence."""
    exact, limit = np.zeros_like(q), np.full_like(q, format.smallest / 2 + FLUSHED)
    for b, own, h in heads(cu_seqlens, q.shape[1]):
        found = attention_head(format, q[b, None, h], kv[own, 0, h], kv[own, 1, h])
        exact[b, h], limit[b, h] = found.exact[0], found.limit[0]
    longest = int(np.diff(cu_seqlens).max(initial=0))
    return Expected(format, exact, limit, roundings=2, terms=longest + q.shape[2])

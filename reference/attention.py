"""Multi-head scaled dot-product attention.

    scores = q kᵀ / √D        how well each query matches each key
    probs  = softmax(scores)  over the keys
    context = probs v         a weighted mean of the values

Each head works on its own D of the E columns. The padded form takes a (B, S) rectangle and a mask; the packed form
takes only the real tokens, one sequence after another, and needs no mask because it holds no padding.

Left out: decoder masks, key-value caches and relative positions, which no ERNIE-M checkpoint uses.
Source: Attention Is All You Need (Vaswani et al., 2017), section 3.2; transformers 4.40.2, `ErnieMSelfAttention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from .array import Array
from .padding import check_cu_seqlens
from .softmax import softmax, softmax_vjp_of
from .trace import current_scope, per_sequence, recomputed, record, record_gradient

# Scores computed at a time: few enough to stay in cache between the product, the softmax and the second product.
MOST_SCORES = 2**18


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    head_mask: Array | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:  # (..., H, S, D) x 3 -> (..., H, S, D), (..., H, S, S)
    """Return the context and the probabilities that produced it.

    `mask` broadcasts to (..., H, S, S): boolean, True = the query (row) may attend to the key (column), or floating
    point, added to the scores. `drop` is applied to the probabilities; then `head_mask` (H,) scales each head's.
    """
    D = q.shape[-1]
    # Scaling q is equivalent to scaling the scores, and cheaper: it has D columns, not S.
    scores = record("scores", (q / math.sqrt(D)) @ k.swapaxes(-1, -2))
    probs = softmax(scores, mask)
    if drop is not None:
        probs = drop(probs)
    if head_mask is not None:
        probs = probs * head_mask[:, None, None]
    return record("probs", probs) @ v, probs


def attention_by_sequence(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens: Array,
    head_mask: Array | None = None,
    drop: Callable[[Array, slice, slice], Array] | None = None,
) -> Array:  # (T, H, D) x 3, (B + 1,) -> (T, H, D)
    """Attention within each of B concatenated sequences: sequence b is rows cu_seqlens[b] to cu_seqlens[b+1].

    A sequence may be empty. `head_mask` is as in `attention`; `drop(probs, rows, heads)` gets the probabilities of one
    sequence, its rows of q, and some of the heads.
    """
    context = np.empty_like(q)
    with per_sequence():
        for rows, heads in blocks(cu_seqlens, q.shape[1]):
            own_q, own_k, own_v = (x[rows, heads].swapaxes(0, 1) for x in (q, k, v))  # (H, n, D)
            factors = None if head_mask is None else head_mask[heads]
            own_drop = within(drop, rows, heads)
            context[rows, heads] = attention(own_q, own_k, own_v, None, factors, own_drop)[0].swapaxes(0, 1)
    return context


def blocks(cu_seqlens: Array, H: int) -> Iterator[tuple[slice, slice]]:
    """The rows of each sequence that is not empty, and a few of its `H` heads at a time; all while a trace records."""
    for start, end in pairwise(cu_seqlens.tolist()):
        if start < end:
            step = H if current_scope.get() else max(1, MOST_SCORES // (end - start) ** 2)
            yield from ((slice(start, end), slice(first, first + step)) for first in range(0, H, step))


def packed_attention(qkv: Array, cu_seqlens: Array) -> Array:  # (T, 3, H, D), (B + 1,) -> (T, H, D)
    """`attention_by_sequence` on an array that holds each token's query, key and value side by side.

    Raises ValueError unless `qkv` is (T, 3, H, D) and `cu_seqlens` is non-decreasing from 0 to T.
    """
    check_packed(qkv, cu_seqlens)
    q, k, v = qkv.swapaxes(0, 1)
    return attention_by_sequence(q, k, v, cu_seqlens)


def check_packed(qkv: Array, cu_seqlens: Array) -> None:
    """Raise ValueError unless `qkv` is (T, 3, H, D) and `cu_seqlens` is non-decreasing from 0 to T."""
    if qkv.ndim != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv: expected shape (T, 3, H, D), got {qkv.shape}")
    check_cu_seqlens(cu_seqlens, qkv.shape[0])


def attention_vjp(
    d_context: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    head_mask: Array | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array, Array]:  # (..., H, S, D) x 4 -> (..., H, S, D) x 3
    """The gradients of q, k and v; the masks get none.

    With the weights W = probs, after dropout and head mask, and context = W v:

        dv = Wᵀ d_context                dW = d_context vᵀ
        d_scores = softmax_vjp(dprobs)   dprobs = dW, through head mask and dropout
        dq = d_scores k / √D             dk = d_scoresᵀ q / √D

    `drop` must drop the same elements as in the forward pass. It scales each element, so it is its own vjp.
    """
    root = math.sqrt(q.shape[-1])

    def weigh(x: Array) -> Array:
        x = x if drop is None else drop(x)
        return x if head_mask is None else x * head_mask[:, None, None]

    with recomputed():
        probs = softmax(record("scores", (q / root) @ k.swapaxes(-1, -2)), mask)
        weights = record("probs", weigh(probs))
    dv = weights.swapaxes(-1, -2) @ d_context
    d_weights = record_gradient("probs", d_context @ v.swapaxes(-1, -2))
    d_scores = record_gradient("scores", softmax_vjp_of(weigh(d_weights), probs))
    d_scores = d_scores / root
    return d_scores @ k, d_scores.swapaxes(-1, -2) @ q, dv


def attention_by_sequence_vjp(
    d_context: Array,
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens: Array,
    head_mask: Array | None = None,
    drop: Callable[[Array, slice, slice], Array] | None = None,
) -> tuple[Array, Array, Array]:  # (T, H, D) x 4, (B + 1,) -> (T, H, D) x 3
    """The gradients of q, k and v: `attention_vjp` within each sequence."""
    found = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    with per_sequence():
        for rows, heads in blocks(cu_seqlens, q.shape[1]):
            own_dy, own_q, own_k, own_v = (x[rows, heads].swapaxes(0, 1) for x in (d_context, q, k, v))  # (H, n, D)
            factors = None if head_mask is None else head_mask[heads]
            own_drop = within(drop, rows, heads)
            parts = attention_vjp(own_dy, own_q, own_k, own_v, None, factors, own_drop)
            for whole, part in zip(found, parts, strict=True):
                whole[rows, heads] = part.swapaxes(0, 1)
    return found


def within(
    drop: Callable[[Array, slice, slice], Array] | None, rows: slice, heads: slice
) -> Callable[[Array], Array] | None:
    """`drop` for the probabilities of one sequence and of some of its heads."""
    return None if drop is None else lambda probs: drop(probs, rows, heads)


def packed_attention_vjp(d_context: Array, qkv: Array, cu_seqlens: Array) -> Array:  # -> (T, 3, H, D)
    """The gradient of `qkv`, given that of the context (T, H, D). Raises the errors of `packed_attention`."""
    check_packed(qkv, cu_seqlens)
    q, k, v = qkv.swapaxes(0, 1)
    return np.stack(attention_by_sequence_vjp(d_context, q, k, v, cu_seqlens), axis=1)

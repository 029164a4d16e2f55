"""Attention between ranges of tokens: what CAMLM's masks become once the tokens of a pair are put in order.

    groups (G, 5)    q0, q1, first, k0, k1:  queries q0 to q1 see keys k0 to k1, and from row `first` on also themselves

With X and Y the text of the two sides and M_x, M_y their masks, the rule "text sees its own side, a mask the other side
and itself" is two rectangles without holes if a pair is arranged as [X, M_y, Y, M_x] (`objectives.arrange`):

    queries [X, M_y] -> keys X,  M_y also themselves            queries [Y, M_x] -> keys Y,  M_x also themselves

Attention does not depend on the order of tokens, as long as positions travel along. Plain packed attention is the
groups (start, end, end, start, end). Each row is a query of one group at most, and a key of one group or of itself.

Source: the rule is ERNIE-M's (Ouyang et al., 2021), section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .array import Array
from .softmax import softmax, softmax_vjp_of


def group_attention(qkv: Array, groups: Array) -> Array:  # (T, 3, H, D), (G, 5) -> (T, H, D)
    """Return the context of each row; 0 for rows that see nothing. Raises TypeError or ValueError for wrong groups."""
    context = np.zeros_like(qkv[:, 0])
    for rows, keys, own in ranges(qkv, groups):
        probs = _probabilities(qkv, rows, keys, own)
        v = qkv[:, 2].swapaxes(0, 1)  # (H, T, D)
        found = probs[..., :-1] @ v[:, keys] + probs[..., -1:] * np.where(own[:, None], v[:, rows], 0.0)
        context[rows] = found.swapaxes(0, 1)
    return context


def group_attention_vjp(d_context: Array, qkv: Array, groups: Array) -> Array:  # (T, H, D), (T, 3, H, D) -> as qkv
    """The gradient of qkv. A row's own score is one more column beside those of the keys, for softmax and its vjp."""
    d_qkv, root = np.zeros_like(qkv), math.sqrt(qkv.shape[-1])
    dq, dk, dv = (d_qkv[:, i].swapaxes(0, 1) for i in range(3))  # views, (H, T, D)
    q, k, v = (qkv[:, i].swapaxes(0, 1) for i in range(3))
    for rows, keys, own in ranges(qkv, groups):
        probs, dy = _probabilities(qkv, rows, keys, own), d_context[rows].swapaxes(0, 1)
        # 0 where a row does not see itself: what is not seen must not count, not even a nan.
        own_k, own_v = (np.where(own[:, None], x[:, rows], 0.0) for x in (k, v))
        d_own = (dy * own_v).sum(axis=-1, keepdims=True)
        d_scores = softmax_vjp_of(np.concatenate([dy @ v[:, keys].swapaxes(1, 2), d_own], axis=-1), probs) / root
        scores, alone = d_scores[..., :-1], d_scores[..., -1:]
        dq[:, rows] += scores @ k[:, keys] + alone * own_k
        dk[:, keys] += scores.swapaxes(1, 2) @ q[:, rows]
        dv[:, keys] += probs[..., :-1].swapaxes(1, 2) @ dy
        dk[:, rows] += alone * q[:, rows]
        dv[:, rows] += probs[..., -1:] * dy
    return d_qkv


def _probabilities(qkv: Array, rows: slice, keys: slice, own: Array) -> Array:  # -> (H, n, m + 1)
    """Those of a group's keys and, in the last column, of each row itself, 0 where it does not see itself."""
    q, k, _ = qkv.transpose(1, 2, 0, 3)  # (H, T, D)
    q = q[:, rows] / math.sqrt(qkv.shape[-1])
    scores = np.concatenate([q @ k[:, keys].swapaxes(1, 2), (q * k[:, rows]).sum(axis=-1, keepdims=True)], axis=-1)
    sees = np.ones(scores.shape[1:], bool)
    sees[:, -1] = own
    return softmax(scores, sees)


def ranges(qkv: Array, groups: Any) -> Iterator[tuple[slice, slice, Array]]:
    """Each group's rows, keys, and which rows see themselves. Raises TypeError or ValueError for wrong groups."""
    if qkv.ndim != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv: expected shape (T, 3, H, D), got {qkv.shape}")
    for q0, q1, first, k0, k1 in check_groups(np.asarray(groups), len(qkv)).tolist():
        yield slice(q0, q1), slice(k0, k1), np.arange(q0, q1) >= first


def check_groups(groups: Array, T: int) -> Array:
    """Raise ValueError unless these are (G, 5) ranges in [0, T] in which no row is a query or a key twice."""
    if groups.dtype.kind not in "iu":
        raise TypeError(f"groups: expected integers, got {groups.dtype}")
    if groups.ndim != 2 or groups.shape[1] != 5:
        raise ValueError(f"groups: expected shape (G, 5), got {groups.shape}")
    for i, (q0, q1, first, k0, k1) in enumerate(groups.tolist()):
        if not (0 <= q0 <= first <= q1 <= T and 0 <= k0 <= k1 <= T):
            raise ValueError(
                f"groups: expected 0 <= q0 <= first <= q1 <= {T} and 0 <= k0 <= k1 <= {T}, "
                f"got {[q0, q1, first, k0, k1]} in row {i}"
            )
    for name, counts in (("a query", [(q0, q1) for q0, q1, *_ in groups.tolist()]), ("a key", key_ranges(groups))):
        times = np.zeros(T + 1, int)
        for begin, end in counts:
            times[begin] += 1
            times[end] -= 1
        twice = np.flatnonzero(times.cumsum() > 1)
        if twice.size:
            raise ValueError(f"groups: expected each row to be {name} at most once, got row {twice[0]} twice")
    return groups


def key_ranges(groups: Array) -> list[tuple[int, int]]:
    """The ranges of rows that are keys: of groups, and each of itself."""
    return [pair for _, q1, first, k0, k1 in groups.tolist() for pair in ((k0, k1), (first, q1))]

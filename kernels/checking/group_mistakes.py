"""Wrong implementations of attention between ranges, in NumPy and float64; see `mistakes`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ernie_m import reference
from ernie_m.reference.array import Array

from .mistakes import Form, Mistakes


def in_each_group(
    own: Callable[[Array, int], Array] = lambda rows, first: rows >= first,
    keys: Callable[[int, int, int], slice] = lambda q0, k0, k1: np.s_[k0:k1],
    scale: Callable[[int], float] = lambda D: 1 / math.sqrt(D),
    own_scale: Callable[[int], float] = lambda D: 1.0,
) -> Form:
    """Attention between ranges; `own` says which rows see themselves, `keys` maps (q0, k0, k1) to the keys seen."""

    def wrong(qkv: Array, groups: Array) -> Array:
        context, D = np.zeros_like(qkv[:, 0]), qkv.shape[-1]
        q, k, v = qkv.transpose(1, 2, 0, 3)
        for q0, q1, first, k0, k1 in groups.tolist():
            rows, seen = np.arange(q0, q1), keys(q0, k0, k1)
            alone = (q[:, rows] * k[:, rows]).sum(-1, keepdims=True) * own_scale(D)
            scores = np.concatenate([q[:, rows] @ k[:, seen].swapaxes(1, 2), alone], -1) * scale(D)
            sees = np.ones(scores.shape[1:], bool)
            sees[:, -1] = own(rows, first)
            probs = reference.softmax(scores, sees)
            context[rows] = (probs[..., :-1] @ v[:, seen] + probs[..., -1:] * v[:, rows]).swapaxes(0, 1)
        return context

    return wrong


GROUPS: Mistakes = {
    "rows from `first` on do not see themselves": [in_each_group(own=lambda rows, first: rows < 0)],
    "all rows see themselves; only those from `first` on should": [in_each_group(own=lambda rows, first: rows >= 0)],
    "the mask is off by one: the row `first` does not see itself": [
        in_each_group(own=lambda rows, first: rows > first)
    ],
    "the keys are read from where the queries begin: the pointer does not move by k0": [
        in_each_group(keys=lambda q0, k0, k1: np.s_[q0 : q0 + k1 - k0])
    ],
    "the mask is off by one: it lets in the key behind the last": [
        in_each_group(keys=lambda q0, k0, k1: np.s_[k0 : k1 + 1])
    ],
    "the mask is off by one: the last key is left out": [
        in_each_group(keys=lambda q0, k0, k1: np.s_[k0 : max(k0, k1 - 1)])
    ],
    "the scores are not divided by √D": [in_each_group(scale=lambda D: 1.0)],
    "the scores are divided by √D twice": [in_each_group(scale=lambda D: 1 / D)],
    "the scores of rows with themselves are not divided by √D": [in_each_group(own_scale=math.sqrt)],
    "heads are swapped": [
        lambda qkv, groups, by=by: reference.group_attention(np.roll(qkv, by, axis=2), groups) for by in (1, -1)
    ],
}

"""Wrong implementations of attention, in NumPy and float64; see `mistakes`.

A form for one head takes q (N, D) and k and v (S, D). `in_each_head` lifts it to packed attention, `first_tokens` to
one query per sequence; what goes wrong between heads and sequences has forms of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ernie_m import reference
from ernie_m.reference.array import Array

from .attention_bounds import heads
from .mistakes import Form, Mistakes, at_each_size, without

# How many keys an online softmax processes at a time.
KEY_BLOCKS = (16, 32, 64, 128)
Attend = Callable[[Array, Array, Array], Array]


def attend(q: Array, k: Array, v: Array) -> Array:  # (N, D), (S, D) x 2 -> (N, D)
    """The right one."""
    return reference.softmax(q @ k.T / math.sqrt(q.shape[-1])) @ v


def _scaled(scale: Callable[[int], float]) -> Attend:
    return lambda q, k, v: reference.softmax(q @ k.T * scale(q.shape[-1])) @ v


def _columns(q: Array, k: Array, v: Array) -> Array:
    return reference.softmax((q @ k.T / math.sqrt(q.shape[-1])).T).T @ v


def _unnormalised(q: Array, k: Array, v: Array) -> Array:
    scores = q @ k.T / math.sqrt(q.shape[-1])
    return np.exp(scores - scores.max(-1, keepdims=True)) @ v


def _overflowing(q: Array, k: Array, v: Array) -> Array:
    exps = np.exp((q @ k.T / math.sqrt(q.shape[-1])).astype(np.float32)).astype(np.float64)
    return exps / exps.sum(-1, keepdims=True).astype(np.float32) @ v


def _online(block: int, sums: bool, context: bool) -> Attend:
    """Online softmax; whether the running sum and the running context are rescaled when the maximum rises."""

    def wrong(q: Array, k: Array, v: Array) -> Array:
        scores = q @ k.T / math.sqrt(q.shape[-1])
        largest = np.full((len(q), 1), -np.inf)
        total, found = np.zeros((len(q), 1)), np.zeros((len(q), v.shape[1]))
        for start in range(0, len(k), block):
            part = scores[:, start : start + block]
            higher = np.maximum(largest, part.max(-1, keepdims=True))
            rescale, exps = np.exp(largest - higher), np.exp(part - higher)
            total = total * (rescale if sums else 1) + exps.sum(-1, keepdims=True)
            found = found * (rescale if context else 1) + exps @ v[start : start + block]
            largest = higher
        return found / total

    return wrong


def _padded(size: int, q: Array, k: Array, v: Array) -> Array:
    more = np.zeros((size - len(k), k.shape[1]))
    return attend(q, np.concatenate([k, more]), np.concatenate([v, more]))


def _one_more(block: int) -> Attend:
    """One more key of zeros, unless the keys fill a block."""
    return lambda q, k, v: _padded(len(k) + (len(k) % block > 0), q, k, v)


def _causal(strict: bool) -> Attend:
    def wrong(q: Array, k: Array, v: Array) -> Array:
        later = np.triu(np.ones((len(q), len(k)), bool), 0 if strict else 1)
        return reference.softmax(np.where(later, -np.inf, q @ k.T / math.sqrt(q.shape[-1]))) @ v

    return wrong


def _some(keys: slice) -> Attend:
    """Only some keys; nan if there are none."""
    return lambda q, k, v: attend(q, k[keys], v[keys]) if len(k[keys]) else np.full(q.shape, np.nan)


def _square(change: Attend) -> Form:
    return lambda q, k, v: change(q, k, v) if q.shape == k.shape and k.shape[0] == k.shape[1] else None


HEAD: Mistakes = {
    "the scores are not divided by √D": [_scaled(lambda D: 1.0)],
    "the scores are divided by √D twice": [_scaled(lambda D: 1 / D)],
    "the scores are multiplied by √D; they should be divided": [_scaled(math.sqrt)],
    "the probabilities are divided by √D; it should be the scores": [
        lambda q, k, v: reference.softmax(q @ k.T) @ v / math.sqrt(q.shape[-1])
    ],
    "the result is not divided by the sum of the exponentials": [_unnormalised],
    "powers of 2 in place of powers of e: multiply the scores by log₂e first": [
        _scaled(lambda D: math.log(2) / math.sqrt(D))
    ],
    "log₂e is multiplied twice": [_scaled(lambda D: 1 / math.log(2) / math.sqrt(D))],
    "exp of the scores themselves overflows; subtract the row maximum first": [_overflowing],
    "online softmax: when a block raises the maximum, the sums so far are not rescaled by exp(old - new maximum)": [
        _online(block, sums, context)
        for block in KEY_BLOCKS
        for sums, context in ((False, False), (True, False), (False, True))
    ],
    "keys past the end take part, with scores of 0; they must be -inf": at_each_size(
        lambda size, q, k, v: _padded(size, q, k, v), lambda q, k, v: len(k)
    ),
    "the mask is off by one: it lets in one key past the end, with a score of 0": [
        _one_more(block) for block in (10**9, *KEY_BLOCKS)
    ],
    "the mask is off by one: the last key is left out": [_some(np.s_[:-1])],
    "the mask is off by one: the first key is left out": [_some(np.s_[1:])],
    "keys and values are swapped": [lambda q, k, v: attend(q, v, k)],
    "the keys are read in place of the values": [lambda q, k, v: attend(q, k, k)],
    "the values are read in place of the keys": [lambda q, k, v: attend(q, v, v)],
}
# With as many queries as keys.
SQUARE: Mistakes = {
    "the softmax is over columns of the scores; it should be over rows": [_columns],
    "each query sees only keys up to its own (a causal mask); ERNIE-M's see all": [_causal(False), _causal(True)],
    "queries and keys are swapped": [lambda q, k, v: attend(k, q, v)],
    "the queries are read in place of the keys": [lambda q, k, v: attend(q, q, v)],
}
ONE_HEAD: Mistakes = {
    "row and column strides of q, k or v are swapped": [
        _square(lambda q, k, v: attend(q.T, k, v)),
        _square(lambda q, k, v: attend(q, k.T, v)),
        _square(lambda q, k, v: attend(q, k, v.T)),
        _square(lambda q, k, v: attend(q.T, k.T, v.T)),
    ],
    "row and column strides are swapped where the result is written": [_square(lambda q, k, v: attend(q, k, v).T)],
    "the last row is not written": [lambda q, k, v: without(attend(q, k, v), -1)],
}


Keys = Callable[[int, int, int], slice]
Change = Callable[[Array], Array]


def _own(start: int, end: int, T: int) -> slice:
    return np.s_[start:end]


def _behind(x: Array, fill: float | None) -> Array:
    """The tokens and, unless `fill` is None, one more in memory behind them, of that number."""
    return x if fill is None else np.concatenate([x, np.full((1, *x.shape[1:]), fill)])


def in_each_head(one: Attend, keys: Keys = _own, behind: float | None = None) -> Form:
    """Packed attention with `one` in each head; `keys` maps (start, end, T) of a sequence to the keys it attends to."""

    def wrong(qkv: Array, cu_seqlens: Array) -> Array:
        context, T = np.zeros_like(qkv[:, 0]), len(qkv)
        qkv = _behind(qkv, behind)
        for _, rows, h in heads(cu_seqlens, qkv.shape[2]):
            own = keys(rows.start, rows.stop, T)
            context[rows, h] = one(qkv[rows, 0, h], qkv[own, 1, h], qkv[own, 2, h])
        return context

    return wrong


def first_tokens(one: Attend, keys: Keys = _own, behind: float | None = None) -> Form:
    """The same with one query per sequence."""

    def wrong(q: Array, kv: Array, cu_seqlens: Array) -> Array:
        context, T = np.zeros_like(q), len(kv)
        kv = _behind(kv, behind)
        for b, rows, h in heads(cu_seqlens, q.shape[1]):
            own = keys(rows.start, rows.stop, T)
            context[b, h] = one(q[b, None, h], kv[own, 0, h], kv[own, 1, h])[0]
        return context

    return wrong


def _packed(change: Change, *parts: int) -> Form:
    """Packed attention after a change to its queries (0), keys (1) or values (2)."""

    def wrong(qkv: Array, cu_seqlens: Array) -> Any:
        new, changed = qkv.copy(), change(qkv)
        new[:, parts] = changed[:, parts]
        return in_each_head(attend)(new, cu_seqlens)

    return wrong


def _one_query(change: Change, *parts: int) -> Form:
    """The same with one query per sequence."""

    def wrong(q: Array, kv: Array, cu_seqlens: Array) -> Any:
        new, changed = kv.copy(), change(kv)
        own = [part - 1 for part in parts if part]
        new[:, own] = changed[:, own]
        return first_tokens(attend)(change(q[:, None])[:, 0] if 0 in parts else q, new, cu_seqlens)

    return wrong


def _strides_swapped(x: Array) -> Array:  # (n, P, H, D)
    """Token t and head h, read at h · (stride of tokens) + t · (stride of heads); nan past the end."""
    n, P, H, D = x.shape
    t, p, h, d = np.ogrid[:n, :P, :H, :D]
    at = h * (P * H * D) + p * (H * D) + t * D + d
    return np.where(at < x.size, x.reshape(-1)[np.minimum(at, x.size - 1)], np.nan)


def _between(lift: Callable[..., Form], changed: Callable[..., Form]) -> Mistakes:
    """What goes wrong between sequences and heads."""
    shifts: list[Change] = [lambda x: np.roll(x, 1, 2), lambda x: np.roll(x, -1, 2), lambda x: x[:, :, ::-1]]
    some = [(0, 1, 2), (0,), (1, 2), (1,), (2,)]
    return {
        "sequences leak: every query attends to the keys of all sequences": [lift(attend, lambda a, b, T: np.s_[:T])],
        "sequences leak: the mask is off by one and lets in the key behind the last": [
            lift(attend, lambda a, b, T: np.s_[a : b + 1], behind) for behind in (None, 0.0, math.nan)
        ],
        "sequences leak: the mask is off by one and lets in the key before the first": [
            lift(attend, lambda a, b, T: np.s_[max(a - 1, 0) : b])
        ],
        "sequences leak: each attends to the sequences before it, too": [lift(attend, lambda a, b, T: np.s_[:b])],
        "every sequence reads its keys from the start of the batch: the pointer does not move by cu_seqlens": [
            lift(attend, lambda a, b, T: np.s_[: b - a])
        ],
        "heads are swapped": [changed(shift, *parts) for shift in shifts for parts in some],
        "every head reads head 0: the pointer does not move with the head": [
            changed(lambda x: np.repeat(x[:, :, :1], x.shape[2], axis=2), *parts) for parts in some
        ],
        "the strides of heads and tokens are swapped": [changed(_strides_swapped, *parts) for parts in some],
    }


ATTENTION: dict[str, Mistakes] = {
    "attention_head": HEAD | SQUARE | ONE_HEAD,
    "packed_attention": {words: [in_each_head(form) for form in forms] for words, forms in (HEAD | SQUARE).items()}
    | _between(in_each_head, _packed),
    "first_token_attention": {words: [first_tokens(form) for form in forms] for words, forms in HEAD.items()}
    | _between(first_tokens, _one_query),
}

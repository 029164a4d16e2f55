"""Random bits from a counter, without a kernel: Philox 4x32-10, in torch, and in NumPy where it is faster.

    a round:    c0, c1, c2, c3 = high(c2 M₁) ^ c1 ^ k0,  low(c2 M₁),  high(c0 M₀) ^ c3 ^ k1,  low(c0 M₀)

In torch, words are int64, of which the low 32 bits count: it has no other type with 64-bit products everywhere. Those
that overflow wrap around, so they have the right bits, but their sign fills what is shifted in.

On a CPU, NumPy takes the same memory as unsigned integers, in pieces that fit the cache; its operations cost less to
call. The first rounds are computed once for each token and once for each column, as in the reference; in the others,
the two products of a round are one operation.

Twin: reference/dropout.py, `philox`. Source: Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from ernie_m.reference.array import Array
from ernie_m.reference.dropout import HALF, KEY_STEPS, LOW, MULTIPLIERS, ROUNDS

FACTORS, LOW_HALF = tuple(map(int, MULTIPLIERS)), int(LOW)
# Calls of Philox at a time on a CPU.
PIECE = 16000
# Rounds after which every word depends on token, column and head, or will after the next.
SMALL_ROUNDS = 2
# Elements at a time where dropped ones are set to 0: below the number from which torch uses several threads.
ELEMENTS = 32000
INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, seed: Tensor) -> Words:  # four (...) -> four (...)
    """Philox 4x32-10: four 32-bit words, in int64, for each counter of four such words, which need only broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed, seed >> 32
    for _ in range(ROUNDS):
        product0, product1 = c0 * FACTORS[0], c2 * FACTORS[1]
        # Only the low halves of keys, c1 and c3 count, as those of c0 and c2 alone are kept.
        c0 = ((product1 >> 32) ^ (c1 ^ k0)) & LOW_HALF
        c2 = ((product0 >> 32) ^ (c3 ^ k1)) & LOW_HALF
        c1, c3 = product1, product0
        k0, k1 = k0 + KEY_STEPS[0], k1 + KEY_STEPS[1]
    return c0, c1 & LOW_HALF, c2, c3 & LOW_HALF


def counters(tokens: Tensor, columns: int, heads: Tensor) -> Words:  # (...,) x 2 -> four that broadcast to (..., G)
    """The counter of each of the G groups of four columns."""
    groups = torch.arange(-(-columns // 4), device=tokens.device)
    return tokens[..., None], groups, heads[..., None], torch.zeros_like(groups[:1])


def dropped_on_cpu(threshold: int, seed: int, tokens: Array, columns: int, H: int) -> Array:
    """Where bits are below the threshold: (N,) -> (H, N, columns), for each head, token and column."""
    N, G = len(tokens), -(-columns // 4)
    found = np.empty((H, N, G, 4), np.bool_)
    first = np.array([seed & LOW_HALF, seed >> 32], np.uint64)
    keys = (first + np.arange(ROUNDS, dtype=np.uint64)[:, None] * np.array(KEY_STEPS, np.uint64)) & LOW  # (ROUNDS, 2)
    rows = max(1, PIECE // max(1, H * G))
    buffers = np.empty((4, 2, H, min(rows, N), G), np.uint64)
    for start in range(0, N, rows):
        piece = slice(start, start + rows)
        own = tokens[piece].astype(np.uint64)
        _write(own, keys, threshold, buffers[:, :, :, : len(own)], found[:, piece])
    return found.reshape(H, N, 4 * G)[..., :columns]


def _write(tokens: Array, keys: Array, threshold: int, buffers: Array, found: Array) -> None:
    """`dropped_on_cpu` of a piece, (n,) -> (H, n, G, 4), into `found`; buffers: (4, 2, H, n, G)."""
    H, _, G, _ = found.shape
    c0, c2 = tokens[:, None], np.arange(H, dtype=np.uint64)[:, None, None]
    c1, c3 = np.arange(G, dtype=np.uint64), np.zeros(1, np.uint64)
    for k0, k1 in keys[:SMALL_ROUNDS]:
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (product1 >> HALF) ^ c1 ^ k0, product1 & LOW
        c2, c3 = (product0 >> HALF) ^ c3 ^ k1, product0 & LOW
    # c0 and c2; the products of both; and those of the round before, whose low halves are c3 and c1.
    c, crossed, product, last = buffers
    c[0], c[1], last[0], last[1] = c0, c2, c3, c1
    factors = np.reshape(MULTIPLIERS, (2, 1, 1, 1))
    for key in keys[SMALL_ROUNDS:]:
        np.multiply(c, factors, out=product)
        np.right_shift(product, HALF, out=crossed)
        np.bitwise_xor(crossed, last, out=crossed)
        np.bitwise_xor(crossed, key[::-1, None, None, None], out=crossed)
        np.bitwise_and(crossed[::-1], LOW, out=c)
        product, last = last, product
    np.bitwise_and(last, LOW, out=last)
    for i, word in enumerate((c[0], last[1], c[1], last[0])):
        np.less(word, np.uint64(threshold), out=found[..., i])


class Masked(Function):
    """x / (1 − p), or 0 where it is dropped, on a CPU; its gradient is the same of the cotangent.

    Clearing all bits of a number is much faster than torch's choice between two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(dropped)
        ctx.p = p
        y = x / (1.0 - p)
        bits = y.view(INTEGERS[y.dtype])
        rows = max(1, ELEMENTS // max(1, y[:1].numel()))
        for start in range(0, y.shape[0], rows):
            # 0 where it is dropped; elsewhere -1, in which all bits are set.
            kept = dropped[start : start + rows].view(torch.int8).to(bits.dtype).sub_(1)
            bits[start : start + rows].bitwise_and_(kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (dropped,) = ctx.saved_tensors
        dx: Tensor = Masked.apply(dy, dropped, ctx.p)
        return dx, None, None

"""Dropout: in training, set each number to 0 with probability p and scale the others by 1 / (1 − p).

This preserves the expected value. Dropout scales each element, so its vjp is dropout itself, with the same random bits.
The backward pass therefore needs these bits again, and so does a kernel that computes the same in another order. So
they come from a counter-based generator: a pure function of a seed and of the element's place,

    bits(seed, token, column, head) = word (column mod 4) of Philox((token, ⌊column / 4⌋, head, 0), key = seed)

An element is dropped if its 32 bits, as an integer, are below p · 2³². `token` counts the real tokens of the batch, so
the same elements are dropped whether the batch is padded or packed, and in whatever tiles it is computed. In attention
probabilities the token is the query, and the column is the key's position in its sequence.

Source: Dropout (Srivastava et al., 2014), in its "inverted" form (torch.nn.Dropout); Philox 4x32-10 from Parallel
Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011), section 3.3. Twin: Triton's `tl.philox`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .array import Array

PLACES_PER_LAYER = 4  # attention probabilities, attention output, activation, feed-forward output
ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and √3 − 1
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
# Elements processed at a time, so that the arrays in use stay in cache.
PIECE = 65536


def draw_seeds(rng: np.random.Generator, layers: int) -> Array:  # -> (4 L + 2,) uint64
    """One seed for each place where a model of `layers` layers drops: the embeddings, each layer's places, the head.

    Raises TypeError for an `rng` of another type, such as a seed.
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, such as numpy.random.default_rng(0), got {rng!r:.80}")
    return rng.integers(0, 2**64, PLACES_PER_LAYER * layers + 2, np.uint64)


def philox(counter: tuple[Array, Array, Array, Array], seed: Any) -> list[Array]:  # four (...) -> four (...)
    """Philox 4x32-10: four 32-bit words, in uint64 arrays, for each counter of four 32-bit words; `seed` < 2⁶⁴.

    A round multiplies two of the words by constants, and exchanges the high and low halves of the 64-bit products. The
    words of the counter need only broadcast against each other.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = int(seed) & 0xFFFFFFFF, int(seed) >> 32
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (product1 >> HALF) ^ c1 ^ np.uint64(k0), product1 & LOW
        c2, c3 = (product0 >> HALF) ^ c3 ^ np.uint64(k1), product0 & LOW
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def random_bits(seed: Any, tokens: Array, columns: int, heads: Any = 0) -> Array:  # (...,) -> (..., columns) uint32
    """The bits of columns 0 to `columns` - 1, for each token and head; `tokens` and `heads` broadcast to (...)."""
    tokens, heads = np.asarray(tokens)[..., None], np.asarray(heads)[..., None]
    words = philox((tokens, np.arange(-(-columns // 4)), heads, np.zeros(1)), seed)
    bits = np.empty((*np.broadcast_shapes(*(word.shape for word in words)), 4), np.uint32)
    for i, word in enumerate(words):
        bits[..., i] = word
    return bits.reshape(*bits.shape[:-2], -1)[..., :columns]


def dropped(bits: Array, p: float) -> Array:  # (...) uint32 -> (...) bool
    """Whether an element with these bits is dropped."""
    return bits < np.uint64(round(p * 2.0**32))


def dropout(x: Array, p: float, seed: Any, tokens: Array | None = None) -> Array:  # (..., E), (...) -> (..., E)
    """Drop elements of `x` with probability `p`, from 0 to 1; without a seed, an integer below 2⁶⁴, return `x`.

    `tokens` holds the index of each token among the real tokens of the batch; by default they are counted in order.
    Raises ValueError for another `p` or seed, TypeError for a seed that is no integer, such as a generator.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p: expected a number from 0 to 1, got {p}")
    if seed is None or p == 0.0:
        return x
    if not hasattr(seed, "__index__"):
        raise TypeError(f"seed: expected an integer from 0 to 2**64 - 1, got {seed!r:.80}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected an integer from 0 to 2**64 - 1, got {seed}")
    rows = x.reshape(-1, x.shape[-1])
    counted = np.arange(len(rows)) if tokens is None else np.broadcast_to(tokens, x.shape[:-1]).reshape(-1)
    y = np.empty_like(rows)
    step = max(1, PIECE // max(1, x.shape[-1]))
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        y[piece] = masked(rows[piece], random_bits(seed, counted[piece], x.shape[-1]), p)
    return y.reshape(x.shape)


def dropout_vjp(dy: Array, p: float, seed: Any, tokens: Array | None = None) -> Array:  # (..., E), (...) -> (..., E)
    """The gradient of x, if `dy` is that of `dropout(x, p, seed, tokens)`: dropout of `dy`, with the same bits."""
    return dropout(dy, p, seed, tokens)


def masked(x: Array, bits: Array, p: float) -> Array:  # (...), (...) uint32 -> (...)
    """`x` where its bits keep it, divided by 1 − p, and 0 elsewhere."""
    kept = x / (1.0 - p) if p < 1.0 else x
    return np.where(dropped(bits, p), 0.0, kept).astype(x.dtype, copy=False)

"""Hints on what is wrong with an answer.

For functions that round, `ernie_m.kernels.check` finds them: it runs the function on inputs on which common mistakes
differ, and compares the results with those of the mistakes. Here are the mistakes of the functions that only move
numbers, which are told apart in the same way, and hints for answers without numbers to compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ernie_m.kernels.checking.diagnosis import Probe, named
from ernie_m.kernels.checking.guards import poisoned
from ernie_m.kernels.checking.mistakes import Mistakes
from ernie_m.reference.array import Array

PAST_END = "the last block hangs over the end of the array"
OFFSETS = "if it has one, check the offsets, and how far apart two rows are"
# Hints for failures without wrong numbers to compare: a part of the reason, and the hint.
HINTS = {
    "wrote past the end of": f"{PAST_END}: give tl.store a mask; {OFFSETS}",
    "read past the end of": f"{PAST_END}: give tl.load a mask, and `other=`; {OFFSETS}",
    "wrote before the start of": "an offset is negative",
    "read before the start of": "an offset is negative",
    "changed its argument": "do not write to the arguments: store into a new array",
    "it returned float64 for": "cast the result back, if you cast to float64; otherwise look for a np.float64, such as "
    "np.sqrt of a Python number: math.sqrt returns a float",
    "it returned float64, expected": "np.zeros and np.ones return float64 unless you pass a dtype",
    ", expected bool": "a comparison returns booleans",
    "it returned list": "np.stack makes one array of a list of arrays, np.array of a list of numbers",
    "it returned shape": "write the shape next to each line and see where it changes",
    "different results": "something is read before it is written, or two programs write to the same address",
}
# An error of less than this many times what is allowed, if no mistake explains it.
NEARLY = 1000.0
ROUNDED = (
    "nearly right: a step loses digits; look for a small difference of large numbers, the exponential of one that was "
    "rounded while it was large, a number in half precision, or a small constant that is added"
)
NAN = "nan comes from inf - inf, inf / inf, 0 / 0, or memory that was never written"
MATCH = "the numbers are those of a common mistake: "


def explain(reason: str, got: Array | None, ratio: float = math.inf) -> str:
    """The hint for a failure's reason, or "" if there is none. `ratio`: the error, relative to what is allowed."""
    for piece, hint in HINTS.items():
        if piece in reason:
            return hint
    if ratio < NEARLY:
        return ROUNDED
    return NAN if got is not None and np.isnan(got).any() else ""


def telling_masks(seed: int) -> list[Array]:  # -> (B, S) each
    """Masks of rows with lengths that differ, none below 2 and, but for one mask, none full."""
    rng = np.random.default_rng(seed)
    masks = []
    for S, lengths in ((7, [3, 2, 5, 4]), (4, [2, 4, 3])):
        masks.append(np.arange(S) < rng.permutation(lengths)[:, None])
    return masks


def hint_for_moves(
    exercise: str,
    make: Callable[[Array, int], dict[str, Any]],
    truth: Callable[..., Array],
    function: Callable[..., Any],
) -> str:
    """Name the mistake of a function that only moves numbers, or "" if it is none of the known ones.

    make: (mask, columns) -> the function's arguments.  truth: the right function.
    """

    def probe(mask: Array) -> Probe:
        inputs = make(mask, 3)
        exact = truth(**inputs)
        given = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}
        with poisoned([]):
            got = np.asarray(function(*given.values()), np.float64)
        return Probe(inputs, got, exact.astype(np.float64), np.zeros(exact.shape))

    try:
        draws = [[probe(mask) for mask in telling_masks(seed)] for seed in range(3)]
    except (Exception, SystemExit):
        return ""
    if any(probe.got.shape != probe.exact.shape for probes in draws for probe in probes):
        return ""
    found = named(MOVED[exercise], draws)
    return MATCH + found if found else ""


def compared(holds: Callable[[Array, Array, int], Array]) -> Callable[..., Array]:
    """A mask from another comparison: `holds(position, length, S)`."""
    return lambda lengths, S: holds(np.arange(S), lengths[:, None], S)


def taken(positions: Callable[[int, int, int], Any]) -> Callable[..., Array]:
    """`unpad` with other tokens: `positions(b, n, S)` are those of row b, which has n, in the flat (B · S) array."""

    def wrong(x: Array, mask: Array) -> Array:
        (B, S), flat = mask.shape, x.reshape(-1, x.shape[-1])
        lengths = np.count_nonzero(mask, axis=1).tolist()
        found = np.concatenate([np.arange(S * B)[positions(b, n, S)] for b, n in enumerate(lengths)])
        return flat[found]

    return wrong


def put(
    tokens: Callable[[int, int, int], Any],
    fill: float = 0.0,
    places: Callable[[int, int], slice] = lambda n, S: np.s_[:n],
) -> Callable[..., Array]:
    """`pad` with other tokens: `tokens(b, start, n)` are those of row b, which has n, from `start` on in `packed`."""

    def wrong(packed: Array, mask: Array) -> Array:
        padded = np.full((*mask.shape, packed.shape[1]), fill, packed.dtype)
        lengths = np.count_nonzero(mask, axis=1)
        starts = np.cumsum([0, *lengths]).tolist()
        for b, n in enumerate(lengths.tolist()):
            chosen = np.minimum(tokens(b, starts[b], n), len(packed) - 1)
            padded[b, places(n, mask.shape[1])] = packed[chosen]
        return padded

    return wrong


def overwritten(x: Array, mask: Array) -> Array:
    """Every row of `unpad` is written to the start of the result."""
    found = np.zeros((np.count_nonzero(mask), x.shape[-1]), x.dtype)
    for row, kept in zip(x, mask, strict=True):
        found[: np.count_nonzero(kept)] = row[kept]
    return found


def put_by_position(packed: Array, mask: Array) -> Array:
    """Every row's first token, then every row's second."""
    turned = np.zeros((mask.shape[1], mask.shape[0], packed.shape[1]), packed.dtype)
    turned[mask.T] = packed
    return turned.swapaxes(0, 1)


def put_flat(packed: Array, mask: Array) -> Array:
    """All tokens first, all padding last."""
    flat = np.zeros((mask.size, packed.shape[1]), packed.dtype)
    flat[: len(packed)] = packed
    return flat.reshape(*mask.shape, -1)


def unread(packed: Array, mask: Array) -> Array:
    """The places of padding read on in `packed`."""
    starts = np.cumsum([0, *np.count_nonzero(mask, axis=1)])[:-1]
    return packed[np.minimum(starts[:, None] + np.arange(mask.shape[1]), len(packed) - 1)]


def _own(b: int, start: int, n: int) -> Array:
    return np.arange(start, start + n)


MOVED: dict[str, Mistakes] = {
    "mask_from_lengths": {
        "position <= length, one too many; positions count from 0, so it is <": [compared(lambda s, n, S: s <= n)],
        "one too few: the last token is left out; it is position < length": [
            compared(lambda s, n, S: s < n - 1),
        ],
        "positions count from 0: the first token is left out": [
            compared(lambda s, n, S: (s > 0) & (s <= n)),
            compared(lambda s, n, S: (s > 0) & (s < n)),
        ],
        "True and False are swapped": [
            compared(lambda s, n, S: s >= n),
        ],
        "True and False are swapped, and the comparison is off by one: it is position < length": [
            compared(lambda s, n, S: s > n),
            compared(lambda s, n, S: s >= n - 1),
        ],
        "True at the end of each row; tokens come first": [compared(lambda s, n, S: s >= S - n)],
        "every row has the length of the first one": [compared(lambda s, n, S: (s < n[0]) & (n == n))],
        "every row has the length of the longest one": [compared(lambda s, n, S: (s < n.max()) & (n == n))],
        "every position is True: the lengths are not read": [compared(lambda s, n, S: (s < S) & (n == n))],
        "only the last token of each row is True": [compared(lambda s, n, S: s == n - 1)],
    },
    "unpad": {
        "every row's first token, then every row's second; rows come one after another": [
            lambda x, mask: x.swapaxes(0, 1)[mask.T]
        ],
        "every row reads the first one: nothing moves on with the row": [taken(lambda b, n, S: np.s_[:n])],
        "every row is written to the start of the result: nothing moves on with the row": [overwritten],
        "the position in the row is off by one: the first token is left out": [
            taken(lambda b, n, S: np.minimum(np.arange(b * S + 1, b * S + n + 1), b * S + S - 1))
        ],
        "the tokens are read from the end of each row; they are at its start": [
            taken(lambda b, n, S: np.s_[b * S + S - n : b * S + S])
        ],
        "the mask is not read: these are the first T tokens, padding or not": [
            lambda x, mask: x.reshape(-1, x.shape[-1])[: np.count_nonzero(mask)]
        ],
    },
    "pad": {
        "padding of ones; padding is 0": [put(_own, 1)],
        "nothing is written to the padding, or nan; padding is 0, and np.empty sets no number": [put(_own, math.nan)],
        "padding of further tokens; padding is 0": [unread],
        "tokens put back position by position; rows come one after another": [put_by_position],
        "every row starts again at the first token: nothing moves on with the row": [
            put(lambda b, start, n: np.arange(n)),
        ],
        "every place gets the first token: nothing moves on": [put(lambda b, start, n: np.zeros(n, int))],
        "every place of a row gets its first token: nothing moves on within the row": [
            put(lambda b, start, n: np.full(n, start))
        ],
        "each row moves on by one token; it should be by its length": [put(lambda b, start, n: np.arange(b, b + n))],
        "tokens are put at the end of each row; they belong at its start": [
            put(_own, places=lambda n, S: np.s_[S - n :])
        ],
        "all tokens first, all padding last: the mask is not read": [put_flat],
    },
}

"""Inputs on which mistakes show, each in its own way: what `diagnosis` runs a failing function on.

At least 3 columns, heads and rows; sequences of different lengths, none of one token; numbers that are all different
and neither 0 nor 1; an ε as large as the variance. A matrix is square where swapped strides shall stay inside it, and
some inputs are extreme: a large mean, for variances in one pass; large scores, for exponentials that overflow; the tail
of GELU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ernie_m.reference.array import Array

from .drawing import LOW, pair_groups, sequence_ends
from .formats import Format
from .operation import Inputs

E, H, D = 7, 3, 16
EPS = 0.7
# A number of columns that is no power of two, and the width of rows whose mean is large.
WIDE = 67
# The size of queries and keys whose scores overflow, and the slack there.
LARGE, SLACK = 16.0, 0.01


@dataclass(frozen=True)
class Telling:
    """The arguments of one call. `slack`: what results may be off by besides the bound, relative to the largest number.

    With scores in the hundreds, the rounding errors of a wrong softmax are far larger than those of a right one; there,
    only overflow is looked for.
    """

    inputs: Inputs
    slack: float = 0.0


class Drawing:
    """Draws arrays of a format, from a seed."""

    def __init__(self, format: Format, seed: int) -> None:
        self.format, self.rng = format, np.random.default_rng(seed)

    def spread(self, *shape: int, low: float = -2.6, high: float = 3.7) -> Array:
        """Numbers that are all different, evenly spread in an interval, in random order."""
        n = int(np.prod(shape))
        return self.format.round(low + (high - low) * (self.rng.permutation(n).reshape(shape) + 0.37) / n)

    def normal(self, *shape: int, size: float = 1.0) -> Array:
        """Normally distributed numbers, none 0 or 1."""
        values = self.format.round(size * self.rng.standard_normal(shape))
        return np.where(np.isin(values, (0.0, 1.0)), 1.25, values)

    def peaks(self, rows: int) -> Array:  # (rows, WIDE)
        """Rows of equal large numbers with one column that is 8 larger: the mean is 500 to 1,000 spreads."""
        means = 4.0 * self.rng.integers(130, 250, (rows, 1))
        return np.asarray(means + 8.0 * (np.arange(WIDE) == self.rng.integers(0, WIDE, (rows, 1))))

    def affine(self, columns: int) -> Inputs:
        """γ and β."""
        return {"gamma": self.spread(columns, low=0.3, high=2.9), "beta": self.spread(columns, low=-2.2, high=1.9)}


def gelu(new: Drawing) -> Iterator[Inputs | Telling]:
    """A square around 0, and one in the tail."""
    yield {"x": new.spread(E, E, low=-4.3, high=4.1)}
    yield {"x": new.spread(E, E, low=-8.9, high=-6.1)}


def bias_gelu(new: Drawing) -> Iterator[Inputs | Telling]:
    """A square around 0, and one in the tail, each with a bias."""
    yield {"x": new.spread(E, E, low=-3.1, high=3.3), "bias": new.spread(E, low=-1.9, high=1.3)}
    yield {"x": new.spread(E, E, low=-7.1, high=-5.8), "bias": new.spread(E, low=-1.6, high=-0.4)}


def softmax(new: Drawing) -> Iterator[Inputs | Telling]:
    """A square, and three rows of scores that overflow without their maximum; the second is far below 0."""
    yield {"scores": new.spread(E, E)}
    means = np.array([[600.0], [-LOW], [600.0]])
    yield Telling({"scores": new.format.round(means + new.normal(3, E, size=30.0))}, SLACK)


def layer_norm(new: Drawing) -> Iterator[Inputs | Telling]:
    """A square with a mean, and rows whose mean is large."""
    yield {"x": new.spread(E, E, low=-1.2, high=5.3), **new.affine(E), "eps": EPS}
    yield {"x": new.peaks(8), **new.affine(WIDE), "eps": 1e-5}


def add_layer_norm(new: Drawing) -> Iterator[Inputs | Telling]:
    """A square with a mean, and rows whose mean is large, each as a sum of three."""
    yield {
        "x": new.spread(E, E, low=-1.2, high=5.3),
        "bias": new.spread(E, low=-1.3, high=2.1),
        "residual": new.spread(E, E, low=-1.7, high=2.3),
        **new.affine(E),
        "eps": EPS,
    }
    yield {
        "x": new.peaks(8),
        "bias": np.full(WIDE, 12.0),
        "residual": np.full((8, WIDE), -20.0),
        **new.affine(WIDE),
        "eps": 1e-5,
    }


def embed(new: Drawing) -> Iterator[Inputs | Telling]:
    """Tables with a mean, and tables in which the mean of a sum is large."""
    # No position is its id, and none is at either end of its table.
    ids = {"input_ids": new.rng.permutation(np.arange(6, 13)), "position_ids": new.rng.permutation(E)}
    tables = {"word": new.spread(14, E, low=-1.2, high=5.3), "position": new.spread(14, E, low=-1.7, high=2.3)}
    yield {**ids, **tables, **new.affine(E), "eps": EPS}
    flat = {"word": new.peaks(14), "position": np.full((14, WIDE), -20.0)}
    yield {**ids, **flat, **new.affine(WIDE), "eps": 1e-5}


def attention_head(new: Drawing) -> Iterator[Inputs | Telling]:
    """A square; with padding, for any block of a power of two; several blocks of keys; scores that overflow."""
    for S, size in ((D, 1.5), (9, 1.5), (150, 2.2), (5, LARGE)):
        inputs = {name: new.normal(S, D, size=1.0 if name == "v" else size) for name in "qkv"}
        yield Telling(inputs, SLACK if size == LARGE else 0.0)


def packed_attention(new: Drawing) -> Iterator[Inputs | Telling]:
    """Ragged sequences, qkv (T, 3, H, D): a few short ones, one longer than a block, and large values."""
    for lengths, heads, size in (((5, 3, 9), H, 1.5), ((150,), 1, 2.2), ((4, 2), 1, LARGE)):
        T = sum(lengths)
        parts = [new.normal(T, heads, D, size=s) for s in (size, size, 1.0)]
        inputs = {"qkv": np.stack(parts, axis=1), "cu_seqlens": sequence_ends(lengths)}
        yield Telling(inputs, SLACK if size == LARGE else 0.0)


def first_token_attention(new: Drawing) -> Iterator[Inputs | Telling]:
    """The same for queries of first tokens, q (B, H, D) and kv (T, 2, H, D)."""
    for lengths, heads, size in (((5, 3, 9, 2), H, 1.5), ((150, 140, 160, 135), 1, 2.2), ((4, 2), 1, LARGE)):
        T, B = sum(lengths), len(lengths)
        q, k, v = (new.normal(n, heads, D, size=s) for n, s in ((B, size), (T, size), (T, 1.0)))
        inputs = {"q": q, "kv": np.stack([k, v], axis=1), "cu_seqlens": sequence_ends(lengths)}
        yield Telling(inputs, SLACK if size == LARGE else 0.0)


def group_attention(new: Drawing) -> Iterator[Inputs | Telling]:
    """Two pairs, whose text sees its own side, and one whose text sees the other."""
    for pairs, crossed in (((5, 3, 4, 2), (3, 2, 6, 4)), False), (((6, 2, 9, 3),), True):
        T = int(np.sum(pairs))
        parts = [new.normal(T, H, D, size=size) for size in (1.5, 1.5, 1.0)]
        yield {"qkv": np.stack(parts, axis=1), "groups": pair_groups(pairs, crossed)}


TELLING: dict[str, Callable[[Drawing], Iterator[Inputs | Telling]]] = {
    "gelu": gelu,
    "bias_gelu": bias_gelu,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "add_layer_norm": add_layer_norm,
    "embed": embed,
    "attention_head": attention_head,
    "packed_attention": packed_attention,
    "group_attention": group_attention,
    "first_token_attention": first_token_attention,
}


def telling(op: str, format: Format, seed: int) -> list[Telling]:
    """Telling inputs of an operation of the table."""
    return [x if isinstance(x, Telling) else Telling(x) for x in TELLING[op](Drawing(format, seed))]

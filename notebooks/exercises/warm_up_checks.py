"""The Triton warm-ups by their definitions, and the mistakes that people make in them, for `own`.

A place that a wrong kernel does not write holds nan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from own import Own

from ernie_m.kernels.checking.letters import Made, drawn
from ernie_m.kernels.checking.mistakes import LAST_ROW, ROW_FIRST, Form, at_each_size, without
from ernie_m.kernels.checking.operation import Inputs, Operation, one_row
from ernie_m.reference.array import Array

# The blocks of the launchers that are given: of `add_constant`, and the rows and columns of `add_bias`.
BLOCK, ROWS, COLUMNS = 8, 4, 8
TILES = (16, 32)
FIRST_ONLY = "only the first number is written: the address of the result does not move with tl.program_id"
SWAPPED = "tl.program_id(0) and tl.program_id(1) are swapped: the first counts blocks of rows"
LAST_COLUMN = "the mask is off by one: the last column is left out"


def some_rows(rng: Any, N: int, C: int) -> Array:  # -> (N, C)
    """Small whole numbers and halves; every second row is negative, and every fourth below -2^100."""
    small = rng.integers(-8, 9, (N, C)) / 2 - 5.0 * (np.arange(N) % 2 == 0)[:, None]
    return np.where((np.arange(N) % 4 == 3)[:, None], (small - 5.0) * 2.0**100, small)


def some_lengths(rng: Any, N: int, C: int) -> Array:  # -> (N,)
    return rng.integers(1, C + 1, N)


def in_range(lengths: Array, C: int) -> Array:  # (N,) -> (N, C)
    return np.arange(C) < lengths[:, None]


def masked_max(x: Array, lengths: Array) -> Array:  # (N, C), (N,) -> (N,)
    """The largest of the first `lengths[i]` numbers of row i."""
    return np.where(in_range(lengths, x.shape[1]), x, -np.inf).max(axis=1, initial=-np.inf)


def exactly(format: Any, x: Array, lengths: Array) -> Array:
    """The bound on the error of a maximum: it is one of the numbers."""
    return np.zeros(len(x))


def one_row_of_all(inputs: Inputs, index: tuple[int, ...]) -> Inputs:
    return {name: value[index[0] : index[0] + 1] for name, value in inputs.items()}


def with_lengths(other: Callable[[Array, int], Array]) -> Form:
    """`masked_max` with other lengths: `other(lengths, C)`."""
    return lambda x, lengths: masked_max(x, other(lengths, x.shape[1]))


def masked_with(fill: float) -> list[Form]:
    """Lanes that are masked off hold `fill`, in a block of each size."""

    def form(size: int, x: Array, lengths: Array) -> Array:
        found = masked_max(x, lengths)
        return np.where(lengths < size, np.maximum(found, fill), found)

    return at_each_size(form, lambda x, lengths: x.shape[1])


def first_only(truth: Form) -> list[Form]:
    """Every program writes to place 0; one of them is the last."""
    return [lambda at=at, **inputs: without(np.roll(truth(**inputs), -at), slice(1, None)) for at in (0, -1)]


def last_tile(tile: int) -> Form:
    def wrong(a: Array, b: Array) -> Array:
        start = (a.shape[1] - 1) // tile * tile
        return a[:, start:] @ b[start:]

    return wrong


def swapped(y: Array, rows: int, columns: int) -> Array:
    """What is written of y if the first axis of the grid counts blocks of columns: it has as many programs as there are
    blocks of rows. rows, columns: those of a block."""
    last_row, last_column = -(-y.shape[1] // columns) * rows, -(-len(y) // rows) * columns
    return without(without(y, slice(last_row, None)), slice(None), slice(last_column, None))


def square(form: Form) -> Form:
    """A mistake that keeps the shape of square matrices only; about others it says nothing."""
    return lambda a, b: form(a, b) if a.shape == b.shape and a.shape[0] == a.shape[1] else None


WARM_UPS: dict[str, Own] = {
    "add_constant": Own(
        Operation("f(x, c)", drawn(x="N", c=(3.0, -0.5)).sized(N=(1, 7, 8, 9, 20)), truth=lambda x, c: x + c),
        {
            "every program works on the first block: the offsets do not move with tl.program_id": [
                lambda x, c: without(x + c, slice(BLOCK, None))
            ],
            "the blocks overlap: they start at program_id · BLOCK, not at program_id": [
                lambda x, c: without(x + c, slice(-(-len(x) // BLOCK) + BLOCK - 1, None))
            ],
            "every program reads the first block: the offsets of tl.load do not move with tl.program_id": [
                lambda x, c: x[np.arange(len(x)) % BLOCK] + c
            ],
            "the mask is off by one: the last number is left out": [lambda x, c: without(x + c, -1)],
            "the numbers are multiplied by c; add it": [lambda x, c: x * c],
            "the numbers are copied: c is not added": [lambda x, c: x],
        },
        telling=({"N": 20}, {"N": 33}),
        small={"N": 3},
    ),
    "add_bias": Own(
        Operation(
            "f(x, bias)",
            drawn(x="N E", bias="E").sized(N=(1, 3, 4, 5, 9), E=(1, 7, 8, 9, 17)),
            truth=lambda x, bias: x + bias,
            crop=one_row,
        ),
        {
            "bias is indexed by the row; it has one number for each column": [
                lambda x, bias: x + bias[: len(x), None] if len(x) <= len(bias) else None
            ],
            "x is copied: the bias is not added": [lambda x, bias: x],
            "the bias multiplies; add it": [lambda x, bias: x * bias],
            "every column gets the first number of the bias": [lambda x, bias: x + bias[0]],
            LAST_COLUMN: [lambda x, bias: without(x + bias, ..., -1)],
            LAST_ROW: [lambda x, bias: without(x + bias, -1)],
            SWAPPED: [lambda x, bias: swapped(x + bias, ROWS, COLUMNS)],
            "every program takes the first block of columns: tl.program_id(1) is not used": [
                lambda x, bias: without(x + bias, slice(None), slice(COLUMNS, None))
            ],
            "every program takes the first block of rows: tl.program_id(0) is not used": [
                lambda x, bias: without(x + bias, slice(ROWS, None))
            ],
            "only one block is written: tl.program_id is not used": [
                lambda x, bias: without(without(x + bias, slice(ROWS, None)), slice(None), slice(COLUMNS, None))
            ],
            "every block adds the start of the bias: its offsets do not move with tl.program_id(1)": [
                lambda x, bias: x + bias[np.arange(len(bias)) % COLUMNS]
            ],
        },
        telling=({"N": 6, "E": 19}, {"N": 11, "E": 13}),
        small={"N": 2, "E": 3},
    ),
    "row_sum": Own(
        Operation(
            "f(x)",
            drawn(x="N E").sized(N=(1, 2, 5), E=(1, 3, 8, 9, 33)),
            truth=lambda x: np.sum(x, axis=1),
            crop=one_row,
        ),
        {
            ROW_FIRST: [lambda x: np.full(len(x), x[0].sum())],
            FIRST_ONLY: first_only(lambda x: x.sum(axis=1)),
            "the sum is divided by the number of columns: that is the mean": [lambda x: x.mean(axis=1)],
            "this is the largest number of each row, not the sum": [lambda x: x.max(axis=1)],
            "these are sums of columns: the numbers of a row follow one another in memory": [
                lambda x: x.reshape(x.shape[::-1]).sum(axis=0)
            ],
            "every row gets the sum of all rows": [lambda x: np.full(len(x), x.sum())],
            LAST_COLUMN: [lambda x: x[:, :-1].sum(axis=1)],
            "the mask is off by one: the first column is left out": [lambda x: x[:, 1:].sum(axis=1)],
            "masked lanes count as -inf: pass other=0.0": [lambda x: np.full(len(x), -np.inf)],
            "masked lanes count as 1: pass other=0.0": at_each_size(
                lambda size, x: x.sum(axis=1) + size - x.shape[1], lambda x: x.shape[1]
            ),
        },
        telling=({"N": 4, "E": 13}, {"N": 5, "E": 5}),
        small={"N": 2, "E": 3},
    ),
    "masked_max": Own(
        Operation(
            "f(x, lengths)",
            drawn(x=Made("N C", some_rows), lengths=Made("N C", some_lengths)).sized(N=(1, 2, 5), C=(1, 3, 8, 9, 33)),
            truth=masked_max,
            bound=exactly,
            crop=one_row_of_all,
        ),
        {
            "lanes that are masked off hold 0, which is the largest number of a negative row; they must be -inf": (
                masked_with(0.0)
            ),
            "lanes that are masked off hold a number that is not small enough; they must be -inf": [
                form for power in range(1, 31) for form in masked_with(-(10.0**power))
            ],
            FIRST_ONLY: first_only(masked_max),
            "lengths is not read: this is the largest number of the whole row": [
                with_lengths(lambda n, C: np.full(len(n), C))
            ],
            "one number too many: it is column < length": [with_lengths(lambda n, C: np.minimum(n + 1, C))],
            "one number too few: it is column < length": [with_lengths(lambda n, C: n - 1)],
            "every row has the length of the first one: the address of the length does not move with tl.program_id": [
                with_lengths(lambda n, C: np.full(len(n), n[0]))
            ],
            ROW_FIRST: [lambda x, lengths: masked_max(np.broadcast_to(x[0], x.shape), lengths)],
            "this is the smallest number": [lambda x, lengths: -masked_max(-x, lengths)],
            "this is the last number in range, not the largest": [lambda x, lengths: x[np.arange(len(x)), lengths - 1]],
            "this is the place of the largest number": [
                lambda x, lengths: np.where(in_range(lengths, x.shape[1]), x, -np.inf).argmax(axis=1) * 1.0
            ],
            "this is the largest magnitude": [lambda x, lengths: masked_max(np.abs(x), lengths)],
        },
        telling=({"N": 9, "C": 3}, {"N": 9, "C": 5}),
        small={"N": 3, "C": 4},
    ),
    "matmul": Own(
        Operation(
            "f(a, b)",
            drawn(a="M K", b="K N").sized(M=(1, 17, 33), K=(1, 17, 33), N=(1, 17, 33)),
            truth=lambda a, b: a @ b,
        ),
        {
            "only the first block of K is summed: the loop ends too early, or there is none": [
                lambda a, b, tile=tile: a[:, :tile] @ b[:tile] for tile in TILES
            ],
            "only the last block of K is left: add to the accumulator, do not replace it": [
                last_tile(tile) for tile in TILES
            ],
            "every step of the loop reads the first block of K: the offsets do not move with the loop": [
                lambda a, b, tile=tile: a[:, np.arange(a.shape[1]) % tile] @ b[np.arange(len(b)) % tile]
                for tile in TILES
            ],
            "b is transposed": [square(lambda a, b: a @ b.T)],
            "a is transposed": [square(lambda a, b: a.T @ b)],
            "the result is transposed": [square(lambda a, b: (a @ b).T)],
            "every program takes the first block of columns: tl.program_id(1) is not used": [
                lambda a, b, tile=tile: without(a @ b, slice(None), slice(tile, None)) for tile in TILES
            ],
            "every program takes the first block of rows: tl.program_id(0) is not used": [
                lambda a, b, tile=tile: without(a @ b, slice(tile, None)) for tile in TILES
            ],
            SWAPPED: [lambda a, b, tile=tile: swapped(a @ b, tile, tile) for tile in TILES],
        },
        telling=({"M": 35, "K": 35, "N": 35}, {"M": 40, "K": 40, "N": 40}, {"M": 20, "K": 20, "N": 70}),
        small={"M": 2, "K": 3, "N": 2},
    ),
}
WARM_UPS = {name: replace(own, operation=replace(own.operation, name=name)) for name, own in WARM_UPS.items()}

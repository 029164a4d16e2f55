"""How the inputs of each operation are made at given sizes: the fixed cases of `coverage`, and how to judge few rows.

An operation whose inputs are rows, or are declared by letters (`letters.drawn`), needs nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .attention_inputs import (
    first,
    first_vjp,
    groups,
    own_groups,
    own_sequences,
    own_tokens,
    packed,
    take,
    with_cotangent,
)
from .drawing import EPS, Rows, drawn_rows, without_beta
from .letters import Drawn
from .loss_inputs import loss_vjp
from .operation import Inputs, Normal, Operation, one_number, one_row
from .operations import find
from .virtual import ENDS

# (inputs, rows of the result) -> inputs with those rows alone, and where the rows are in their result.
Narrow = Callable[[Inputs, Array], tuple[Inputs, Array]]

# How many programs of a launch run: of those with many keys, and the first, the last and 64 drawn ones.
FEW, SOME = 4, 66
# When a case is tried: always; with `quick` in one dtype only; not with `quick`; with `thorough` only.
ALWAYS, ONCE, FULL, THOROUGH = range(4)
MANY = 70_000
PAST_INT32 = 2**31
# (rows, columns, when): a square, in which rows and columns can be confused without an error; sizes of the models, one
# past 2,048 in each direction, and some that are no powers of two. 2,176 rows are a multiple of 128: whole blocks.
ROW_SIZES = (
    *((129, 129, ALWAYS), (3, 768, ALWAYS), (2, 1024, ALWAYS), (2, 3072, ALWAYS), (2, 4096, ALWAYS)),
    *((2, 2500, ALWAYS), (2176, 33, FULL), (64, 768, THOROUGH), (64, 4096, THOROUGH), (3, 5120, THOROUGH)),
    *((3, 8193, THOROUGH), (2050, 768, THOROUGH)),
)
# (lengths of sequences, heads, head size, most programs that run unless `thorough`, when). Where a length is the head
# size, the two can be confused without an error; three are equal, as in a batch without padding, with an odd number of
# heads.
Sizes = tuple[tuple[tuple[int, ...], int, int, "int | None", int], ...]
SEQUENCES: Sizes = (
    ((1, 33), 12, 64, None, ALWAYS),
    ((65, 129, 16, 1), 1, 16, None, ALWAYS),
    ((17,) * 3, 3, 128, None, ALWAYS),
    ((17,), 16, 64, None, ONCE),
    ((512,), 1, 64, FEW, ONCE),
    ((2050,), 1, 16, FEW, FULL),
    ((1, 2) * 1030, 1, 16, SOME, FULL),
    ((512, 1, 300), 12, 64, None, THOROUGH),
    ((65, 512), 16, 64, None, THOROUGH),
    ((2050, 3), 2, 128, None, THOROUGH),
)
# The same for groups: fewer, because their kernels have the same blocks as those for sequences.
GROUPS: Sizes = (
    ((65, 16, 1), 3, 16, None, ALWAYS),
    ((17, 3), 12, 64, None, ONCE),
    ((17,), 16, 64, None, FULL),
    ((512,), 1, 64, FEW, FULL),
    ((2050,), 1, 16, FEW, FULL),
    # Results of many keys have a wide bound.
    ((33,) * 63, 1, 16, SOME, FULL),
    ((512, 1, 300), 12, 128, None, THOROUGH),
)


@dataclass(frozen=True)
class Family:
    """How inputs of one operation are made: at a small size, and at fixed large ones. `normal` draws the numbers.

    large: (normal, when) -> the cases for these times, and the most programs to run.
    many: 70,000 rows.  past_int32: more than 2³¹ numbers.  Both are None where rows are not independent.
    alone: of attention, sequences of one token; of a loss, one word.
    """

    small: Callable[[Normal], Inputs]
    large: Callable[[Normal, Sequence[int]], Iterator[tuple[Inputs, int | None]]]
    many: Callable[[Normal], Inputs] | None = None
    past_int32: Callable[[Normal], Inputs] | None = None
    narrow: Narrow | None = None
    alone: Callable[[Normal], Inputs] | None = None


def _rows(
    make: Callable[[Normal, int, int], Inputs],
    by_row: Callable[[str, Any], bool] | None,
    programs: int | None = SOME,
) -> Family:
    """For operations on (rows, columns). by_row: whether an argument has a number of rows; None: rows depend on others.

    programs: the most that run of each launch; None: all, where one launch reads what another wrote.
    """

    def large(normal: Normal, times: Sequence[int]) -> Iterator[tuple[Inputs, int | None]]:
        for rows, columns, when in ROW_SIZES:
            if when in times:
                yield make(normal, rows, columns), None if THOROUGH in times else programs

    found = Family(lambda normal: make(normal, 5, 65), large)
    if by_row is None:
        return found

    def narrow(inputs: Inputs, rows: Array) -> tuple[Inputs, Array]:
        kept = {name: take(value, rows) if by_row(name, value) else value for name, value in inputs.items()}
        return kept, np.arange(rows.size)

    return replace(
        found,
        many=lambda normal: make(normal, MANY, 17),
        past_int32=lambda normal: make(normal, PAST_INT32 // 768 + ENDS, 768),
        narrow=narrow,
    )


def _embedding(normal: Normal, rows: int, columns: int) -> Inputs:
    rng = np.random.default_rng(rows)
    # Of 70,000 words, some ids do not fit in 16 bits.
    V, P = MANY if rows == MANY else 300, 514
    tables = {"word": normal(V, columns), "position": normal(P, columns)}
    ids = {"input_ids": rng.integers(0, V, rows), "position_ids": rng.integers(0, P - 2, rows)}
    # The rows in the middle of the tables, in which `special` puts its values, are read.
    ids["input_ids"][0], ids["position_ids"][0] = V // 2, P // 2 - 2
    return {**ids, **tables, "gamma": normal(columns), "beta": normal(columns), "eps": EPS}


def _embedding_vjp(normal: Normal, rows: int, columns: int) -> Inputs:
    return {"dy": normal(rows, columns), **without_beta(_embedding(normal, rows, columns))}


def _dropped(operation: Rows) -> Callable[[Normal, int, int], Inputs]:
    """With dropout: the arguments of an operation on rows, and then what dropout takes."""

    def make(normal: Normal, rows: int, columns: int) -> Inputs:
        tokens = np.random.default_rng(rows).integers(0, 2**20, rows)
        return {**operation.at(normal, rows, columns), "p": 0.1, "seed": 2**64 - 59, "tokens": tokens}

    return make


def _sequences(
    make: Callable[..., Inputs], sizes: Sizes = SEQUENCES, narrow: Narrow | None = None, parts: int = 3
) -> Family:
    """For attention. narrow: None where one launch reads what another wrote; then all programs run.

    parts: how many vectors a token has for each head in the largest array.
    """

    def large(normal: Normal, times: Sequence[int]) -> Iterator[tuple[Inputs, int | None]]:
        for lengths, heads, size, programs, when in sizes:
            if when in times:
                every = narrow is None or THOROUGH in times
                yield make(normal, lengths, heads, size), None if every else programs

    found = Family(
        small=lambda normal: make(normal, (0, 3, 33), 2, 32),
        large=large,
        alone=lambda normal: make(normal, (1,) * 5, 2, 16),
    )
    if narrow is None:
        return found
    # Past 2³¹ numbers by several sequences of 64, so that the last one starts there.
    count = PAST_INT32 // (parts * 12 * 64 * 64) + 4
    return replace(
        found,
        many=lambda normal: make(normal, np.where(np.arange(MANY) % 7, 1, 2), 1, 16),
        past_int32=lambda normal: make(normal, np.full(count, 64), 12, 64),
        narrow=narrow,
    )


# (rows, words, columns, when): more words than a block of the kernel, and than the table's gradient is added up for.
LOSSES = (
    *((129, 129, 129, ALWAYS), (3, 1000, 768, ALWAYS), (2, 300, 3072, ALWAYS), (2, 4096, 1024, ALWAYS)),
    *((2, 4097, 16, ALWAYS), (7, 20_000, 16, ONCE), (2176, 33, 16, FULL), (64, 50_021, 64, THOROUGH)),
)


def _loss(normal: Normal, times: Sequence[int]) -> Iterator[tuple[Inputs, int | None]]:
    for rows, words, columns, when in LOSSES:
        if when in times:
            yield loss_vjp(normal, rows, words, columns), None


# (keys, head size, when).
HEADS = ((33, 128, ALWAYS), (64, 64, ALWAYS), (512, 64, ONCE), (2050, 16, FULL), (2050, 128, THOROUGH))


def _head(normal: Normal, times: Sequence[int]) -> Iterator[tuple[Inputs, int | None]]:
    for keys, size, when in HEADS:
        if when in times:
            yield {name: normal(keys, size) for name in "qkv"}, None if THOROUGH in times or keys < 512 else FEW


FAMILIES = {
    "embed": _rows(_embedding, lambda name, value: name.endswith("_ids")),
    "embed_vjp": _rows(_embedding_vjp, None, None),
    # The interpreter takes 20 ms for the bits of a program.
    "dropout_vjp": _rows(_dropped(drawn_rows(dy=2)), None, FEW),
    "dropped_layer_norm_vjp": _rows(_dropped(drawn_rows(dy=2, x=2, bias=1, residual=2, gamma=1, eps=0)), None, None),
    "packed_attention": _sequences(packed, narrow=own_tokens),
    "first_token_attention": _sequences(first, narrow=own_sequences, parts=2),
    "group_attention": _sequences(groups, GROUPS, own_groups),
    "group_attention_vjp": _sequences(with_cotangent(groups), GROUPS),
    "packed_attention_vjp": _sequences(with_cotangent(packed)),
    "first_token_attention_vjp": _sequences(first_vjp),
    # In the small one each row has a label: in one without, nan times 0 may be 0 or nan.
    "linear_cross_entropy_vjp": Family(
        lambda normal: {**loss_vjp(normal, 5, 65, 16), "labels": 16 * np.arange(5)},
        _loss,
        alone=lambda normal: loss_vjp(normal, 5, 1, 16),
    ),
    "attention_head": Family(
        lambda normal: {name: normal(33, 32) for name in "qkv"},
        _head,
        alone=lambda normal: {name: normal(1, 16) for name in "qkv"},
    ),
}


def family(op: str | Operation) -> Family | None:
    """How to make the inputs of an operation; None if nothing is known about their sizes."""
    operation = find(op)
    if isinstance(op, str) and op in FAMILIES:
        return FAMILIES[op]
    by_row = (lambda name, value: np.ndim(value) == 2) if operation.crop in (one_row, one_number) else None
    if isinstance(operation.draw, Rows):
        return _rows(operation.draw.at, by_row, None if operation.results else SOME)
    if not isinstance(operation.draw, Drawn):
        return None
    if not operation.draw.letters or operation.draw.letters[0] in operation.draw.last:
        by_row = None
    found = _rows(_by_letters(operation.draw), by_row)
    # Only floats can be virtual.
    floats = all(isinstance(spec, (str, tuple)) for spec in operation.draw.arguments.values())
    return found if floats else replace(found, past_int32=None)


def _by_letters(draw: Drawn) -> Callable[[Normal, int, int], Inputs]:
    """Inputs declared by letters: the last axes are columns, the first letter rows; sizes that are given stay."""

    def make(normal: Normal, rows: int, columns: int) -> Inputs:
        sizes = dict.fromkeys(draw.last, columns)
        sizes |= {letter: rows for letter in draw.letters[:1] if letter not in draw.last}
        return draw.sized(**{letter: n for letter, n in sizes.items() if letter not in draw.sizes}).fixed(normal)

    return make

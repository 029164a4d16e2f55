"""The fixed cases that every check tries besides drawn inputs: few, but always the same ones.

Drawn inputs are small, and real models are not. So each operation is also called with the sizes of the base and the
large model and beyond, with arguments that are not contiguous, with special values, and with so many rows that a grid
or an offset in 32 bits no longer fits.

    sizes      768, 1,024, 3,072 and 4,096 columns, 12 and 16 heads, 512 keys, and more than 2,048 in each direction
    launches   70,000 rows, and more than 2³¹ numbers; only the first, the last and a few drawn programs run, and what
               the others would write is not judged (`watching`). Without a kernel, 70,000 rows are judged in full
    layouts    offset, padded, strided and transposed views of one argument at a time; an error from the function that
               says it wants contiguous ones counts as an answer
    values     `special`

More than 2³¹ numbers take almost no memory (`virtual`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .families import FEW, MANY, SOME, Narrow, family
from .formats import FORMATS
from .guards import LAYOUTS, strides_of
from .operation import Inputs, Normal, Operation
from .operations import Case, find
from .virtual import virtual


@dataclass(frozen=True)
class Trial(Case):
    """A fixed case. layouts: how arguments lie in memory, if not contiguously.

    programs: the most programs of each launch that run in the interpreter; `narrow` helps to judge those alone.
    kind: "" or, for `special` values, how results are compared: "positions" of NaN and infinity, or "signs" of zeros.
    """

    layouts: Mapping[str, str] = field(default_factory=dict)
    programs: int | None = None
    narrow: Narrow | None = None
    kind: str = ""


def rounded(op: str | Operation, dtype: str, inputs: Inputs, origin: str, **more: Any) -> Trial:
    """A trial with these inputs, floats rounded to the format. Virtual arrays have the dtype already."""
    format = FORMATS[dtype]
    values = {n: format.round(x) if getattr(x, "dtype", None) == np.float64 else x for n, x in inputs.items()}
    return Trial(find(op).name, dtype, values, origin, None if isinstance(op, str) else op, **more)


def normal_numbers(seed: int) -> Normal:
    """A function that draws normally distributed numbers of a shape."""
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape)


def turned(inputs: Inputs) -> Inputs:
    """The inputs with other integers of the same shapes: sequences, groups, ids, tokens and labels the other way round.

    A function may keep what it has computed from the first ones, such as a mask.
    """
    scalars = {name: value for name, value in {"p": 0.5, "seed": 5}.items() if name in inputs}
    arrays = {name: x for name, x in inputs.items() if isinstance(x, np.ndarray) and x.dtype.kind == "i"}
    return {
        **inputs,
        **scalars,
        **{name: x[-1] - x[::-1] if name == "cu_seqlens" else x[::-1].copy() for name, x in arrays.items()},
    }


def large_trials(op: str | Operation, dtype: str, times: Sequence[int]) -> Iterator[Trial]:
    """Sizes of models and beyond, those for these times."""
    known = family(op)
    for inputs, programs in known.large(normal_numbers(1), times) if known else ():
        yield rounded(op, dtype, inputs, "fixed inputs of a large size", programs=programs)


def layout_trials(op: str | Operation, dtype: str) -> Iterator[Trial]:
    """Each argument in each layout that its shape can have."""
    known = family(op)
    inputs = known.small(normal_numbers(2)) if known else find(op).fixed_inputs(normal_numbers(2))
    for name, value in inputs.items():
        for layout in LAYOUTS if isinstance(value, np.ndarray) else ():
            if strides_of(value.shape, layout) is not None:
                origin = f"fixed inputs, {name} {layout} in memory"
                yield rounded(op, dtype, inputs, origin, layouts={name: layout})


def many_trial(op: str | Operation, dtype: str) -> Trial | None:
    """70,000 rows, of which `narrow` can pick some; None for operations without independent rows."""
    known = family(op)
    if known is None or known.many is None:
        return None
    origin = f"fixed inputs with {MANY:,} rows"
    return rounded(op, dtype, known.many(normal_numbers(3)), origin, programs=SOME, narrow=known.narrow)


def past_int32_trial(op: str | Operation, dtype: str) -> Trial | None:
    """More than 2³¹ numbers, in virtual arrays; None for operations without independent rows. Raises NotTried."""
    known = family(op)
    if known is None or known.past_int32 is None:
        return None
    inputs = known.past_int32(lambda *shape: virtual(dtype, shape))
    return rounded(op, dtype, inputs, "inputs with more than 2³¹ numbers", programs=FEW, narrow=known.narrow)


def narrowed(trial: Trial, rows: Array) -> tuple[Trial, Array]:
    """The trial with those rows of the result alone, and where they are in its result."""
    assert trial.narrow is not None
    inputs, positions = trial.narrow(trial.inputs, rows)
    return replace(trial, inputs=inputs, programs=None, narrow=None), positions

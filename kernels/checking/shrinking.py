"""From an input on which a kernel fails to a smaller, plainer one: what hypothesis cannot know about the operations.

Elementwise operations fail on one number, normalisations on one row, attention in one head: the rest is cut off. Then
all numbers are rounded to as few bits as still fail, so that they can be read, and typed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from .check_inputs import Case
from .check_report import Failure
from .formats import Format

FEW_BITS = (1, 2, 3, 5, 8)


def reduce(failure: Failure, run: Callable[[Case], Any]) -> Failure:
    """The failure on the smallest of the candidates on which `run` raises one too; the same if there is none."""
    if failure.verdict is None or failure.verdict.index is None:
        return failure
    for candidate in _cut(failure.case, failure.verdict.index):
        failure = _failure(candidate, run) or failure
    for candidate in _plainer(failure.case):
        found = _failure(candidate, run)
        if found is not None:
            return found
    return failure


def _failure(case: Case, run: Callable[[Case], Any]) -> Failure | None:
    try:
        run(case)
    except Failure as failure:
        return failure
    return None


def _cut(case: Case, index: tuple[int, ...]) -> Iterator[Case]:
    """The part of the input that the number at `index` depends on."""
    inputs, row = case.inputs, slice(index[0], index[0] + 1)
    if case.op in ("gelu", "bias_gelu"):
        column = slice(index[1], index[1] + 1)
        cut = {name: value[row, column] if value.ndim == 2 else value[column] for name, value in inputs.items()}
    elif case.op in ("softmax", "layer_norm", "add_layer_norm"):
        cut = {name: value[row] if np.ndim(value) == 2 else value for name, value in inputs.items()}
    elif case.op == "embedding":
        cut = inputs | {name: inputs[name][row] for name in ("input_ids", "position_ids")}
    elif case.op == "attention":
        cut = inputs | {"qkv": inputs["qkv"][:, :, index[1] : index[1] + 1]}
    else:
        return
    yield replace(case, inputs=cut)


def _plainer(case: Case) -> Iterator[Case]:
    """The same with all numbers rounded to few bits."""
    for bits in FEW_BITS:
        format = Format("few bits", bits, -126, 127)
        yield replace(
            case,
            inputs={
                name: format.round(value) if getattr(value, "dtype", None) == np.float64 else value
                for name, value in case.inputs.items()
            },
        )

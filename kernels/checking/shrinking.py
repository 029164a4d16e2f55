"""Reduces a failing input to a smaller, plainer one, using what hypothesis cannot know about the operations.

Elementwise operations fail at one number, normalisations in one row, attention in one head: the rest is cut off. Then
all numbers are rounded to the fewest bits that still fail, so that they are easy to read and type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .operations import OPERATIONS, Case
from .report import Failure

FEW_BITS = (1, 2, 3, 5, 8)


def reduce(failure: Failure, run: Callable[[Case], Any]) -> Failure:
    """The failure on the smallest candidate on which `run` also raises one; `failure` itself if there is none."""
    if failure.verdict is None or failure.verdict.index is None:
        return failure
    for candidate in _cropped(failure.case, failure.verdict.index):
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


def _cropped(case: Case, index: tuple[int, ...]) -> Iterator[Case]:
    """The part of the input that the number at `index` depends on."""
    crop = OPERATIONS[case.op].crop
    if crop is not None:
        yield replace(case, inputs=crop(case.inputs, index))


def _plainer(case: Case) -> Iterator[Case]:
    """The same input, with all numbers rounded to few significant bits."""
    for bits in FEW_BITS:
        yield replace(
            case,
            inputs={
                name: few_bits(value, bits) if getattr(value, "dtype", None) == np.float64 else value
                for name, value in case.inputs.items()
            },
        )


def few_bits(values: Array, bits: int) -> Array:  # (...) float64 -> (...) float64
    """The nearest numbers with `bits` significant bits."""
    mantissas, exponents = np.frexp(values)  # values = m · 2^exponent, 1/2 <= |m| < 1
    return np.ldexp(np.rint(np.ldexp(mantissas, bits)), exponents - bits)

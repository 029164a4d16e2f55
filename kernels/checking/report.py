"""What a check found: a `Report` if all is well, a `Failure`, in words and in arrays, if not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .operations import Case
from .verdicts import Verdict

# Arrays of at most so many numbers are printed whole.
SHOWN = 12


@dataclass(frozen=True)
class DtypeReport:
    """Of one dtype: how many drawn inputs, and the nearest that any came to each bound, as error over bound."""

    inputs: int
    worst: Mapping[str, Verdict]


@dataclass(frozen=True)
class Report:
    """All inputs of all dtypes were within all bounds. True; printed, a line for each dtype."""

    op: str
    function: str
    dtypes: Mapping[str, DtypeReport]

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        lines = [f"{self.function} computes {self.op}: all within the bounds"]
        for dtype, found in self.dtypes.items():
            worst = ", ".join(f"{bound} {verdict.ratio:.2f}" for bound, verdict in found.worst.items())
            lines.append(f"  {dtype:8}  {found.inputs} drawn inputs and fixed data; worst error / bound: {worst}")
        return "\n".join(lines)


class Failure(AssertionError):
    """A function is wrong, shown on the smallest input that was found.

    Attributes:
        case: the input: operation, dtype, arguments.
        inputs: its arguments by name, float64 (integers as they are).
        reason: what is wrong, in words.
        verdict: the bound that does not hold, with error, limit and place; None if it never came to that: the function
            raised, or gave another shape or dtype, or changed an argument.
        got, expected, limit: the result, the truth and the bound, float64, all of one shape; None likewise.
    """

    def __init__(
        self,
        function: str,
        case: Case,
        reason: str,
        verdict: Verdict | None = None,
        got: Array | None = None,
        expected: Array | None = None,
        limit: Array | None = None,
    ) -> None:
        super().__init__(f"{function} is no {case.op}: {reason}\n{_describe(case)}")
        self.function, self.case, self.inputs = function, case, case.inputs
        self.reason, self.verdict = reason, verdict
        self.got, self.expected, self.limit = got, expected, limit

    def __reduce__(self) -> Any:
        arguments = (self.function, self.case, self.reason, self.verdict, self.got, self.expected, self.limit)
        return type(self), arguments


def _describe(case: Case) -> str:
    """The input, a line for each argument: all of its numbers, or what they are like."""
    lines = [f"on {case.origin} ({case.dtype}):"]
    for name, value in case.inputs.items():
        if not isinstance(value, np.ndarray):
            lines.append(f"  {name} = {value!r}")
        elif value.size <= SHOWN:
            lines.append(f"  {name} = {value.tolist()}")
        else:
            lines.append(f"  {name}: shape {value.shape}, from {value.min():.4g} to {value.max():.4g}")
    return "\n".join(lines)


def judgement(verdict: Verdict, got: Array, expected: Array) -> str:
    """A verdict that does not hold, in words."""
    if verdict.index is not None:
        place, value, truth = list(verdict.index), got[verdict.index], expected[verdict.index]
        off = f"off by {verdict.error:.3g}, where {verdict.limit:.3g} is what rounding explains"
        return f"at {place} it gives {value:.9g}, and the truth is {truth:.9g}: {off}"
    what = {
        "rms": "the root mean square of its errors, relative to that of the numbers,",
        "signed_mean": "the mean of its errors, outwards positive, relative to the mean size of the numbers,",
    }[verdict.bound]
    return f"{what} is {verdict.error:.3g}, where rounding explains {verdict.limit:.3g}"

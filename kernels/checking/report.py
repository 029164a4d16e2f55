"""What a check found: a `Report` if the function is right, a `Failure`, in words and arrays, if not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .operations import Case
from .verdicts import Verdict

# Arrays of at most this many numbers are printed in full.
SHOWN = 12


@dataclass(frozen=True)
class DtypeReport:
    """For one dtype: the number of drawn `inputs`, and for each bound the verdict with the worst error / bound."""

    inputs: int
    worst: Mapping[str, Verdict]


@dataclass(frozen=True)
class Report:
    """All errors were within all bounds. Always true; prints one line per dtype."""

    op: str
    function: str
    dtypes: Mapping[str, DtypeReport]

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        lines = [f"{self.function} computes {self.op}: all errors within bounds"]
        for dtype, found in self.dtypes.items():
            worst = ", ".join(f"{bound} {verdict.ratio:.2f}" for bound, verdict in found.worst.items())
            lines.append(f"  {dtype:8}  {found.inputs} drawn inputs and fixed data; worst error / bound: {worst}")
        return "\n".join(lines)


class Failure(AssertionError):
    """A function is wrong, as shown on the smallest input that was found.

    Attributes:
        case: the failing call: operation, dtype, arguments.
        inputs: its arguments by name, in float64 (integers unchanged).
        reason: what is wrong, in words.
        verdict: the bound that does not hold, with error, limit and index; None for any other fault: the function
            raised, returned a wrong type, dtype or shape, wrote where it must not, or does not repeat.
        got, expected, limit: the result, the exact result and the bound, in float64, all of one shape; None if there
            is no result to compare.
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
        super().__init__(f"{function} does not compute {case.op}: {reason}\n{_describe(case)}")
        self.function, self.case, self.inputs = function, case, case.inputs
        self.reason, self.verdict = reason, verdict
        self.got, self.expected, self.limit = got, expected, limit

    def __reduce__(self) -> Any:
        arguments = (self.function, self.case, self.reason, self.verdict, self.got, self.expected, self.limit)
        return type(self), arguments


def _describe(case: Case) -> str:
    """The input, one line per argument: all its numbers, or their shape and range."""
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
        index, value, exact = list(verdict.index), got[verdict.index], expected[verdict.index]
        error = f"(error {verdict.error:.3g}, allowed {verdict.limit:.3g})"
        return f"got {value:.9g} at {index}, expected {exact:.9g} {error}"
    average, scale = {
        "rms": ("rms error", "the rms of the exact numbers"),
        "signed_mean": ("signed mean error", "the mean magnitude of the exact numbers"),
    }[verdict.bound]
    return f"{average} {verdict.error:.3g}, relative to {scale} (allowed {verdict.limit:.3g})"

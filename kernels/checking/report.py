"""What a check found: a `Report` if the function is right, a `Failure`, in words and arrays, if not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .operations import Case
from .verdicts import Verdict

# Arrays of at most this many numbers are printed in full.
SHOWN = 12


# What no check tries.
NEVER_TRIED = ("speed", "gradients", "races, which the interpreter cannot show")


@dataclass
class Tried:
    """What a check has tried: how many calls, the sizes of each argument, layouts, kinds of fixed inputs; and, in
    words, what it has left out."""

    calls: int = 0
    sizes: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    layouts: dict[str, None] = field(default_factory=dict)
    values: dict[str, None] = field(default_factory=dict)
    left_out: dict[str, None] = field(default_factory=dict)

    def call(self, case: Case) -> None:
        """Count a call."""
        self.calls += 1
        for name, value in case.inputs.items():
            shape = getattr(value, "shape", ())
            if shape:
                known = self.sizes.get(name, [(n, n) for n in shape])
                self.sizes[name] = [(min(low, n), max(high, n)) for (low, high), n in zip(known, shape, strict=True)]
        layouts = getattr(case, "layouts", {})
        self.layouts |= dict.fromkeys(layouts.values())
        if not layouts and hasattr(case, "layouts"):
            self.values[case.origin.removeprefix("fixed inputs with ")] = None

    def leave_out(self, what: str) -> None:
        """Note what was not tried, and why."""
        self.left_out[what] = None

    def lines(self) -> list[str]:
        """Everything, for a report."""
        sizes = [
            f"{name} ({', '.join(f'{low:,}' if low == high else f'{low:,} to {high:,}' for low, high in axes)})"
            for name, axes in self.sizes.items()
        ]
        lines = [f"  tried      {self.calls:,} calls, some of them again with new numbers at the same address"]
        lines += [f"    shapes   {', '.join(sizes)}"]
        lines += [f"    layouts  {', '.join(['contiguous', *self.layouts])}"] if self.layouts else []
        lines += [f"    values   {', '.join(['random numbers', *self.values])}"] if self.values else []
        return [*lines, f"  not tried  {'; '.join([*NEVER_TRIED, *self.left_out])}"]


@dataclass(frozen=True)
class DtypeReport:
    """For one dtype: the number of drawn `inputs`, and for each bound the verdict with the worst error / bound."""

    inputs: int
    worst: Mapping[str, Verdict]


@dataclass(frozen=True)
class Report:
    """All errors were within all bounds. Always true; prints one line per dtype, what was tried, and what was not."""

    op: str
    function: str
    dtypes: Mapping[str, DtypeReport]
    tried: Tried = field(default_factory=Tried)

    def __str__(self) -> str:
        lines = [f"{self.function} computes {self.op}: all errors within bounds"]
        for dtype, found in self.dtypes.items():
            worst = ", ".join(f"{bound} {verdict.ratio:.2f}" for bound, verdict in found.worst.items())
            lines.append(f"  {dtype:8}  {found.inputs} drawn inputs and fixed data; worst error / bound: {worst}")
        return "\n".join(lines + (self.tried.lines() if self.tried.calls else []))


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
        hint: a sentence that names the mistake, if it is a known one (`diagnosis`); else None.
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
        hint: str | None = None,
    ) -> None:
        told = reason if hint is None else f"{reason}\nhint: {hint}"
        super().__init__(f"{function} does not compute {case.op}: {told}\n{_describe(case)}")
        self.function, self.case, self.inputs = function, case, case.inputs
        self.reason, self.verdict = reason, verdict
        self.got, self.expected, self.limit, self.hint = got, expected, limit, hint

    def __reduce__(self) -> Any:
        return type(self), (*self._arguments(), self.hint)

    def _arguments(self) -> Any:
        return self.function, self.case, self.reason, self.verdict, self.got, self.expected, self.limit

    def with_hint(self, hint: str | None) -> Failure:
        """The same failure with a hint."""
        arguments = (*self._arguments(), hint)
        return Failure(*arguments)


def _describe(case: Case) -> str:
    """The input, one line per argument: all its numbers, or their shape and range."""
    lines = [f"on {case.origin} ({case.dtype}):"]
    for name, value in case.inputs.items():
        if not isinstance(value, np.ndarray):
            # A virtual array is a tensor: too large to print.
            lines.append(
                f"  {name}: shape {tuple(value.shape)}" if hasattr(value, "shape") else f"  {name} = {value!r}"
            )
        elif value.size <= SHOWN:
            lines.append(f"  {name} = {value.tolist()}")
        elif value.dtype == bool:
            lines.append(f"  {name}: shape {value.shape}, {np.count_nonzero(value)} of them true")
        else:
            lines.append(f"  {name}: shape {value.shape}, from {value.min():.4g} to {value.max():.4g}")
    return "\n".join(lines)


def judgement(verdict: Verdict, got: Array, expected: Array) -> str:
    """A verdict that does not hold, in words."""
    error, limit = differing(verdict.error, verdict.limit, 3)
    part = f" of {verdict.part}" if verdict.part else ""
    if verdict.index is not None:
        value, exact = differing(got[verdict.index], expected[verdict.index], 9)
        told = f"got {value} at {list(verdict.at or verdict.index)}{part}, expected {exact}"
        return told if verdict.bound in ("positions", "signs") else f"{told} (error {error}, allowed {limit})"
    average, scale = {
        "rms": ("rms error", "the rms of the exact numbers"),
        "signed_mean": ("signed mean error", "the mean magnitude of the exact numbers"),
    }[verdict.bound]
    return f"{average}{part} {error}, relative to {scale} (allowed {limit})"


def differing(a: float, b: float, digits: int) -> tuple[str, str]:
    """Both numbers with that many significant digits, or as many more as it takes to tell them apart."""
    for more in range(digits, 18):
        texts = f"{a:.{more}g}", f"{b:.{more}g}"
        if texts[0] != texts[1]:
            break
    return texts

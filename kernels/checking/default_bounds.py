"""Bounds for an operation whose author derives none, taken from its definition: a NumPy function `truth`.

running     `truth` runs on numbers that know how far a float32 computation of them may be off (`intervals`). The bound
            holds for every input, but what one number forgets about another makes it wider than a derived one.
three-way   `truth` runs in the plain arithmetic of the dtype too: each function's result is rounded. A good kernel,
            which rounds once, may be off by twice the largest error of that run. For functions that the first cannot
            follow, and for those whose best known computation is not backed by a bound. Beware: if plain arithmetic
            fails on an input, anything passes there.

Source of the second: the tests of flash-attention (Dao et al., 2022), with room for sums in float32 as in
`verify_model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .bounds import EPS, Expected, expected
from .formats import Format
from .interval_functions import running
from .intervals import Tape

ROOM = 2.0
Truth = Callable[..., Array]


def exactly(truth: Truth, inputs: dict[str, Any]) -> Array:
    """`truth` in float64, on copies of the inputs. Raises TypeError unless it returns a float64 array."""
    with np.errstate(all="ignore"):
        result = truth(**copied(inputs))
    if not isinstance(result, np.ndarray) or result.dtype != np.float64:
        got = f"{result.dtype}" if isinstance(result, np.ndarray) else type(result).__name__
        raise TypeError(f"truth: expected it to return a float64 array for float64 arguments, got {got}")
    return result


def copied(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs, with copies of the arrays."""
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}


def running_bound(format: Format, truth: Truth, inputs: dict[str, Any]) -> Expected:
    """The exact result and the running error bound. Raises NotFollowed, naming a function that it cannot follow."""
    exact = exactly(truth, inputs)
    tape = Tape(format.u)
    result = running(truth, tape, inputs)
    known = np.isfinite(exact)
    error = np.where(known, result.radius, 0.0)
    error = np.where(np.isnan(error), np.inf, error)
    found = expected(format, exact, error, roundings=tape.roundings)
    limit = np.where(np.isfinite(error), found.limit, np.inf)
    # Averages: errors may grow on the way, which √terms does not know. The bounds themselves do.
    finite = known & np.isfinite(limit)
    size = math.sqrt(float(np.square(exact[finite]).mean())) if finite.any() else 0.0
    off = math.sqrt(float(np.square(error[finite]).mean())) if finite.any() else 0.0
    grown = math.ceil((off / size / (4 * EPS)) ** 2) if size else 1
    return Expected(format, exact, limit, tape.roundings, max(tape.terms, grown))


class Plain(np.ndarray):
    """A float64 array whose every result is rounded to `format`: the dtype's plain arithmetic."""

    format: Format
    tape: Tape

    def __array_finalize__(self, parent: Any) -> None:
        self.format, self.tape = getattr(parent, "format", None), getattr(parent, "tape", None)  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        arrays = [np.asarray(x) if isinstance(x, Plain) else x for x in inputs]
        result = getattr(ufunc, method)(*arrays, **options)
        self.tape.functions += 1
        if method == "reduce" or ufunc is np.matmul:
            self.tape.counts(
                max(1, arrays[0].size // max(1, np.size(result))) if method == "reduce" else arrays[0].shape[-1]
            )
        if isinstance(result, tuple) or np.asarray(result).dtype.kind != "f":
            return result
        rounded = plain(self.format.round(result), self.format, self.tape)
        if out is None:
            return rounded
        out[0][...] = rounded
        return out[0]


def plain(values: Any, format: Format, tape: Tape) -> Plain:
    """An array in plain arithmetic."""
    found = np.asarray(values, np.float64).view(Plain)
    found.format, found.tape = format, tape
    return found


def three_way(format: Format, truth: Truth, inputs: dict[str, Any]) -> Expected:
    """The exact result, and twice the largest error of the dtype's plain arithmetic for all numbers alike."""
    exact, tape = exactly(truth, inputs), Tape(format.u)
    given = {
        name: plain(value, format, tape) if getattr(value, "dtype", None) == np.float64 else value
        for name, value in copied(inputs).items()
    }
    with np.errstate(all="ignore"):
        rough = np.asarray(truth(**given), np.float64)
        error = np.abs(rough - exact)
    finite = np.isfinite(exact)
    error = np.where(np.isnan(error[finite]), np.inf, error[finite]).max(initial=0.0)
    largest = np.abs(exact[finite]).max(initial=0.0)
    functions = max(tape.functions, 1)
    float32 = 4 * math.sqrt(tape.terms * functions) * EPS * largest
    off = np.full(exact.shape, ROOM * error + float32)
    found = expected(format, exact, off)
    limit = np.where(np.isfinite(off), found.limit, np.inf)
    return Expected(format, exact, limit, functions, tape.terms * functions)


DEFAULTS: dict[str, Callable[[Format, Truth, dict[str, Any]], Expected]] = {
    "running": running_bound,
    "three-way": three_way,
}

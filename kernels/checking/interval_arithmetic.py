"""Arithmetic with `intervals.Bounded`, number by number: functions of NumPy that apply to each element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .bounds import APPROXIMATE, EPS
from .intervals import UFUNCS, Bounded, NotFollowed, rounded

MONOTONE = (
    np.exp,
    np.exp2,
    np.expm1,
    np.log,
    np.log2,
    np.log10,
    np.log1p,
    np.sqrt,
    np.tanh,
    np.arctan,
    np.sinh,
    np.cbrt,
)
# Where the domain of a function begins: an interval may reach below it, but a computation does not.
DOMAINS = {np.log: 0.0, np.log2: 0.0, np.log10: 0.0, np.log1p: -1.0, np.sqrt: 0.0}
# Results that float32 represents exactly.
SELECTING = (np.maximum, np.minimum, np.fmax, np.fmin, np.logical_and, np.logical_or, np.bitwise_and, np.bitwise_or)
STEPS = (np.floor, np.ceil, np.rint, np.trunc, np.sign, np.positive)


def monotone(function: Any) -> Callable[[Bounded], Bounded]:
    """An increasing function: its ends are those of its argument."""

    def apply(x: Bounded) -> Bounded:
        low = x.low if function not in DOMAINS else np.maximum(x.low, DOMAINS[function])
        # NaN, from a number outside the domain, stays NaN.
        low = np.where(np.isnan(function(x.exact)), x.low, low)
        error = EPS if function is np.sqrt else APPROXIMATE
        return rounded(x.tape, function(x.exact), function(low), function(x.high), error)

    return apply


def exact_result(function: Any) -> Callable[..., Bounded]:
    """Increasing in every argument, and exact in floating point."""
    return lambda *x: Bounded(x[0].tape, *(function(*ends) for ends in zip(*(y.ends for y in x), strict=True)))


def add(x: Bounded, y: Bounded) -> Bounded:
    """x + y, rounded."""
    return rounded(x.tape, x.exact + y.exact, x.low + y.low, x.high + y.high)


def subtract(x: Bounded, y: Bounded) -> Bounded:
    """x - y, rounded; its lower end is where y is largest."""
    return rounded(x.tape, x.exact - y.exact, x.low - y.high, x.high - y.low)


def negative(x: Bounded) -> Bounded:
    """-x, exact; the ends change places."""
    return Bounded(x.tape, -x.exact, -x.high, -x.low)


def _corners(function: Any, x: Bounded, y: Bounded) -> tuple[Any, Any]:
    """The extremes of a function that is monotone in each argument are at the corners."""
    found = [function(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
    return np.minimum.reduce(found), np.maximum.reduce(found)


def _times(a: Any, b: Any) -> Any:
    """A product of ends, in which 0 times infinity is 0: the number itself is finite."""
    return np.where((a == 0) | (b == 0), 0.0, a * b)


def multiply(x: Bounded, y: Bounded) -> Bounded:
    """x · y, rounded; a square where both are the same numbers."""
    return square(x) if x is y else rounded(x.tape, x.exact * y.exact, *_corners(_times, x, y))


def divide(x: Bounded, y: Bounded) -> Bounded:
    """Off by 4 ε, as on a GPU; anything at all if the divisor may be 0 and is not exactly."""
    low, high = _corners(np.divide, x, y)
    unknown = ((y.low <= 0) & (y.high >= 0) & (y.low != y.high)) | np.isnan(low)
    low, high = np.where(unknown, -np.inf, low), np.where(unknown, np.inf, high)
    return rounded(x.tape, x.exact / y.exact, low, high, APPROXIMATE)


def absolute(x: Bounded) -> Bounded:
    """|x|, exact; from 0 if x may have either sign."""
    low = np.where((x.low <= 0) & (x.high >= 0), 0.0, np.minimum(np.abs(x.low), np.abs(x.high)))
    return Bounded(x.tape, np.abs(x.exact), low, x.magnitude)


def square(x: Bounded) -> Bounded:
    """x², rounded; never negative."""
    size = absolute(x)
    return rounded(x.tape, np.square(x.exact), np.square(size.low), np.square(size.high))


def power(x: Bounded, y: Bounded) -> Bounded:
    """x^y for positive x, or for whole y."""
    if y.size == 1 and y.exact.item() in (2.0, 0.5):
        return square(x) if y.exact.item() == 2.0 else UFUNCS[np.sqrt](x)
    whole = np.array_equal(y.low, y.high) and np.array_equal(y.exact, np.rint(y.exact))
    if not whole and (x.low < 0).any():
        raise NotFollowed("np.power of numbers that may be negative, with exponents that are not whole")
    low, high = _corners(np.power, x, y)
    unknown = (x.low <= 0) & (x.high >= 0) & (x.low != x.high)
    low = np.where(unknown, np.where(y.exact < 0, -np.inf, np.minimum(low, 0.0)), low)
    high = np.where(unknown & (y.exact < 0), np.inf, high)
    # b^y as exp2(y log2 b): the exponent's error grows with it.
    exponent = np.abs(y.exact) * np.abs(np.log2(np.maximum(np.abs(x.exact), 2.0**-149)))
    return rounded(x.tape, np.power(x.exact, y.exact), low, high, APPROXIMATE * (2 + exponent))


def bounded_slope(function: Any) -> Callable[[Bounded], Bounded]:
    """sin and cos: a change of the argument changes them by no more."""

    def apply(x: Bounded) -> Bounded:
        exact = function(x.exact)
        # An argument beyond a turn is reduced first, which costs ε times its size.
        off = x.radius + APPROXIMATE * (1 + np.abs(x.exact))
        return Bounded(x.tape, exact, np.maximum(exact - off, -1.0), np.minimum(exact + off, 1.0))

    return apply


def comparison(function: Any, grows: bool) -> Callable[[Bounded, Bounded], Bounded]:
    """> and >= grow with x and fall with y; < and <= the other way round."""

    def apply(x: Bounded, y: Bounded) -> Bounded:
        ends = [function(x.low, y.high), function(x.high, y.low)]
        low, high = ends if grows else ends[::-1]
        return Bounded(x.tape, function(x.exact, y.exact), low, high)

    return apply


def equal(x: Bounded, y: Bounded) -> Bounded:
    """Certain where both are exact, or where the intervals do not meet."""
    same = (x.low == x.high) & (y.low == y.high)
    meet = (x.low <= y.high) & (y.low <= x.high)
    exact = x.exact == y.exact
    return Bounded(x.tape, exact, np.where(same, exact, False), np.where(same, exact, meet))


def logical_not(x: Bounded) -> Bounded:
    """Not x; uncertain where x is."""
    return Bounded(x.tape, ~x.exact.astype(bool), ~x.high.astype(bool), ~x.low.astype(bool))


def classification(function: Any) -> Callable[[Bounded], Bounded]:
    """isnan, isinf and isfinite: certain unless a finite number may leave float32's range."""

    def apply(x: Bounded) -> Bounded:
        exact, unsure = function(x.exact), ~np.isfinite(x.radius)
        return Bounded(x.tape, exact, exact & ~unsure, exact | unsure)

    return apply


UFUNCS.update({f: monotone(f) for f in MONOTONE})
UFUNCS.update({f: exact_result(f) for f in (*SELECTING, *STEPS)})
UFUNCS.update({f: bounded_slope(f) for f in (np.sin, np.cos)})
UFUNCS.update({f: comparison(f, True) for f in (np.greater, np.greater_equal)})
UFUNCS.update({f: comparison(f, False) for f in (np.less, np.less_equal)})
UFUNCS.update({f: classification(f) for f in (np.isnan, np.isinf, np.isfinite)})
UFUNCS.update(
    {
        np.add: add,
        np.subtract: subtract,
        np.multiply: multiply,
        np.divide: divide,
        np.negative: negative,
        np.absolute: absolute,
        np.fabs: absolute,
        np.square: square,
        np.power: power,
        np.float_power: power,
        np.reciprocal: lambda x: divide(x.lift(1.0), x),
        np.equal: equal,
        np.not_equal: lambda x, y: logical_not(equal(x, y)),
        np.logical_not: logical_not,
        np.invert: logical_not,
    }
)

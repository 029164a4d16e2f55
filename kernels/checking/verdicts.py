"""Is a result right? Three bounds, each of which finds faults that the others miss.

    componentwise   |got − exact| <= limit for every number (`bounds.py`), for any input. Finds a wrong row or column,
                    a wrong formula, errors where numbers are small.
    rms             rms(got − exact) / rms(exact) <= 1.25 · 0.42 u √roundings  (float32: + 4 √terms 2⁻²⁴).
                    Finds a scale that is slightly off, and sums accumulated in the format.
    signed mean     |mean((got − exact) · sign(exact))| / mean|exact| <= 0.1 u + 1.7 u / √n, half precision only.
                    Finds truncation, which rounds everything towards 0.

The last two bound averages. Errors of rounding to nearest are uniform, up to half a step. Their rms, relative to the
number, is u/√3 just above a power of two, half as much just below the next one, and 0.42 u over all mantissas. The
squares of independent rounding errors add; 1.25 leaves room for mantissas that are not evenly distributed. The signed
mean of n such errors is about 0.42 u/√n, and 1.7 u/√n is four times that; truncation has 0.72 u. None of this holds
for few or equal numbers, so these two bounds only judge fixed random data, and at least MOST_FEW + 1 numbers.

Source: the rms over mantissas is √(∫ (u²/3) x⁻² dx/(x ln 2)) for x in [1, 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ernie_m.reference.array import Array

from .bounds import EPS, Expected

MOST_FEW = 4095


@dataclass(frozen=True)
class Verdict:
    """One bound, and how close a result came to it. `index`: where the worst number is (componentwise only).

    part: the name of the result, if the operation has several; then `index` is that in all of them, one after the
        other, and `at` the index in this one.
    """

    bound: str
    error: float
    limit: float
    index: tuple[int, ...] | None = None
    part: str = ""
    at: tuple[int, ...] | None = None

    @property
    def ratio(self) -> float:
        """Error over bound; at most 1 if the bound holds."""
        if math.isnan(self.error):
            return math.inf
        return 0.0 if self.error == 0 else self.error / self.limit if self.limit > 0 else math.inf

    @property
    def holds(self) -> bool:
        """Whether the result is within the bound."""
        return self.ratio <= 1


def componentwise(got: Array, expected: Expected) -> Verdict:
    """The worst number, relative to its own limit.

    Infinity is right where the exact number, give or take the limit, rounds to that infinity; nan is right only where
    the limit is infinite.
    """
    if got.size == 0:
        return Verdict("componentwise", 0.0, 0.0)
    exact, limit = expected.exact, expected.limit
    # With a sign of its own: a limit may be larger than the number.
    rounds_away = np.isinf(got) & (np.where(got > 0, exact, -exact) + limit >= expected.format.overflow)
    right = rounds_away | np.isinf(limit)
    finite = np.isfinite(got)
    error = np.where(finite, np.abs(np.where(finite, got, 0.0) - exact), np.inf)
    ratio = np.where(right, 0.0, error / np.where(right, 1.0, limit))
    index = tuple(int(i) for i in np.unravel_index(ratio.argmax(), ratio.shape))
    if right[index]:
        return Verdict("componentwise", 0.0, float(limit[index]), index)
    return Verdict("componentwise", float(error[index]), float(limit[index]), index)


def rms(got: Array, expected: Expected) -> Verdict:
    """The root mean square of the errors, relative to that of the exact numbers."""
    u = expected.format.u
    limit = 1.25 * 0.42 * u * math.sqrt(expected.roundings)
    if expected.format.name == "float32":
        limit += 4 * math.sqrt(expected.terms) * EPS
    error = np.sqrt(np.square(got - expected.exact).mean() / np.square(expected.exact).mean())
    return Verdict("rms", float(error), limit)


def signed_mean(got: Array, expected: Expected) -> Verdict:
    """The mean of the errors, positive where they point away from 0, relative to the mean magnitude."""
    u = expected.format.u
    error = ((got - expected.exact) * np.sign(expected.exact)).mean() / np.abs(expected.exact).mean()
    return Verdict("signed_mean", abs(float(error)), 0.1 * u + 1.7 * u / math.sqrt(got.size))


def judge(got: Array, expected: Expected, statistical: bool = False) -> list[Verdict]:
    """The verdicts that apply: componentwise and, for fixed random data (`statistical`), the two on averages.

    `got`, in float64, has the shape of `expected.exact`; several results are judged one by one, and the worst number of
    all comes first. Raises ValueError if one is too small for averages.
    """
    found, averages = [], []
    for name, place, part in expected.each():
        own = got[place].reshape(part.exact.shape)
        worst = componentwise(own, part)
        if name and worst.index is not None:
            start = place.start + int(np.ravel_multi_index(worst.index, own.shape))
            worst = replace(worst, index=(start,), at=worst.index)
        found.append(replace(worst, part=name))
        averages += [replace(verdict, part=name) for verdict in _averages(own, part)] if statistical else []
    return [max(found, key=lambda verdict: verdict.ratio), *averages]


def _averages(got: Array, expected: Expected) -> list[Verdict]:
    if got.size <= MOST_FEW:
        raise ValueError(f"got: expected at least {MOST_FEW + 1} numbers for bounds on averages, got {got.size}")
    averages: list[Callable[[Array, Expected], Verdict]] = [rms]
    if expected.format.name != "float32":
        averages.append(signed_mean)
    return [average(got, expected) for average in averages]

"""Names the mistake behind a failure, if it is a known one.

On the smallest failing input many mistakes look alike. So the function runs again on inputs that tell them apart
(`telling`), and its results are compared with those of wrong implementations (`mistakes`, in float64). A mistake
explains the results if on every input each number is as near to the mistake's as the operation's bound allows a right
function to be to the truth, with some room, and much nearer than to the truth. If two mistakes do, other inputs are
drawn; a hint is given only if exactly one is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ernie_m import reference
from ernie_m.reference.array import Array

from .attention_mistakes import ATTENTION
from .formats import FORMATS, Format
from .group_mistakes import GROUPS
from .mistakes import BIASED, GELU, SOFTMAX, Fitted, Form, Mistakes, as_ops, merged, of_rows
from .norm_mistakes import ADDED, EMBEDDED, NORM, added, embedded
from .operations import Case
from .tails import TAILS, sharpened
from .telling import telling

# A mistake may explain numbers in a few roundings more than the bound of a right function, and must explain most of
# the error.
ROOM = 4.0
UNEXPLAINED = 0.2
TRUNCATED = "the numbers are truncated, towards 0; round to nearest"
# Draws of telling inputs: in how many a mistake must show, and how many there are at most.
FEWEST, MOST = 2, 6


MISTAKES: dict[str, Mistakes] = {
    "gelu": merged([as_ops(GELU, lambda x: (x,)), of_rows(reference.gelu, "x", elementwise=True)]),
    "bias_gelu": merged([BIASED, as_ops(GELU, lambda x, bias: (x + bias,)), of_rows(reference.bias_gelu, "x")]),
    "softmax": merged([SOFTMAX, of_rows(reference.softmax, "scores")]),
    "layer_norm": merged(
        [as_ops(NORM, lambda x, gamma, beta, eps: (x, gamma, beta, eps)), of_rows(reference.layer_norm, "x")]
    ),
    "add_layer_norm": merged([ADDED, as_ops(NORM, added), of_rows(reference.add_layer_norm, "x", "residual")]),
    "embed": merged([EMBEDDED, as_ops(NORM, embedded)]),
    **ATTENTION,
    "group_attention": GROUPS,
}


@dataclass(frozen=True, eq=False)
class Probe:
    """A function's result on one telling input. `limit`: how far a right function's numbers may be from `exact`.

    format: None if numbers must be exactly those of the mistake.  sharp: the limit if the tail of gelu is asked for.
    """

    inputs: dict[str, Any]
    got: Array
    exact: Array
    limit: Array
    format: Format | None = None
    sharp: Array | None = None

    @property
    def far(self) -> bool:
        """Whether the result is further from the truth than `limit`."""
        return not near(self.got, self.exact, self.limit)

    @property
    def wrong(self) -> bool:
        """Whether the result is not right, be it only in the tail of gelu."""
        return self.far or (self.sharp is not None and not near(self.got, self.exact, self.sharp))

    def left_by(self, form: Form | Fitted) -> float | None:
        """The largest difference between the result and that of a mistake, relative to the limit.

        Infinite if it is more than rounding explains; None if the form says nothing about this input.
        """
        with np.errstate(all="ignore"):
            found = form.nearest(self.got, **self.inputs) if isinstance(form, Fitted) else form(**self.inputs)
        if found is None:
            return None
        if found.shape != self.got.shape:
            return math.inf
        room = self.limit
        if self.format is not None:
            found = np.where(np.abs(found) >= self.format.overflow, np.copysign(np.inf, found), found)
            size = np.where(np.isfinite(found), np.abs(found), 0.0)
            room = ROOM * (self.limit + self.format.u * size)
            # Where the mistake makes numbers larger, it makes their errors larger too.
            room = room * max(1.0, size.max() / max(np.abs(self.exact).max(), self.format.smallest))
        return distance(self.got, found, self.limit) if near(self.got, found, room) else math.inf

    @property
    def error(self) -> float:
        """The largest error, relative to the limit; to the sharp one if only that does not hold."""
        return distance(self.got, self.exact, self.limit if self.far or self.sharp is None else self.sharp)


def near(a: Array, b: Array, room: Array) -> bool:
    """Whether all numbers are within `room`. nan and infinity are only near themselves."""
    return bool((_apart(a, b) <= np.where(np.isfinite(room), room, np.finfo(np.float64).max)).all())


def distance(a: Array, b: Array, limit: Array) -> float:
    """The largest difference, relative to the limit; absolute where the limit is 0."""
    return float((_apart(a, b) / np.where(limit > 0, limit, 1.0)).max(initial=0.0))


def _apart(a: Array, b: Array) -> Array:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.where(same, 0.0, a - b))
    return np.where(np.isnan(apart), np.inf, apart)


def named(mistakes: Mistakes, draws: Iterable[Sequence[Probe]]) -> str | None:
    """The words of the one mistake that explains the results of all draws; None if none does, or several do.

    A mistake must explain wrong results in FEWEST draws; in others, where the function is right, it must agree.
    """
    left = [(words, form, 0) for words, forms in mistakes.items() for form in forms]
    for probes in draws:
        judged = [(words, form, count, _explains(form, probes)) for words, form, count in left]
        left = [(words, form, count + shown) for words, form, count, shown in judged if shown is not None]
        if not left or (len({words for words, *_ in left}) == 1 and max(count for *_, count in left) >= FEWEST):
            break
    found = {words for words, _, count in left if count >= FEWEST}
    return found.pop() if len(found) == 1 else None


def _explains(form: Form | Fitted, probes: Sequence[Probe]) -> bool | None:
    """Whether a form explains what is wrong with the results; None if it contradicts one of them."""
    rest = [(probe, probe.left_by(form)) for probe in probes]
    if any(left == math.inf for _, left in rest):
        return None
    # Beside other errors, the loss of a tail does not count.
    worst = [probe for probe in probes if probe.far] or [probe for probe in probes if probe.wrong]
    if not worst:
        return False
    wrong = [(left, probe.error) for probe, left in rest if left is not None and probe in worst]
    explained = wrong and max(left for left, _ in wrong) <= UNEXPLAINED * max(error for _, error in wrong)
    return True if explained else None


class _Untold(Exception):
    """The function has no result for a telling input."""


def hint(case: Case, call: Callable[[Case], Array], seed: int = 0) -> str | None:
    """A sentence that names the mistake of a function that failed on `case`; None if no known one explains it.

    `call` runs the function on another case of the operation and returns its result in float64. If it raises, or the
    result has another shape, there is no hint; nor is there one for an operation that is not in the tables.
    `seed`: which telling inputs to draw.
    """
    if case.own is not None or case.op not in MISTAKES:
        return None
    try:
        draws = [_probes(case, call, MOST * seed + i) for i in range(FEWEST)]
        seen = [probe for probes in draws for probe in probes]
        if any(probe.wrong for probe in seen) and all(truncated(probe) for probe in seen):
            return TRUNCATED
        words = named(
            MISTAKES[case.op], chain(draws, (_probes(case, call, MOST * seed + i) for i in range(FEWEST, MOST)))
        )
    except _Untold:
        return None
    return None if words is None else f"the numbers are those of a common mistake: {words}"


def _probes(case: Case, call: Callable[[Case], Array], seed: int) -> list[Probe]:
    probes, format = [], FORMATS[case.dtype]
    for told in telling(case.op, format, seed):
        new = Case(case.op, case.dtype, told.inputs, "telling inputs")
        expected = new.expected
        try:
            got = call(new)
        except Exception as error:
            raise _Untold from error
        if np.shape(got) != expected.exact.shape:
            raise _Untold
        limit = expected.limit + told.slack * np.abs(expected.exact).max()
        sharp = sharpened(case.op, expected, told.inputs).limit if case.op in TAILS else None
        probes.append(Probe(told.inputs, got, expected.exact, limit, format, sharp))
    return probes


def truncated(probe: Probe) -> bool:
    """Whether no number is further from 0 than the truth, or more than a step nearer."""
    format, size = probe.format, np.abs(probe.exact)
    if format is None or format.name == "float32" or not np.isfinite(probe.got).all():
        return False
    # What float32 may add before the number is truncated, and a step of the format.
    slack = np.where(np.isfinite(probe.limit), probe.limit - format.u * size, 0.0)
    step = 2 * format.u * size + format.smallest
    inward = np.abs(probe.got) - size
    same_sign = probe.got * probe.exact >= 0
    return bool((same_sign & (inward <= slack) & (inward >= -step - slack)).all())

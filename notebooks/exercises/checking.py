"""Checks an exercise's function: `answer("softmax", softmax, arrays="numpy")` prints and draws what is wrong with it.

Functions that round are checked by `ernie_m.kernels.check`. The mask, `unpad` and `pad` only move numbers: hypothesis
draws batches, every number must match exactly, and the smallest batch that fails is shown.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import hypothesis
import matplotlib.pyplot as plt
import numpy as np
import torch
from backward_checks import BACKWARD
from diagnosis import explain, hint_for_moves
from drawing import draw
from hypothesis import strategies as st
from matplotlib.figure import Figure
from moves import MOVES, batches, mask_of
from own import Own
from warm_up_checks import WARM_UPS

from ernie_m.kernels import Failure, check
from ernie_m.kernels.checking.drawing import numbers
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.guards import poisoned
from ernie_m.kernels.checking.operations import OPERATIONS, Case
from ernie_m.kernels.checking.report import SHOWN, Report
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.reference.array import Array

EXAMPLES = 25
NOT_WRITTEN = "not written yet"
# The exercises of which `ernie_m.kernels.check` has no operation.
OWN: dict[str, Own] = {**WARM_UPS, **BACKWARD}


@dataclass(frozen=True)
class Answer:
    """The verdict on a learner's function, in words, and a figure that shows the mistake (None if it is right)."""

    right: bool
    text: str
    figure: Figure | None = None


@dataclass(frozen=True)
class Wrong:
    """A call that fails. `got` is None if it returned no usable array; `limit` is the allowed error."""

    reason: str
    inputs: dict[str, Any]
    expected: Array
    limit: Array
    got: Array | None = None
    index: tuple[int, ...] | None = None


def answer(exercise: str, function: Callable[..., Any], arrays: str = "torch", examples: int = EXAMPLES) -> None:
    """Check `function` and show the result. `exercise`: one of `check`'s operations, or of the tables."""
    found = examine(exercise, function, arrays, examples)
    print(found.text)
    if found.figure is not None:
        plt.show()


def examine(exercise: str, function: Callable[..., Any], arrays: str = "torch", examples: int = EXAMPLES) -> Answer:
    """Check `function` and return the answer to show."""
    with np.errstate(all="ignore"):
        if why := not_written(exercise, function, arrays):
            text = f"{exercise}: {NOT_WRITTEN}: {why}.\nThe figure shows one call and its expected result."
            return Answer(False, text, draw(*small_call(exercise)))
        if exercise in MOVES:
            return _examine_move(exercise, function, examples)
        dtypes = ["float32"] if arrays == "numpy" else None
        try:
            if exercise in OWN:
                return Answer(True, passed(exercise, OWN[exercise].check(function, arrays, examples)))
            # Not asked for: NaN, views of larger arrays, and the tail of GELU, which ½x(1 + erf(x/√2)) loses.
            options = {"quick": True, "tail": False, "plain": True}
            report = check(function, exercise, dtypes, examples, arrays=arrays, **options)
            return Answer(True, passed(exercise, report))
        except Failure as failure:
            return failed(exercise, failure)
        except RuntimeError as error:
            return Answer(False, f"{exercise}: could not be checked: {error}")


def passed(exercise: str, report: Report) -> str:
    """What was checked, and the worst error relative to its bound."""
    lines = [f"{exercise}: right."]
    for dtype, found in report.dtypes.items():
        worst = max(verdict.ratio for verdict in found.worst.values())
        tried = f"{found.inputs} drawn inputs" + ("" if exercise in OWN else " and the fixed data")
        lines.append(f"  {dtype}: {tried}; worst error {worst:.2f} of its bound")
    return "\n".join(lines)


def failed(exercise: str, failure: Failure) -> Answer:
    """What is wrong, shown on the smallest input that fails."""
    case, verdict = failure.case, failure.verdict
    expected, got, index = case.expected, failure.got, None if verdict is None else verdict.index
    if case.operation.results and verdict is not None and got is not None:
        # Of several results, the wrong one.
        place, expected = next((place, part) for name, place, part in expected.each() if name == verdict.part)
        got, index = got[place].reshape(expected.exact.shape), verdict.at
    found = Wrong(failure.reason, case.inputs, expected.exact, expected.limit, got, index)
    ratio = math.inf if verdict is None else verdict.ratio
    return show(exercise, case.dtype, found, failure.hint or explain(found.reason, got, ratio))


def not_written(exercise: str, function: Callable[..., Any], arrays: str) -> str:
    """Why a function looks like a stub, judged by its result for the small call; "" if it does not."""
    inputs, expected = small_call(exercise)
    if exercise not in MOVES and arrays == "torch":
        inputs = {name: placed(value) if np.ndim(value) else value for name, value in inputs.items()}
    try:
        # Allocated memory that is never written holds nan.
        with poisoned([]):
            got = function(*inputs.values())
    except (Exception, SystemExit):
        return ""
    if got is None:
        return "it returned None"
    blank = isinstance(got, torch.Tensor) and got.shape == np.shape(expected) and bool(got.isnan().all())
    return "its result is all nan: nothing was stored in it" if blank else ""


def placed(value: Array) -> torch.Tensor:
    """A tensor where kernels run: float32, or whole numbers as they are."""
    tensor = torch.from_numpy(value).to("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
    return tensor.float() if tensor.is_floating_point() else tensor


def small_call(exercise: str) -> tuple[dict[str, Any], Array | dict[str, Array]]:
    """The arguments of a call small enough to follow by hand, and its result; several by name."""
    if exercise in OWN:
        return OWN[exercise].small_call()
    if exercise in MOVES:
        make, truth = MOVES[exercise]
        moved = make(mask_of(np.array([3, 1]), 3), 2)
        return moved, truth(**moved)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("x", "scores", "residual", "q", "k", "v"), (2, 3))
    shapes |= dict.fromkeys(("bias", "gamma", "beta"), (3,))
    names = OPERATIONS[exercise].call.removeprefix("f(").removesuffix(")").split(", ")
    inputs = {
        name: numbers(FORMATS["float32"], shapes[name], seed, 1.0, 0.0, "whole numbers") if name in shapes else 1e-5
        for seed, name in enumerate(names)
    }
    return inputs, Case(exercise, "float32", inputs).expected.exact


def show(exercise: str, dtype: str, found: Wrong, hint: str) -> Answer:
    """The text and the figure for a call that fails."""
    lines = [f"{exercise}: not right yet: {found.reason}.", *([f"Hint: {hint}."] if hint else [])]
    lines.append(f"The smallest input found ({dtype}):")
    for name, value in found.inputs.items():
        small = not isinstance(value, np.ndarray) or value.size <= SHOWN
        shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
        lines.append(f"  {name}{shape}" + (f" = {value.tolist() if shape else value}" if small else ", in the figure"))
    figure = draw(found.inputs, found.expected, found.got, found.limit, found.index)
    return Answer(False, "\n".join(lines), figure)


def _examine_move(exercise: str, function: Callable[..., Any], examples: int) -> Answer:
    """Search for a batch on which the function is wrong; hypothesis shrinks it."""
    make, truth = MOVES[exercise]
    tried = 0
    last: Wrong | None = None

    def fails_on(batch: tuple[Array, int]) -> bool:
        nonlocal tried, last
        tried += 1
        inputs = make(*batch)
        found = compare(function, inputs, truth(**inputs))
        last = found or last
        return found is not None

    settings = hypothesis.settings(max_examples=4 * examples, database=None, deadline=None)
    try:
        drawn = st.tuples(batches(), st.integers(1, 3))
        repeated = fails_on(hypothesis.find(drawn, fails_on, settings=settings, random=random.Random(0)))
    except hypothesis.errors.NoSuchExample:
        return Answer(True, f"{exercise}: right.\n  {tried} drawn batches; every number is right")
    except hypothesis.errors.Flaky:
        repeated = False
    assert last is not None
    hint = ""
    if not repeated:
        last = replace(last, reason=f"different results for the same arguments; once {last.reason}")
    elif last.got is not None:
        hint = hint_for_moves(exercise, make, truth, function)
    return show(exercise, str(last.expected.dtype), last, hint or explain(last.reason, last.got))


def compare(function: Callable[..., Any], inputs: dict[str, Any], expected: Array) -> Wrong | None:
    """What is wrong with the function's result for `inputs`; None if it is right."""
    limit = np.zeros(expected.shape)
    given = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}
    try:
        # Allocated memory that is never written holds nan.
        with poisoned([]):
            got = function(*given.values())
    except (Exception, SystemExit) as error:
        return Wrong(f"it raised {type(error).__name__}: {error}", inputs, expected, limit)
    if changed := [name for name, value in inputs.items() if not np.array_equal(value, given[name])]:
        return Wrong(f"it changed its argument {changed[0]}", inputs, expected, limit)
    if not isinstance(got, np.ndarray):
        return Wrong(f"it returned {type(got).__name__}, expected ndarray", inputs, expected, limit)
    if got.shape != expected.shape:
        return Wrong(f"it returned shape {got.shape}, expected {expected.shape}", inputs, expected, limit)
    if got.dtype != expected.dtype:
        return Wrong(f"it returned {got.dtype}, expected {expected.dtype}", inputs, expected, limit)
    if np.array_equal(got, expected):
        return None
    index = tuple(int(i) for i in np.argwhere(got != expected)[0])
    reason = f"got {got[index]} at {list(index)}, expected {expected[index]}"
    return Wrong(reason, inputs, expected, limit, got, index)

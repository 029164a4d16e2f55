"""For exercises whose result is right or wrong as a whole: the smallest input that fails, and the mistake's name."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import hypothesis
import numpy as np

Inputs = dict[str, Any]
UNSTABLE = "it returns different results for the same arguments"
KEPT = "it may keep a list from one call to the next: one made in the `def` line or outside of the function"


def call(function: Callable[..., Any], inputs: Inputs) -> tuple[Any, str]:
    """The function's result for copies of the inputs, and what is wrong with the call; "" if nothing is."""
    given = {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
    try:
        got = function(*given.values())
    except (Exception, SystemExit) as error:
        return None, f"it raised {type(error).__name__}: {error}"
    if changed := [name for name, x in inputs.items() if not np.array_equal(x, given[name])]:
        return None, f"it changed its argument {changed[0]}"
    return got, ""


def smallest(strategy: Any, fails: Callable[[Any], bool], examples: int) -> tuple[Any, int]:
    """The smallest drawn value that fails, the last one if none fails twice, or None; and how many were tried."""
    tried, last = 0, None

    def counted(value: Any) -> bool:
        nonlocal tried, last
        tried += 1
        failed = fails(value)
        last = value if failed else last
        return failed

    settings = hypothesis.settings(max_examples=examples, database=None, deadline=None)
    try:
        return hypothesis.find(strategy, counted, settings=settings, random=random.Random(0)), tried
    except hypothesis.errors.NoSuchExample:
        return None, tried
    except hypothesis.errors.Flaky:
        return last, tried


def repeats(function: Callable[..., Any], inputs: Inputs) -> bool:
    """Whether two calls with the same arguments have results that look the same."""
    first = repr(call(function, inputs))
    return repr(call(function, inputs)) == first


def mistake(
    function: Callable[..., Any], mistakes: Mapping[str, Callable[..., Any]], telling: Iterable[Inputs]
) -> str | None:
    """The words of the mistake whose results are those of the function on all telling inputs; None if none has them."""
    left = dict(mistakes)
    for inputs in telling:
        got, wrong = call(function, inputs)
        left = {words: form for words, form in left.items() if not wrong and same(got, form(*inputs.values()))}
    return next(iter(left), None)


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal; arrays need the same shape."""
    try:
        return np.shape(a) == np.shape(b) and bool(np.all(np.asarray(a) == np.asarray(b)))
    except ValueError:
        return False

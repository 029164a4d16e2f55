"""For exercises whose result is right or wrong as a whole: the smallest input that fails, and the mistake's name."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import hypothesis
import numpy as np

Inputs = dict[str, Any]


def call(function: Callable[..., Any], inputs: Inputs) -> tuple[Any, str]:
    """The function's result for copies of the inputs, and what is wrong with the call; "" if nothing is."""
    given = {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
    try:
        got = function(*given.values())
    except Exception as error:
        return None, f"it raised {type(error).__name__}: {error}"
    if changed := [name for name, x in inputs.items() if not np.array_equal(x, given[name])]:
        return None, f"it changed its argument {changed[0]}"
    return got, ""


def smallest(strategy: Any, fails: Callable[[Any], bool], examples: int) -> tuple[Any, int]:
    """The smallest drawn value that fails, or None; and how many were tried."""
    tried = 0

    def counted(value: Any) -> bool:
        nonlocal tried
        tried += 1
        return fails(value)

    settings = hypothesis.settings(max_examples=examples, database=None, deadline=None)
    try:
        return hypothesis.find(strategy, counted, settings=settings, random=random.Random(0)), tried
    except hypothesis.errors.NoSuchExample:
        return None, tried


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

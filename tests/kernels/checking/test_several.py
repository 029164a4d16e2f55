"""Operations with several results: each is judged on its own, and a failure names the result that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ernie_m.kernels.checking.bounds import EPS, Expected, expected, several
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.letters import drawn
from ernie_m.kernels.checking.operation import Operation
from ernie_m.kernels.checking.report import Failure
from ernie_m.kernels.checking.verdicts import judge
from ernie_m.reference.array import Array


def both(format: Any, x: Array, y: Array) -> Expected:
    """The sum, and the difference's total over rows."""
    columns = (x - y).sum(0)
    error = len(x) * EPS * (np.abs(x) + np.abs(y)).sum(0)
    large = (np.abs(x) + np.abs(y)).sum(0)
    return several(
        total=expected(format, x + y, EPS * np.abs(x + y), np.abs(x) + np.abs(y)),
        difference=expected(format, columns, error, large),
    )


OWN = Operation(
    name="both",
    call="f(x, y)",
    expected=both,
    results=("total", "difference"),
    draw=drawn(x="N E", y="N E"),
    fixed=lambda normal: {"x": normal(3, 4200), "y": normal(3, 4200)},
)


def right(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float(), y.float()
    return (wide[0] + wide[1]).to(x.dtype), (wide[0] - wide[1]).sum(0).to(x.dtype)


def failure_of(function: Callable[..., Any], **options: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        check(function, OWN, **{"dtypes": ["float32"], "examples": 5, "quick": True, **options})
    return caught.value


def test_a_right_function_passes() -> None:
    report = check(right, OWN, examples=5, quick=True)
    assert set(report.dtypes["bfloat16"].worst) == {"componentwise", "rms", "signed_mean"}


def test_the_wrong_result_is_named_on_a_small_input() -> None:
    wrong = failure_of(lambda x, y: (right(x, y)[0], (x - 1.5 * y).sum(0)))
    assert wrong.inputs["x"].shape == (1, 1)
    assert " at [0] of difference, expected " in wrong.reason
    assert wrong.verdict is not None and (wrong.verdict.index, wrong.verdict.at) == ((1,), (0,))
    assert " at [0, 0] of total, expected " in failure_of(lambda x, y: (x - y, right(x, y)[1])).reason


def test_averages_are_those_of_each_result() -> None:
    """Of one in a thousandth, a fault drowns in the average of both; in its own it does not."""
    found = both(FORMATS["bfloat16"], *np.random.default_rng(0).standard_normal((2, 3, 4200)) * 1e-3)
    got = FORMATS["bfloat16"].round(found.exact)
    assert all(verdict.holds for verdict in judge(got, found, True))
    part = {name: place for name, place, _ in found.each()}["difference"]
    got[part] *= 1.02
    wrong = [(verdict.bound, verdict.part) for verdict in judge(got, found, True) if not verdict.holds]
    assert ("rms", "difference") in wrong and ("rms", "total") not in wrong


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, y: x + y, "it returned Tensor, expected the tuple (total, difference), called as f(x, y) with x ("),
        (lambda x, y: (x + y,), "it returned a tuple of 1, expected the tuple (total, difference), called as "),
        (lambda x, y: (x + y, None), "it returned NoneType, expected Tensor, called as "),
        (lambda x, y: (x + y, (x - y).sum(0).double()), "it returned float64 for difference for float32 inputs"),
        (lambda x, y: (x + y, x - y), "it returned shape ("),
    ],
)
def test_other_returns_are_refused(function: Callable[..., Any], reason: str) -> None:
    assert failure_of(function).reason.startswith(reason)


def test_results_must_repeat_and_stay() -> None:
    kept: dict[tuple[int, ...], torch.Tensor] = {}

    def reusing(x: torch.Tensor, y: torch.Tensor) -> Any:
        total, difference = right(x, y)
        return total, kept.setdefault((*difference.shape,), torch.zeros_like(difference)).copy_(difference)

    assert failure_of(reusing).reason.startswith("the result of an earlier call changed during a later one")
    state = iter(range(10**6))
    wrong = failure_of(lambda x, y: (right(x, y)[0], right(x, y)[1] * (1 + 1e-7 * (next(state) % 2))))
    assert wrong.reason.startswith("two calls with the same input returned different results")


def test_names_and_parts_must_agree() -> None:
    with pytest.raises(ValueError, match=r"results: expected those of `expected`, \('total', 'difference'\), got \("):
        replace(OWN, results=("total",)).expect(FORMATS["float32"], {"x": np.ones((1, 1)), "y": np.ones((1, 1))})
    with pytest.raises(ValueError, match="results: expected none without `expected`, got total"):
        replace(OWN, expected=None, truth=lambda x, y: x + y, results=("total",))

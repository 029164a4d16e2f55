"""The worked examples: right functions in torch and in Triton pass, and every planted fault is refused."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import numpy as np
import pytest
from judging.example_functions import FUNCTIONS, rms_norm

from ernie_m.kernels import Failure, check
from ernie_m.kernels.checking import examples
from ernie_m.kernels.checking.examples import EXAMPLES
from ernie_m.kernels.checking.operations import Operation, fixed_case


def operation(name: str) -> Operation:
    return EXAMPLES[name.removeprefix("triton ")]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "triton rms_norm" else pytest.mark.all) for name in FUNCTIONS],
)
def test_right_functions_pass(name: str) -> None:
    report = check(FUNCTIONS[name][0], operation(name), quick=True)
    assert list(report.dtypes) == ["float32", "float16", "bfloat16"]
    assert f"computes {operation(name).name}" in str(report)


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, (_, found) in FUNCTIONS.items() for fault in found]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planted_faults_are_refused(name: str, fault: str, dtype: str) -> None:
    wrong = functools.partial(FUNCTIONS[name][0], fault=fault)
    with pytest.raises(Failure) as caught:
        check(wrong, operation(name), dtypes=[dtype], quick=True)
    assert caught.value.case.operation is operation(name)
    assert f"does not compute {operation(name).name}: " in str(caught.value)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_definition_keeps_its_arguments_and_has_a_finite_bound(name: str) -> None:
    case = fixed_case(EXAMPLES[name], "float32")
    before = pickle.dumps(case.inputs)
    expected = case.expected
    assert pickle.dumps(case.inputs) == before
    assert expected.exact.dtype == np.float64 and expected.exact.size >= 4096
    assert np.isfinite(expected.limit).all()


def test_failures_of_an_example_can_be_sent_to_another_process() -> None:
    with pytest.raises(Failure) as caught:
        check(functools.partial(rms_norm, fault="eps left out"), EXAMPLES["rms_norm"], quick=True)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.case.operation == EXAMPLES["rms_norm"]


def test_a_numpy_function_can_be_checked_too() -> None:
    def normalised(x: Any, gamma: Any, eps: float) -> Any:
        wide = x.astype(np.float32)
        return (examples.rms_norm(wide, gamma.astype(np.float32), np.float32(eps))).astype(x.dtype)

    assert check(normalised, EXAMPLES["rms_norm"], arrays="numpy", quick=True)

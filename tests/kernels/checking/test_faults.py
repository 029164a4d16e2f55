"""Faults that kernels have had, planted in functions that are otherwise right: each must be caught."""

from __future__ import annotations

import functools

import planted
import planted_gradients
import pytest
from judging.faults import NUMERICAL

from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.report import Failure

EXAMPLES = 15


pytestmark = pytest.mark.usefixtures("no_shrinking")


@pytest.mark.parametrize("op", planted.KERNELS)
def test_check_passes_right_functions(op: str) -> None:
    assert check(planted.KERNELS[op], op, examples=EXAMPLES)


@pytest.mark.parametrize("name", NUMERICAL)
def test_check_catches_each_planted_fault(name: str) -> None:
    op, fault, dtypes = NUMERICAL[name]
    wrong = functools.partial(planted.KERNELS[op], **fault)
    for dtype in dtypes:
        with pytest.raises(Failure):
            check(wrong, op, dtypes=[dtype], examples=EXAMPLES)


@pytest.mark.parametrize(
    "fault",
    [
        *("counted in order", "other bits", "seed of 63 bits", "next column", "the others", "no scale", "scale twice"),
        *("scale by p", "ones", "last column"),
    ],
)
def test_check_catches_the_faults_of_dropouts_gradient(fault: str) -> None:
    """Not by their size: each is refused in bfloat16 too."""
    wrong = functools.partial(planted.KERNELS["dropout_vjp"], fault=fault)
    with pytest.raises(Failure):
        check(wrong, "dropout_vjp", dtypes=["bfloat16"], examples=EXAMPLES, quick=True)


@pytest.mark.all
@pytest.mark.parametrize("fault", planted_gradients.FAULTS["dropped_layer_norm_vjp"])
def test_check_catches_the_faults_of_dropout_before_a_residual(fault: str) -> None:
    wrong = functools.partial(planted.KERNELS["dropped_layer_norm_vjp"], fault=fault)
    with pytest.raises(Failure):
        check(wrong, "dropped_layer_norm_vjp", dtypes=["bfloat16"], examples=EXAMPLES, quick=True)


@pytest.mark.parametrize("fault", planted_gradients.FAULTS["linear_cross_entropy_vjp"])
def test_check_catches_the_faults_of_a_losss_gradient(fault: str) -> None:
    """Each in bfloat16 too, where bounds are widest."""
    wrong = functools.partial(planted.KERNELS["linear_cross_entropy_vjp"], fault=fault)
    with pytest.raises(Failure):
        check(wrong, "linear_cross_entropy_vjp", dtypes=["bfloat16"], examples=EXAMPLES, quick=True)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("scale off by 0.3 %", "rms"),
        ("truncating stores in gelu", "signed_mean"),
        ("sums accumulated in the low dtype", "rms"),
        ("tanh for erf", "componentwise"),
        ("one column 2 % off", "componentwise"),
    ],
)
def test_each_bound_catches_its_fault(name: str, bound: str) -> None:
    """On the fixed data, in bfloat16."""
    from ernie_m.kernels.checking.guards import as_float64, place
    from ernie_m.kernels.checking.operations import fixed_case
    from ernie_m.kernels.checking.verdicts import judge

    op, fault, _ = NUMERICAL[name]
    case = fixed_case(op, "bfloat16")
    arguments = [
        place(n, x, "torch", "bfloat16", "cpu").inner if hasattr(x, "shape") else x for n, x in case.inputs.items()
    ]
    verdicts = judge(as_float64(planted.KERNELS[op](*arguments, **fault)), case.expected, statistical=True)
    assert bound in [verdict.bound for verdict in verdicts if not verdict.holds]

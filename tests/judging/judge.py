"""What each test says of one function of the catalogue: of a fault, and of a right function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from unshrunk import unshrunk

from ernie_m.kernels.checking.check import check, default_device
from ernie_m.kernels.checking.operations import find, fixed_case
from ernie_m.kernels.checking.report import Failure
from ernie_m.kernels.checking.runner import Runner
from ernie_m.kernels.checking.searching import search

from .faults import FAULTS
from .field import TESTS
from .right import RIGHTS, Right

SEEDS = 20


@contextmanager
def _not_shrunk() -> Iterator[None]:
    """Whether a function is refused does not depend on how the failure is shown, which takes most of the time."""
    with (
        unshrunk(),
        mock.patch("ernie_m.kernels.checking.check.reduce", lambda failure, *rest, **options: failure),
        mock.patch("ernie_m.kernels.checking.check.hint", lambda *arguments: None),
    ):
        yield


def refusal(run: Callable[[], Any]) -> str | None:
    """Why `check` refuses a function; None if it does not."""
    with _not_shrunk():
        try:
            run()
        except Failure as failure:
            return f"{failure.case.dtype}, {failure.case.origin}: {failure.reason}"
    return None


def judge_fault(name: str) -> dict[str, Any]:
    """How `check` refuses a fault, and which of the field's tests do; None if a library has no such test."""
    fault = FAULTS[name]
    started = time.process_time()
    ours = {
        way: refusal(lambda quick=way == "quick": check(fault.make(), fault.operation, quick=quick))
        for way in ("quick", "check")
    }
    field = {x.name: not x.passes(fault.make(), fault.op) if x.covers(fault.op) else None for x in TESTS}
    return {**ours, "field": field, "seconds": round(time.process_time() - started, 1)}


def judge_right(name: str) -> dict[str, Any]:
    """Whether `check` refuses a right function at any seed, and which of the field's tests do."""
    right = RIGHTS[name]
    started = time.process_time()
    reason = refusal(lambda: check(right.function, right.operation, **right.options)) or refusal(
        lambda: _more_seeds(right)
    )
    field = {
        x.name: not x.passes(right.function, right.op, right.dtypes)
        if x.covers(right.op, right.dtypes) and right.arrays == "torch"
        else None
        for x in TESTS
    }
    return {"check": reason, "field": field, "seconds": round(time.process_time() - started, 1)}


def _more_seeds(right: Right) -> None:
    """What depends on the seed, at all others: drawn inputs, and the fixed random data."""
    runner = Runner(right.function, right.arrays, default_device(), right.tail)
    operation = find(right.operation)
    for seed in range(1, SEEDS):
        for dtype in right.dtypes:
            search(runner, right.operation, dtype, operation.examples, seed)
            runner.verdicts(fixed_case(right.operation, dtype, seed), statistical=True)

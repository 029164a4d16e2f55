"""Searches drawn inputs for one on which a function is wrong, and shrinks it as hypothesis can."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from .operation import Operation
from .operations import Case, cases
from .report import Failure
from .runner import Runner
from .verdicts import Verdict


def search(runner: Runner, op: str | Operation, dtype: str, examples: int, seed: int) -> list[Verdict]:
    """The verdicts on drawn inputs, the worst last. Raises the smallest Failure that hypothesis finds."""
    import hypothesis

    found: list[Verdict] = []
    failures: list[Failure] = []
    # The "explain" phase takes many calls, and its result is not shown.
    phases = [phase for phase in hypothesis.settings().phases if phase != hypothesis.Phase.explain]

    # Other inputs in each dtype.
    @hypothesis.seed(f"{seed} {dtype}")
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=phases,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases(op, dtype))
    def try_case(case: Case) -> None:
        try:
            found.extend(runner.verdicts(case))
        except Failure as failure:
            failures.append(failure)
            raise

    try:
        with _temporary_home():
            try_case()
    except Exception as error:
        # hypothesis adds a note on how to call `try_case` again.
        vars(error).pop("__notes__", None)
        if isinstance(error, RuntimeError) or not failures:
            raise
        # Not hypothesis's own error: for a function that does not repeat, it only says so.
        smallest = min(reversed(failures), key=lambda failure: _size(failure.case))
        vars(smallest).pop("__notes__", None)
        raise smallest from smallest.__cause__
    return sorted(found, key=lambda verdict: verdict.ratio)


@contextmanager
def _temporary_home() -> Iterator[None]:
    """hypothesis keeps a cache, by default in `.hypothesis` in the current directory, which is not ours to write to."""
    from hypothesis import configuration

    before = getattr(configuration, "__hypothesis_home_directory", None)
    with tempfile.TemporaryDirectory() as folder:
        configuration.set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(before)


def _size(case: Case) -> int:
    return sum(value.size for value in case.inputs.values() if isinstance(value, np.ndarray))

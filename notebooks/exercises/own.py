"""Checks of exercises that `ernie_m.kernels.check` has no operation for: `OWN["row_sum"].check(row_sum, "torch", 6)`.

Each is described by its definition and by the mistakes that people make. A function is called on drawn inputs, with
guards around its arrays. The smallest input that fails is found, and the mistake is named as `check` names its own: the
function runs on inputs on which mistakes differ, and its results are compared with theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnosis import MATCH

from ernie_m.kernels import Failure
from ernie_m.kernels.checking.check import default_device
from ernie_m.kernels.checking.diagnosis import Probe, named
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.guards import flat
from ernie_m.kernels.checking.mistakes import Mistakes
from ernie_m.kernels.checking.operation import Inputs, Operation
from ernie_m.kernels.checking.operations import Case
from ernie_m.kernels.checking.report import DtypeReport, Report
from ernie_m.kernels.checking.runner import Runner
from ernie_m.kernels.checking.searching import search
from ernie_m.kernels.checking.shrinking import reduce
from ernie_m.kernels.runtime import interpreter
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.reference.array import Array

FLOAT32 = FORMATS["float32"]
DRAWS = 3
FEWEST_EXAMPLES = 16


@dataclass(frozen=True)
class Own:
    """An exercise's operation, in float32.

    mistakes: by their words, functions called as the operation is.
    telling: sizes by letter at which the mistakes differ.  small: those of a call that can be followed by hand.
    """

    operation: Operation
    mistakes: Mistakes
    telling: Sequence[Mapping[str, int]]
    small: Mapping[str, int]

    def inputs(self, sizes: Mapping[str, int], seed: int) -> Inputs:
        """Normally distributed numbers."""
        rng = np.random.default_rng(seed)
        found = self.operation.sized(sizes).fixed_inputs(lambda *shape: rng.standard_normal(shape))
        return {name: FLOAT32.round(x) if getattr(x, "dtype", None) == np.float64 else x for name, x in found.items()}

    def small_call(self) -> tuple[Inputs, Array | dict[str, Array]]:
        """The arguments of a small call, whole numbers, and its result; several by name."""
        declared = self.operation.draw.arguments
        inputs = {
            name: np.rint(3 * x) + 0.0 if isinstance(declared[name], str) else x
            for name, x in self.inputs(self.small, 0).items()
        }
        expected = self.operation.expect(FLOAT32, inputs)
        results = {f"expected {name}": part.exact for name, _, part in expected.each()}
        return inputs, results if self.operation.results else expected.exact

    def check(self, function: Callable[..., Any], arrays: str, examples: int) -> Report:
        """Raise Failure, with the smallest input on which the function is wrong, and a hint if the mistake is known."""
        if INTERPRETED:
            interpreter.install()
        runner = Runner(function, arrays, default_device(), tail=False)
        try:
            found = search(runner, self.operation, "float32", max(examples, FEWEST_EXAMPLES), seed=0)
            runner.look_again()
        except Failure as failure:
            smallest = reduce(failure, runner.verdicts)
            raise smallest.with_hint(None if smallest.got is None else self.hint(runner)) from smallest.__cause__
        return Report(self.operation.name, runner.name, {"float32": DtypeReport(len(found), {"": found[-1]})})

    def hint(self, runner: Runner) -> str | None:
        """Name the mistake of a wrong function; None if it is none of the known ones.

        A function that fails differently on the telling inputs, for example because a missing `keepdims` goes unnoticed
        on square ones, gets to know how.
        """
        forms = {words: [flattened(form) for form in forms] for words, forms in self.mistakes.items()}
        draws = ([self.probe(runner, sizes, seed) for sizes in self.telling] for seed in range(1, DRAWS + 1))
        try:
            found = named(forms, draws)
        except Failure as failure:
            return f"on other inputs {failure.reason}"
        return None if found is None else MATCH + found

    def probe(self, runner: Runner, sizes: Mapping[str, int], seed: int) -> Probe:
        """The function's result on telling inputs."""
        case = Case(self.operation.name, "float32", self.inputs(sizes, seed), "telling inputs", self.operation)
        expected = case.expected
        got = runner.result(case)
        return Probe(case.inputs, got.ravel(), expected.exact.ravel(), expected.limit.ravel(), FLOAT32)


def flattened(form: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose results stand one after the other in a flat array; None if it has none."""

    def one_array(**inputs: Any) -> Array | None:
        found = form(**inputs)
        return None if found is None else flat(found).ravel()

    return one_array

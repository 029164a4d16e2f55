"""Calls a function on cases, with guards around its arrays, and judges its results.

Every call is watched (`watching`), so that no kernel in the interpreter reaches memory that is not its own. Results
are kept and looked at again after all calls: a function may return a buffer that its next call overwrites.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ernie_m.reference.array import Array

from ..runtime.dispatch import INTERPRETED
from .bounds import Expected
from .coverage import Trial, narrowed
from .guards import CONTIGUOUS, Guarded, as_float64, flat, kind_of, overlap, place, poisoned
from .operations import Case
from .report import Failure, Tried, judgement
from .special import expected_with_special, positions, signs
from .tails import sharpened
from .verdicts import Verdict, judge
from .virtual import NotTried, OnlyKernels
from .watching import Watch, watching

# In the interpreter, which is slow, only calls with at most this many results are repeated.
SMALL = 2048
NO_DRIVER = "0 active drivers"
SET_INTERPRET = (
    "a Triton kernel needs a GPU or Triton's interpreter, and this process has neither: set TRITON_INTERPRET=1 in the "
    "environment before triton is imported (in a notebook: restart it and set os.environ first), or run "
    "`python -m ernie_m.kernels check`, which sets it"
)
CHANGED_LATER = "the result of an earlier call changed during a later one: it returns a buffer that it uses again"
AGAIN = ", when called again with new numbers at the same address"


class Runner:
    """Calls `function` with arrays of a library on a device. `tail`: whether the tail of gelu is asked for."""

    def __init__(self, function: Callable[..., Any], arrays: str, device: str, tail: bool = True) -> None:
        self.function, self.arrays, self.device, self.tail = function, arrays, device, tail
        self.name = getattr(function, "__name__", type(function).__name__)
        self.tried = Tried()
        self.kept: list[tuple[Case, Any, Array]] = []
        # Whether it launches kernels that can be watched, and the arguments that its last result is a view of.
        self.launches = False
        self.views: list[str] = []

    def verdicts(self, case: Case, statistical: bool = False) -> list[Verdict]:
        """The verdicts on one case. Raises Failure if one does not hold, or if the call is wrong in another way."""
        result, watch = self._call(case)
        if watch.sampled:
            return self._sampled(case, result, watch)
        expected = self.expected(case)
        got = self._joined(case, result, expected)
        verdicts = self._judge(case, got, expected, statistical)
        if got.size <= SMALL:
            self.kept.append((case, result, got))
        repeats = (got.size <= SMALL or not INTERPRETED) and not isinstance(case, Trial)
        if repeats and not np.array_equal(got, flat(self._call(case)[0]), equal_nan=True):
            reason = "two calls with the same input returned different results"
            raise self._failure(case, reason, None, got, expected)
        return verdicts

    def expected(self, case: Case) -> Expected:
        """The exact result and its bounds; with `tail`, those of the tail too."""
        found = expected_with_special(case) if getattr(case, "kind", "") == "positions" else case.expected
        return sharpened(case.op, found, case.inputs) if self.tail and case.own is None else found

    def result(self, case: Case) -> Array:
        """The result on a case in float64, not judged. Raises Failure if the call is wrong in another way."""
        return self._joined(case, self._call(case)[0], case.expected)

    def in_place(self, first: Case, second: Case) -> None:
        """Call the function, change its arguments where they are, and call it again: both results must be right."""
        arguments, placed = self._place(first)
        results = []
        for case, words in ((first, ""), (second, AGAIN)):
            if case is second:
                arguments |= {name: x for name, x in case.inputs.items() if not isinstance(x, np.ndarray)}
                for i, array in enumerate(placed):
                    placed[i] = array.fill(place(array.name, case.inputs[array.name], *self._as(case)).inner)
            result, _ = self._run(case, arguments, placed)
            expected = self.expected(case)
            got = self._joined(case, result, expected)
            self._judge(case, got, expected, False, words)
            results.append((case, result, got))
        self.kept += results

    def look_again(self) -> None:
        """Raise Failure if a result is no longer what it was when it was judged."""
        for case, result, got in self.kept:
            if not np.array_equal(flat(result), got, equal_nan=True):
                raise Failure(self.name, case, CHANGED_LATER)
        self.kept = []

    def _sampled(self, case: Case, result: Any, watch: Watch) -> list[Verdict]:
        """The verdicts on what the programs that ran have written; the rest of the result is not judged."""
        places = watch.written(result)
        if places is None:
            raise NotTried("what each program writes cannot be told")
        if getattr(case, "narrow", None) is None:
            return self._judge_written(case, self._checked(case, result, case.expected.exact.shape), places)
        assert isinstance(case, Trial)
        width = int(np.prod(result.shape[1:]))
        rows = np.unique(places // width)
        small, where = narrowed(case, rows)
        got = small.expected.exact.copy()
        got[where] = self._checked(case, result[torch.from_numpy(rows)], (rows.size, *got.shape[1:]))
        inside = np.searchsorted(rows, places // width)
        return self._judge_written(small, got, where[inside] * width + places % width)

    def _judge_written(self, case: Case, got: Array, places: Array) -> list[Verdict]:
        """The verdicts on the numbers at these places of the flat result."""
        expected = self.expected(case)
        written = np.zeros(got.shape, bool)
        written.flat[places] = True
        kept = np.where(written, got, expected.exact)
        limit = np.where(written, expected.limit, np.inf)
        return self._judge(case, kept, replace(expected, limit=limit), False)

    def _judge(self, case: Case, got: Array, expected: Expected, statistical: bool, words: str = "") -> list[Verdict]:
        """The verdicts, all of which hold."""
        kind = getattr(case, "kind", "")
        if kind:
            verdicts = [positions(got, expected) if kind == "positions" else signs(got, expected)]
        else:
            verdicts = judge(got, expected, statistical)
        for verdict in verdicts:
            if not verdict.holds:
                raise self._failure(case, judgement(verdict, got, expected.exact) + words, verdict, got, expected)
        if self.views:
            raise Failure(self.name, case, f"it returned a view of its argument {self.views[0]}")
        return verdicts

    def _failure(self, case: Case, reason: str, verdict: Verdict | None, got: Array, expected: Expected) -> Failure:
        return Failure(self.name, case, reason, verdict, got, expected.exact, expected.limit)

    def _as(self, case: Case) -> tuple[str, str, str]:
        return self.arrays, case.dtype, self.device

    def _place(self, case: Case) -> tuple[dict[str, Any], list[Guarded]]:
        """The arguments of the call, and those of them that have guards. Virtual arrays are passed as they are."""
        layouts: Mapping[str, str] = getattr(case, "layouts", {})
        placed = []
        arguments = dict(case.inputs)
        for name, value in case.inputs.items():
            if isinstance(value, np.ndarray):
                placed.append(place(name, value, *self._as(case), layouts.get(name, CONTIGUOUS)))
                arguments[name] = placed[-1].inner
        return arguments, placed

    def _call(self, case: Case) -> tuple[Any, Watch]:
        return self._run(case, *self._place(case))

    def _run(self, case: Case, arguments: dict[str, Any], placed: list[Guarded]) -> tuple[Any, Watch]:
        """The function's result, and what its launches did.

        Raises Failure if it raises or exits, changes an argument, reads or writes outside its arrays, or returns
        anything but a plain array.
        """
        allocated: list[Guarded] = []
        error: BaseException | None = None
        result = None
        huge = any(isinstance(value, torch.Tensor) for value in case.inputs.values())
        with watching((placed, allocated), getattr(case, "programs", None)) as watch:
            try:
                with (
                    poisoned(allocated),
                    torch.no_grad(),
                    np.errstate(all="ignore"),
                    warnings.catch_warnings(),
                    OnlyKernels() if huge else nullcontext(),
                ):
                    # The interpreter's maximum of a block of nan.
                    warnings.simplefilter("ignore", RuntimeWarning)
                    result = self.function(*arguments.values())
            except (Exception, SystemExit) as raised:
                error = raised
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"{self.name} was running, called as {self._shapes(case)}") from None
        self.launches |= bool(watch.grids)
        if watch.damage:
            raise Failure(self.name, case, watch.damage) from error
        if watch.exhausted:
            raise NotTried("its programs do too much for the interpreter")
        if isinstance(error, (NotTried, MemoryError)) or "allocate memory" in str(error):
            raise NotTried(str(error)) from error
        self.tried.call(case)
        if error is not None:
            raise self._told(case, error, arguments) from error
        for array in placed:
            if array.damage:
                raise Failure(self.name, case, f"{array.damage} {array.name}")
        for array in allocated:
            if array.outside_damage:
                raise Failure(self.name, case, f"{array.outside_damage} {array.name}")
        self._check_kinds(case, result)
        parts = result if isinstance(result, tuple) else (result,)
        self.views = [array.name for array in placed if any(overlap(part, array.inner) for part in parts)]
        return result, watch

    def _check_kinds(self, case: Case, result: Any) -> None:
        """Raise Failure unless the function returned a plain array or, for several results, a tuple of them."""
        called, names = f", called as {self._shapes(case)}", case.operation.results
        if names and not (isinstance(result, tuple) and len(result) == len(names)):
            got = f"a tuple of {len(result)}" if isinstance(result, tuple) else kind_of(result, self.device)
            raise Failure(self.name, case, f"it returned {got}, expected the tuple ({', '.join(names)}){called}")
        for part in result if names else (result,):
            returned, wanted = kind_of(part, self.device), "Tensor" if self.arrays == "torch" else "ndarray"
            if returned != wanted:
                hint = ' (for a NumPy function, pass arrays="numpy")' if returned == "ndarray" else ""
                raise Failure(self.name, case, f"it returned {returned}, expected {wanted}{hint}{called}")

    def _told(self, case: Case, error: BaseException, arguments: dict[str, Any]) -> Exception:
        """An exception of the function, in one line: how it was called, and what it raised."""
        if NO_DRIVER in str(error):
            return RuntimeError(SET_INTERPRET)
        called = f"called as {self._shapes(case)}"
        try:
            inspect.signature(self.function).bind(*arguments.values())
        except TypeError as mismatch:
            return Failure(self.name, case, f"it cannot be {called}: {mismatch}")
        except ValueError:
            pass
        text = " ".join(str(error).split())
        return Failure(self.name, case, f"it raised {type(error).__name__}: {text} ({called})")

    @staticmethod
    def _shapes(case: Case) -> str:
        """How the operation is called, and the shapes that it got."""
        shapes = [f"{n} {tuple(x.shape)}" for n, x in case.inputs.items() if hasattr(x, "shape")]
        return f"{case.operation.call} with {', '.join(shapes)}"

    def _joined(self, case: Case, result: Any, expected: Expected) -> Array:
        """The result in float64; several are flat, one after the other."""
        if not expected.parts:
            return self._checked(case, result, expected.exact.shape)
        parts = zip(result, expected.parts, strict=True)
        return np.concatenate([self._checked(case, x, part.shape, f" for {part.name}").ravel() for x, part in parts])

    def _checked(self, case: Case, result: Any, shape: tuple[int, ...], words: str = "") -> Array:
        """One result in float64. Raises Failure unless it has the right dtype and shape."""
        called = f", called as {self._shapes(case)}"
        dtype = str(result.dtype).removeprefix("torch.")
        if dtype != case.dtype:
            raise Failure(self.name, case, f"it returned {dtype}{words} for {case.dtype} inputs")
        if tuple(result.shape) != shape:
            raise Failure(self.name, case, f"it returned shape {tuple(result.shape)}{words}, expected {shape}{called}")
        return as_float64(result)

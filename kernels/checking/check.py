"""Check any kernel against its twin in `ernie_m.reference`, on inputs drawn to expose its faults.

    from ernie_m.kernels import check
    check(my_gelu, op="gelu")

The function is called as its operation says (`operations.OPERATIONS`): "gelu" as f(x), "packed_attention" as
f(qkv, cu_seqlens). It may be the launcher of a Triton kernel, a torch function or, with arrays="numpy", a NumPy one.
hypothesis draws inputs and shrinks one that fails. Then fixed random data are used for bounds on averages, which
detect errors that no single number shows. Results must repeat bitwise.

Leaves out: gradients, NaN and infinity as inputs, speed.
Bounds: `bounds.py` and `verdicts.py`. Guards around arrays: `guards.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..runtime import interpreter
from ..runtime.dispatch import INTERPRETED
from ..runtime.dtypes import TORCH_DTYPES
from .guards import Guarded, as_float64, place, poisoned
from .operations import OPERATIONS, Case, cases, fixed_case
from .report import DtypeReport, Failure, Report, judgement
from .shrinking import reduce
from .verdicts import Verdict, judge

# In the interpreter, which is slow, only calls with at most this many results are repeated.
SMALL = 2048
NO_DRIVER = "0 active drivers"
SET_INTERPRET = (
    "a Triton kernel needs a GPU or Triton's interpreter, and this process has neither: set TRITON_INTERPRET=1 in the "
    "environment before triton is imported (in a notebook: restart it and set os.environ first), or run "
    "`python -m ernie_m.kernels check`, which sets it"
)


def check(
    function: Callable[..., Any],
    op: str,
    dtypes: Sequence[str] | None = None,
    examples: int = 50,
    seed: int = 0,
    arrays: str = "torch",
    device: str | None = None,
) -> Report:
    """Raise `Failure`, with the smallest failing input, unless `function` computes `op` within the bounds.

    op: a key of `operations.OPERATIONS`, which also says how `function` is called.
    dtypes: any of "float32", "float16", "bfloat16"; by default all, except bfloat16 for NumPy, which lacks it.
    examples: how many inputs to draw for each dtype.  seed: which inputs to draw.
    arrays: what to call `function` with, "torch" tensors or "numpy" arrays.
    device: where the tensors are; by default a GPU if there is one and Triton's interpreter is off.

    Raises ValueError for invalid arguments, and RuntimeError if a Triton kernel cannot run here.
    """
    dtypes = _validate(op, dtypes, examples, arrays)
    device = device or ("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
    if INTERPRETED:
        interpreter.install()
    runner = Runner(function, arrays, device)
    return Report(op, runner.name, {dtype: _check_dtype(runner, op, dtype, examples, seed) for dtype in dtypes})


def _validate(op: str, dtypes: Sequence[str] | None, examples: int, arrays: str) -> Sequence[str]:
    """The dtypes to check. Raises ValueError for invalid arguments."""
    if op not in OPERATIONS:
        raise ValueError(f"op: expected one of {', '.join(OPERATIONS)}, got {op!r}")
    if arrays not in ("torch", "numpy"):
        raise ValueError(f"arrays: expected 'torch' or 'numpy', got {arrays!r}")
    known = [dtype for dtype in TORCH_DTYPES if arrays == "torch" or dtype != "bfloat16"]
    chosen = known if dtypes is None else [dtypes] if isinstance(dtypes, str) else list(dtypes)
    for dtype in chosen:
        if dtype not in known:
            raise ValueError(f"dtypes: expected any of {', '.join(known)} for {arrays} arrays, got {dtype!r}")
    if examples < 1:
        raise ValueError(f"examples: expected at least 1, got {examples}")
    return chosen


def _check_dtype(runner: Runner, op: str, dtype: str, examples: int, seed: int) -> DtypeReport:
    """Check drawn inputs first, because they yield smaller failures, then the fixed data."""
    try:
        found = _search(runner, op, dtype, examples, seed)
        fixed = runner.verdicts(fixed_case(op, dtype), statistical=True)
    except Failure as failure:
        raise reduce(failure, runner.verdicts) from failure.__cause__
    worst = max(found[-1], fixed[0], key=lambda verdict: verdict.ratio)
    return DtypeReport(len(found), {verdict.bound: verdict for verdict in [worst, *fixed[1:]]})


def _search(runner: Runner, op: str, dtype: str, examples: int, seed: int) -> list[Verdict]:
    """The verdicts on drawn inputs, the worst last. Raises the smallest Failure that hypothesis finds."""
    import hypothesis

    found: list[Verdict] = []
    failures: list[Failure] = []
    # The "explain" phase takes many calls, and its result is not shown.
    phases = [phase for phase in hypothesis.settings().phases if phase != hypothesis.Phase.explain]

    @hypothesis.seed(seed)
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


def _size(case: Case) -> int:
    return sum(value.size for value in case.inputs.values() if isinstance(value, np.ndarray))


class Runner:
    """Calls a function on cases, with guards around its arrays, and judges the results."""

    def __init__(self, function: Callable[..., Any], arrays: str, device: str) -> None:
        self.function, self.arrays, self.device = function, arrays, device
        self.name = getattr(function, "__name__", type(function).__name__)

    def verdicts(self, case: Case, statistical: bool = False) -> list[Verdict]:
        """The verdicts on one case. Raises Failure if one does not hold, or if the call is wrong in another way."""
        expected = case.expected
        result = self._call(case)
        self._check_result(case, result, expected.exact.shape)
        got = as_float64(result)
        verdicts = judge(got, expected, statistical)
        arrays: dict[str, Any] = {"got": got, "expected": expected.exact, "limit": expected.limit}
        for verdict in verdicts:
            if not verdict.holds:
                raise Failure(self.name, case, judgement(verdict, got, expected.exact), verdict, **arrays)
        repeats = got.size <= SMALL or not INTERPRETED
        if repeats and not np.array_equal(got, as_float64(self._call(case)), equal_nan=True):
            raise Failure(self.name, case, "two calls with the same input returned different results", **arrays)
        return verdicts

    def _call(self, case: Case) -> Any:
        """The function's result. Raises Failure if it raises, changes an argument, or writes outside its arrays."""
        arguments: dict[str, Any] = {}
        placed: list[Guarded] = []
        for name, value in case.inputs.items():
            if isinstance(value, np.ndarray):
                placed.append(place(name, value, self.arrays, case.dtype, self.device))
                value = placed[-1].inner
            arguments[name] = value
        allocated: list[Guarded] = []
        try:
            with poisoned(allocated), torch.no_grad():
                result = self.function(*arguments.values())
        except Exception as error:
            if NO_DRIVER in str(error):
                raise RuntimeError(SET_INTERPRET) from error
            raise Failure(self.name, case, f"it raised {type(error).__name__}: {error}") from error
        for array in placed:
            if array.damage:
                raise Failure(self.name, case, f"{array.damage} {array.name}")
        for array in allocated:
            if array.outside_damage:
                raise Failure(self.name, case, f"{array.outside_damage} {array.name}")
        return result

    def _check_result(self, case: Case, result: Any, shape: tuple[int, ...]) -> None:
        """Raise Failure unless the result is an array of the right library, dtype and shape."""
        wanted = torch.Tensor if self.arrays == "torch" else np.ndarray
        if not isinstance(result, wanted):
            hint = "" if not isinstance(result, np.ndarray) else ' (for a NumPy function, pass arrays="numpy")'
            raise Failure(self.name, case, f"it returned {type(result).__name__}, expected {wanted.__name__}{hint}")
        dtype = str(result.dtype).removeprefix("torch.")
        if dtype != case.dtype:
            raise Failure(self.name, case, f"it returned {dtype} for {case.dtype} inputs")
        if tuple(result.shape) != shape:
            raise Failure(self.name, case, f"it returned shape {tuple(result.shape)}, expected {shape}")

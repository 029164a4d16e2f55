"""Check a kernel, anyone's: against the twin in `ernie_m.reference`, on inputs drawn to find what is wrong with it.

    from ernie_m.kernels import check
    check(my_gelu, op="gelu")

The function is called as its operation says (`operations.OPERATIONS`): "gelu" as f(x), "packed_attention" as
f(qkv, cu_seqlens). It may be a launcher of a Triton kernel, a torch function, or, with arrays="numpy", a NumPy one.
hypothesis draws inputs, and makes one that fails as small as it can; then come fixed random data, for bounds on
averages, which see what no single number shows. Results must repeat bitwise.

Leaves out: gradients, NaN and infinity as inputs, speed.
Bounds: `bounds.py` and `judge.py`. Guards around arrays: `check_buffers.py`.
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

# In the interpreter, which takes its time, only calls with at most so many results are made twice.
SMALL = 2048
NO_DRIVER = "0 active drivers"
SET_INTERPRET = (
    "a Triton kernel needs a GPU or Triton's interpreter, and this process has neither: set TRITON_INTERPRET=1 in the "
    "environment before triton is imported (in a notebook: restart it, and set os.environ first), or run "
    "`python -m ernie_m.kernels check`, which does"
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
    dtypes: of "float32", "float16", "bfloat16"; all by default, without bfloat16, which NumPy lacks, for NumPy.
    examples: how many inputs are drawn for each dtype.  seed: others for another seed.
    arrays: what `function` is called with, "torch" tensors or "numpy" arrays.
    device: where tensors are; a GPU by default, where there is one.

    Raises ValueError for arguments that are none of these, and RuntimeError if a Triton kernel cannot run here.
    """
    dtypes = _checked(op, dtypes, examples, arrays)
    device = device or ("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
    if INTERPRETED:
        interpreter.install()
    runner = Runner(function, arrays, device)
    return Report(op, runner.name, {dtype: _check_dtype(runner, op, dtype, examples, seed) for dtype in dtypes})


def _checked(op: str, dtypes: Sequence[str] | None, examples: int, arrays: str) -> Sequence[str]:
    """The dtypes to check, or ValueError."""
    if op not in OPERATIONS:
        raise ValueError(f"op: expected one of {', '.join(OPERATIONS)}, got {op!r}")
    if arrays not in ("torch", "numpy"):
        raise ValueError(f"arrays: expected 'torch' or 'numpy', got {arrays!r}")
    known = [dtype for dtype in TORCH_DTYPES if arrays == "torch" or dtype != "bfloat16"]
    chosen = known if dtypes is None else [dtypes] if isinstance(dtypes, str) else list(dtypes)
    for dtype in chosen:
        if dtype not in known:
            raise ValueError(f"dtypes: expected some of {', '.join(known)} for {arrays} arrays, got {dtype!r}")
    if examples < 1:
        raise ValueError(f"examples: expected at least 1, got {examples}")
    return chosen


def _check_dtype(runner: Runner, op: str, dtype: str, examples: int, seed: int) -> DtypeReport:
    """Drawn inputs first, as they give the smaller failure, then the fixed data."""
    try:
        found = _search(runner, op, dtype, examples, seed)
        fixed = runner.verdicts(fixed_case(op, dtype), statistical=True)
    except Failure as failure:
        raise reduce(failure, runner.verdicts) from failure.__cause__
    worst = max(found[-1], fixed[0], key=lambda verdict: verdict.ratio)
    return DtypeReport(len(found), {verdict.bound: verdict for verdict in [worst, *fixed[1:]]})


def _search(runner: Runner, op: str, dtype: str, examples: int, seed: int) -> list[Verdict]:
    """The verdicts on drawn inputs, the worst of them last. Raises the smallest Failure that hypothesis comes to."""
    import hypothesis

    found: list[Verdict] = []
    failures: list[Failure] = []
    # Which of the choices made no difference ("explain") takes many calls, and is nothing that is shown.
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
    def one(case: Case) -> None:
        try:
            found.extend(runner.verdicts(case))
        except Failure as failure:
            failures.append(failure)
            raise

    try:
        one()
    except Exception as error:
        # hypothesis adds how it would call `one` again.
        vars(error).pop("__notes__", None)
        if isinstance(error, RuntimeError) or not failures:
            raise
        # Not its own last word: of a function that does not repeat, that would be that it does not.
        smallest = min(reversed(failures), key=lambda failure: _size(failure.case))
        vars(smallest).pop("__notes__", None)
        raise smallest from smallest.__cause__
    return sorted(found, key=lambda verdict: verdict.ratio)


def _size(case: Case) -> int:
    return sum(value.size for value in case.inputs.values() if isinstance(value, np.ndarray))


class Runner:
    """Calls a function on cases, between guards, and judges what it gives."""

    def __init__(self, function: Callable[..., Any], arrays: str, device: str) -> None:
        self.function, self.arrays, self.device = function, arrays, device
        self.name = getattr(function, "__name__", type(function).__name__)

    def verdicts(self, case: Case, statistical: bool = False) -> list[Verdict]:
        """The verdicts on one case, all of which hold. Raises Failure if one does not, or the call is not in order."""
        expected = case.expected
        result = self._call(case)
        self._check_kind(case, result, expected.exact.shape)
        got = as_float64(result)
        verdicts = judge(got, expected, statistical)
        arrays: dict[str, Any] = {"got": got, "expected": expected.exact, "limit": expected.limit}
        for verdict in verdicts:
            if not verdict.holds:
                raise Failure(self.name, case, judgement(verdict, got, expected.exact), verdict, **arrays)
        repeats = got.size <= SMALL or not INTERPRETED
        if repeats and not np.array_equal(got, as_float64(self._call(case)), equal_nan=True):
            raise Failure(self.name, case, "called twice on the same input, it gives two results", **arrays)
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
        taken: list[Guarded] = []
        try:
            with poisoned(taken), torch.no_grad():
                result = self.function(*arguments.values())
        except Exception as error:
            if NO_DRIVER in str(error):
                raise RuntimeError(SET_INTERPRET) from error
            raise Failure(self.name, case, f"it raises {type(error).__name__}: {error}") from error
        for array in placed:
            if array.damage:
                raise Failure(self.name, case, f"{array.name}: {array.damage}")
        for array in taken:
            if array.outside_damage:
                raise Failure(self.name, case, f"{array.name}: {array.outside_damage}")
        return result

    def _check_kind(self, case: Case, result: Any, shape: tuple[int, ...]) -> None:
        """Raise Failure unless the result is an array of the right library, dtype and shape."""
        kind = torch.Tensor if self.arrays == "torch" else np.ndarray
        if not isinstance(result, kind):
            hint = "" if not isinstance(result, np.ndarray) else ' (of a NumPy function? then arrays="numpy")'
            raise Failure(self.name, case, f"it gives {type(result).__name__}, not {kind.__name__}{hint}")
        dtype = str(result.dtype).removeprefix("torch.")
        if dtype != case.dtype:
            raise Failure(self.name, case, f"it gives {dtype} for {case.dtype}")
        if tuple(result.shape) != shape:
            raise Failure(self.name, case, f"it gives shape {tuple(result.shape)}, not {shape}")

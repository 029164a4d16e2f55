"""Check any kernel against its twin in `ernie_m.reference`, on inputs drawn to expose its faults.

    from ernie_m.kernels import check
    print(check(my_gelu, op="gelu"))

The function is called as its operation says (`operations.OPERATIONS`): "gelu" as f(x), "packed_attention" as
f(qkv, cu_seqlens). It may be the launcher of a Triton kernel, a torch function or, with arrays="numpy", a NumPy one.
hypothesis draws inputs and shrinks one that fails. Then fixed random data are used for bounds on averages, which
detect errors that no single number shows, and the fixed cases of `coverage` and `special`: the sizes of real models and
beyond, arguments that are not contiguous, special values, NaN and infinity. Results must repeat bitwise, follow
arguments that change in place, and stay what they are during later calls. The report says what was tried.

Gradients are operations of their own, with several results, each of which is judged: "bias_gelu_vjp" as f(dy, x, bias).

Leaves out: speed, and races, which the interpreter cannot show.
Bounds: `bounds.py`, `tails.py` and `verdicts.py`. Guards around arrays: `guards.py` and `watching.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..runtime import interpreter
from ..runtime.dispatch import INTERPRETED
from ..runtime.dtypes import TORCH_DTYPES
from .coverage import (
    Trial,
    large_trials,
    layout_trials,
    many_trial,
    normal_numbers,
    past_int32_trial,
    rounded,
    turned,
)
from .diagnosis import hint
from .drawing import HEAD_SIZES
from .families import ALWAYS, FULL, ONCE, THOROUGH, family
from .operation import BY_ROW, Inputs, Operation
from .operations import Case, case_of, find, fixed_case
from .report import DtypeReport, Failure, Report
from .runner import Runner
from .searching import search
from .shrinking import reduce
from .special import special_trials
from .tails import TAILS
from .verdicts import Verdict
from .virtual import NotTried

# How many inputs are drawn for each dtype: with `quick`, by default, and with `thorough`.
EXAMPLES = (8, 50, 500)


@dataclass(frozen=True)
class Plan:
    """How much to try: the number and seed of drawn inputs, more or fewer fixed cases, and the user's own.

    once: the dtype for what is tried in one alone.  plain: no views, NaN, infinity or huge arrays.
    """

    examples: int
    seed: int
    quick: bool
    thorough: bool
    once: str
    cases: Sequence[Mapping[str, Any]] = ()
    plain: bool = False

    def times(self, dtype: str) -> tuple[int, ...]:
        """Which of the large cases to try in a dtype."""
        if self.quick:
            return (ALWAYS, ONCE) if dtype == self.once else (ALWAYS,)
        return (ALWAYS, ONCE, FULL, THOROUGH) if self.thorough else (ALWAYS, ONCE, FULL)


def check(
    function: Callable[..., Any],
    op: str | Operation,
    dtypes: Sequence[str] | None = None,
    examples: int | None = None,
    seed: int = 0,
    arrays: str = "torch",
    device: str | None = None,
    quick: bool = False,
    thorough: bool = False,
    tail: bool = True,
    plain: bool = False,
    sizes: Mapping[str, Any] | None = None,
    cases: Sequence[Inputs] = (),
) -> Report:
    """Raise `Failure`, with the smallest failing input, unless `function` computes `op` within the bounds.

    op: a key of `operations.OPERATIONS`, which also says how `function` is called, or an `Operation` of your own.
    dtypes: any of "float32", "float16", "bfloat16"; by default all, except bfloat16 for NumPy, which lacks it.
    examples: how many inputs to draw for each dtype; by default 50.  seed: which inputs to draw.
    arrays: what to call `function` with, "torch" tensors or "numpy" arrays.
    device: where the tensors are; by default a GPU if there is one and Triton's interpreter is off.
    quick, thorough: try less, in a few seconds, or much more. `quick` tries layouts and special values in one dtype,
        and neither 2,176 rows nor 2,050 keys.
    tail: ask for the digits of gelu where it is small (`tails`), which ½x(1 + erf(x/√2)) has lost.
    plain: try contiguous arrays of fewer than 2³¹ finite numbers only, for functions that promise nothing else, such
        as a learner's.
    sizes: sizes to draw, by letter, for an operation whose inputs are declared by letters (`Operation.sized`).
    cases: inputs of your own, by name in call order; their floats are rounded to each dtype.

    Raises ValueError for invalid arguments, and RuntimeError if a Triton kernel cannot run here.
    """
    examples = EXAMPLES[1 + thorough - quick] if examples is None else examples
    dtypes = _validate(op, dtypes, examples, arrays, quick and thorough)
    op = op if sizes is None else find(op).sized(sizes)
    runner = Runner(function, arrays, device or default_device(), tail)
    plan = Plan(examples, seed, quick, thorough, smallest(dtypes), cases, plain)
    found = {dtype: check_dtype(runner, op, dtype, plan) for dtype in dtypes}
    if not tail and find(op).name in TAILS:
        runner.tried.leave_out("the tail of gelu (tail=False)")
    if plain:
        runner.tried.leave_out("views, signs of zeros, NaN, infinity and more than 2³¹ numbers (plain=True)")
    return Report(find(op).name, runner.name, found, runner.tried)


def default_device() -> str:
    """A GPU if there is one and Triton's interpreter is off."""
    return "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


def smallest(dtypes: Sequence[str]) -> str:
    """The dtype in which to try what is tried in one alone."""
    return min(dtypes, key=lambda dtype: TORCH_DTYPES[dtype].itemsize)


def _validate(
    op: str | Operation, dtypes: Sequence[str] | None, examples: int, arrays: str, both: bool
) -> Sequence[str]:
    """The dtypes to check. Raises ValueError for invalid arguments."""
    find(op)
    if arrays not in ("torch", "numpy"):
        raise ValueError(f"arrays: expected 'torch' or 'numpy', got {arrays!r}")
    known = [dtype for dtype in TORCH_DTYPES if arrays == "torch" or dtype != "bfloat16"]
    chosen = known if dtypes is None else [dtypes] if isinstance(dtypes, str) else list(dict.fromkeys(dtypes))
    if not chosen:
        raise ValueError(f"dtypes: expected at least one of {', '.join(known)}, got none")
    for dtype in chosen:
        if dtype not in known:
            raise ValueError(f"dtypes: expected any of {', '.join(known)} for {arrays} arrays, got {dtype!r}")
    if examples < 1:
        raise ValueError(f"examples: expected at least 1, got {examples}")
    if both:
        raise ValueError("quick, thorough: expected at most one of them, got both")
    return chosen


def check_dtype(runner: Runner, op: str | Operation, dtype: str, plan: Plan) -> DtypeReport:
    """Check drawn inputs first, because they yield smaller failures, then the fixed data and cases."""
    if INTERPRETED:
        interpreter.install()
    try:
        found = search(runner, op, dtype, plan.examples, plan.seed)
        averages = runner.verdicts(fixed_case(op, dtype), statistical=True)
        others = [averages[0], *_fixed(runner, op, dtype, plan)]
    except Failure as failure:
        reduced = reduce(
            failure, lambda case: _verdicts(runner, case), head_size=1 if runner.arrays == "numpy" else HEAD_SIZES[0]
        )
        found_hint = None if reduced.got is None else hint(reduced.case, runner.result)
        raise reduced.with_hint(found_hint) from reduced.__cause__
    if dtype == plan.once:
        _check_launches(runner, op, dtype, plan)
    worst = max([found[-1], *others], key=lambda verdict: verdict.ratio)
    # Of several results, the worst.
    sorted_averages = sorted(averages[1:], key=lambda verdict: verdict.ratio)
    return DtypeReport(len(found), {verdict.bound: verdict for verdict in [worst, *sorted_averages]})


def _fixed(runner: Runner, op: str | Operation, dtype: str, plan: Plan) -> Iterator[Verdict]:
    """The verdicts on all fixed cases of a dtype. Raises Failure."""
    for inputs in plan.cases:
        yield from runner.verdicts(case_of(op, dtype, inputs, "inputs of your own"))
    # Neither special values nor how an array lies in memory depend much on the dtype.
    elsewhere = plan.quick and dtype != plan.once
    special = () if elsewhere else special_trials(op, dtype, runner.tail)
    chosen = [trial for trial in special if not (plan.plain and trial.kind)]
    for trial in [*chosen, *large_trials(op, dtype, plan.times(dtype))]:
        try:
            yield from (verdict for verdict in runner.verdicts(trial) if not trial.kind)
        except NotTried as reason:
            runner.tried.leave_out(f"{trial.origin}: {reason}")
    for trial in () if plan.plain or elsewhere else layout_trials(op, dtype):
        try:
            yield from runner.verdicts(trial)
        except Failure as failure:
            if not _wants_contiguous(failure):
                raise
    known = family(op)
    if known is not None:
        first, second = (known.small(normal_numbers(n)) for n in (5, 6))
        second = turned(second) if isinstance(op, str) else second
        runner.in_place(*(rounded(op, dtype, inputs, "fixed inputs") for inputs in (first, second)))
    runner.look_again()


def _verdicts(runner: Runner, case: Case) -> list[Verdict]:
    """The verdicts on a smaller case; none if it cannot be tried."""
    try:
        return runner.verdicts(case)
    except NotTried:
        return []


def _wants_contiguous(failure: Failure) -> bool:
    """Whether the function refused an argument because of its layout: that is an answer, too."""
    return failure.__cause__ is not None and any(word in failure.reason.lower() for word in ("contiguous", "stride"))


def _check_launches(runner: Runner, op: str | Operation, dtype: str, plan: Plan) -> None:
    """The fixed cases that are about the launch: so many rows that a grid or an offset no longer fits in 32 bits."""
    rows = find(op).crop in BY_ROW
    for what, make in (("70,000 rows", many_trial), ("more than 2³¹ numbers", past_int32_trial)):
        if plan.plain and make is past_int32_trial:
            continue
        try:
            trial: Trial | None = make(op, dtype)
            if trial is None:
                raise NotTried("its rows are not independent")
            # Many sequences take a function without a kernel too long.
            if not (runner.launches or (rows and make is many_trial)):
                raise NotTried("no kernel of it ran in the interpreter")
            runner.verdicts(trial)
        except NotTried as reason:
            runner.tried.leave_out(f"{what}: {reason}")

"""Would other block sizes, warps or stages be faster? For `bench --sweep`.

Each kernel's module picks its configuration with a function (see `runtime/variants.py`). A sweep replaces what that
function returns for the case at hand. It tries the neighbours of the module's choice: one number doubled or halved, or
one stage more or less. If the fastest neighbour wins by more than the spread, its own neighbours are tried, and so on.
The configurations of a round take turns in one loop, the module's choice among them, so ratios are within one run.

What wins is a suggestion: its result was compared with that of the module's choice on one case's inputs only. After
entering it in the module, run `verify`, and `compile` for the other targets.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import count
from types import FunctionType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..runtime.variants import Configuration
from .measured import OURS
from .report import Case, aligned, duration
from .runner import CANNOT_BUILD, built, release
from .timing import Call, Missing, Timer, Timing, first_line, time_calls

HEADINGS = (
    "what", "size", "batch", "dtype", "chosen by", "round", "configuration",
    "median", "10 to 90 %", "against the module's", "of the difference allowed", "verdict",
)  # fmt: skip
PACKAGE = __name__.rpartition(".benchmark.")[0]
# Blocks that may have any size. Others cover a whole row, or fix the order of a sum that two kernels share.
BLOCKS = ("BM", "BN", "ROWS", "COLUMNS")
MOST_WARPS, MOST_STAGES = 16, 5
BEST, WRONG = "best", "wrong result"
# Right results differ by less, as RMS of the difference over RMS: one unit in the last place, or in float32, whose sums
# are long, a hundred.
LIMITS = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 1e-5}

Chooser = Callable[..., Configuration]
Use = tuple[Chooser, tuple[Any, ...]]  # a function that chooses, and its arguments


class Choices:
    """While entered, the package's choices of configurations pass through here.

    `seen`: what was chosen for each use. `instead`: what is returned in place of it.
    """

    def __init__(self) -> None:
        self.seen: dict[Use, Configuration] = {}
        self.instead: dict[Use, Configuration] = {}
        self._places = [
            (module, name, value)
            for module in [module for name, module in sys.modules.items() if name.startswith(f"{PACKAGE}.")]
            for name, value in vars(module).items()
            if isinstance(value, FunctionType) and value.__annotations__.get("return") == Configuration.__name__
        ]
        self._depth = 0

    def _passed(self, chooser: Chooser) -> Chooser:
        def choose(*arguments: Any) -> Configuration:
            use = (chooser, arguments)
            if use in self.instead:
                return self.instead[use]
            # One chooser may ask another; the outer one is what a launch uses.
            self._depth += 1
            try:
                found = chooser(*arguments)
            finally:
                self._depth -= 1
            if not self._depth:
                self.seen[use] = found
            return found

        return choose

    def __enter__(self) -> Choices:
        for module, name, chooser in self._places:
            setattr(module, name, self._passed(chooser))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for module, name, chooser in self._places:
            setattr(module, name, chooser)


def neighbours(chosen: Configuration) -> list[Configuration]:
    """The configurations that differ from this one in one number."""
    # Without a loop, one block holds all keys.
    names = [name for name in chosen.blocks if name in BLOCKS and (name != "BN" or chosen.blocks.get("LOOP", True))]
    sizes = [(name, size) for name in names for size in (chosen.blocks[name] // 2, 2 * chosen.blocks[name]) if size]
    warps = [n for n in (chosen.num_warps // 2, 2 * chosen.num_warps) if 1 <= n <= MOST_WARPS]
    stages = [n for n in (chosen.num_stages - 1, chosen.num_stages + 1) if 1 <= n <= MOST_STAGES]
    return [
        *(replace(chosen, blocks={**chosen.blocks, name: size}) for name, size in sizes),
        *(replace(chosen, num_warps=n) for n in warps),
        *(replace(chosen, num_stages=n) for n in stages),
    ]


def described(chosen: Configuration) -> str:
    """A configuration in words; different ones differ."""
    blocks = " ".join(f"{name}={size}" for name, size in chosen.blocks.items())
    return f"{blocks}, warps {chosen.num_warps}, stages {chosen.num_stages}"


@dataclass(frozen=True)
class Tried:
    """A configuration in one round. `module`: the median of the module's choice in the same round. difference: of its
    result from that of the module's choice, as a share of what is allowed. verdict: BEST, WRONG or ""."""

    case: Case
    chooser: str
    round: int
    configuration: str
    found: Timing | Missing
    module: float | None = None
    difference: float | None = None
    verdict: str = ""

    def cells(self) -> tuple[str, ...]:
        """The cells of a table, in the order of HEADINGS."""
        t = self.found
        about = (*astuple(self.case), self.chooser, str(self.round), self.configuration)
        if isinstance(t, Missing):
            return (*about, f"not measured: {t.why}", "", "", "", self.verdict)
        against = "" if self.module is None else f"{t.median / self.module:.2f} x"
        differs = "" if self.difference is None else f"{self.difference:.0%}"
        return (*about, duration(t.median), f"{duration(t.low)} to {duration(t.high)}", against, differs, self.verdict)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON; times in seconds."""
        row = {**vars(self.case), "chooser": self.chooser, "round": self.round, "configuration": self.configuration}
        if isinstance(self.found, Missing):
            return row | {"not_measured": self.found.why, "verdict": self.verdict}
        t = self.found
        row |= {"median_s": t.median, "p10_s": t.low, "p90_s": t.high, "runs": t.runs, "module_s": self.module}
        return row | {"difference": self.difference, "verdict": self.verdict}


def sweep(cases: Sequence[Case], runs: int, timer: Timer = time_calls, device: str = "cuda") -> Iterator[list[Tried]]:
    """Sweep each choice that our first competitor of each case makes; yields what was tried, round by round."""
    for case in cases:
        yield from _sweep_of(case, runs, timer, device)
        release()


def _sweep_of(case: Case, runs: int, timer: Timer, device: str) -> Iterator[list[Tried]]:
    try:
        made = built(case, device)
        call = next(call for name, call in made.calls.items() if name.startswith(OURS))
        with Choices() as choices:
            call(0)
    except CANNOT_BUILD as error:
        yield [Tried(case, "", 0, "", Missing(first_line(error)))]
        return
    if not choices.seen:
        yield [Tried(case, "", 0, "", Missing("no configuration is chosen by a function"))]
    for use, chosen in choices.seen.items():
        yield from climb(case, call, use, chosen, lambda calls: timer(calls, runs, made.hide_host))


def climb(
    case: Case,
    call: Call,
    use: Use,
    module: Configuration,
    timed: Callable[[dict[str, Call]], dict[str, Timing | Missing]],
) -> Iterator[list[Tried]]:
    """From the module's choice to a configuration without a neighbour that is faster by more than the spread."""
    page = use[0].__module__.rpartition(".")[2]
    chooser = f"{page}.{use[0].__name__}({', '.join(map(str, use[1]))})"
    start = best = described(module)
    known = {start: module}
    with Choices() as choices:

        def instead(chosen: Configuration) -> Call:
            def run(i: int) -> Any:
                choices.instead = {use: chosen}
                return call(i)

            return run

        expected = tensors(instead(module)(0))
        for number in count(1):
            found = {start: module, best: known[best]}
            found |= {described(c): c for c in neighbours(known[best]) if described(c) not in known}
            known |= found
            times = timed({name: instead(chosen) for name, chosen in found.items()})
            medians = {name: t.median for name, t in times.items() if isinstance(t, Timing)}
            differs = {name: difference(tensors(instead(found[name])(0)), expected) for name in medians}
            right = [name for name in medians if differs[name] <= 1.0]
            fastest = min(right, key=medians.__getitem__, default=best)
            won = wins(times[fastest], times[best])
            best = fastest if won else best
            verdicts = {**{name: WRONG for name in medians if name not in right}, best: BEST}
            yield [
                Tried(case, chooser, number, name, t, medians.get(start), differs.get(name), verdicts.get(name, ""))
                for name, t in times.items()
            ]
            if not won:
                return


def wins(t: Timing | Missing, other: Timing | Missing) -> bool:
    """Whether one is faster by more than the spread: nine in ten of its times are below nine in ten of the other's."""
    return isinstance(t, Timing) and not (isinstance(other, Timing) and t.high >= other.low)


def tensors(result: Any) -> list[Tensor]:
    """Copies of all tensors in a result."""
    return [x.detach().clone() for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative RMS difference between two results' tensors, in units of LIMITS; infinite if it is NaN."""
    worst = 0.0
    for x, y in zip(found, expected, strict=True):
        distance, size = float((x.double() - y.double()).norm()), float(y.double().norm())
        if distance:
            share = distance / size / LIMITS[y.dtype] if size else math.inf
            worst = max(worst, share) if share == share else math.inf
    return worst


def suggestions(found: Sequence[Tried]) -> list[str]:
    """A line for each choice of the modules for which something faster was found."""
    last = {(row.case, row.chooser): row for row in found if row.verdict == BEST}
    chosen = {(row.case, row.chooser): row.configuration for row in reversed(found)}
    return [
        f"{row.case}: {row.chooser}: {row.configuration} "
        f"takes {row.found.median / row.module:.2f} x the time of {chosen[of]}"
        for of, row in last.items()
        if row.module and isinstance(row.found, Timing) and row.configuration != chosen[of]
    ]


def table(found: Sequence[Tried]) -> str:
    """A table of everything that was tried."""
    return aligned(HEADINGS, [row.cells() for row in found])

"""Whether our results have the same bits each time, alone and beside another load.

The load is a queue of matrix products on a second stream, about as long as the call: what else runs on the GPU changes
when each program of a kernel starts, and so the order of whatever depends on that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch

from .measured import OURS, bits
from .report import Case, aligned
from .runner import CANNOT_BUILD, built, release
from .timing import Call, first_line

HEADINGS = ("what", "size", "batch", "dtype", "who", "runs", "equal, alone", "equal, beside products")
PRODUCT = 4096

Load = Callable[[], None]


@dataclass(frozen=True)
class Repeats:
    """How many of `runs` calls gave the bits of the first one. error: why nothing could be called, or ""."""

    case: Case
    who: str
    runs: int
    alone: int = 0
    beside: int = 0
    error: str = ""

    @property
    def holds(self) -> bool:
        """Whether all were equal."""
        return not self.error and self.alone == self.beside == self.runs

    def cells(self) -> tuple[str, ...]:
        """The cells of a table, in the order of HEADINGS."""
        about = (*astuple(self.case), self.who, str(self.runs))
        return (*about, *([f"not measured: {self.error}", ""] if self.error else [str(self.alone), str(self.beside)]))

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**vars(self.case), **{name: x for name, x in asdict(self).items() if name != "case"}}


def equal_runs(call: Call, runs: int, load: Load | None = None) -> int:
    """How many of `runs` calls on the same inputs give the bits of another call before them, each beside `load`."""
    # A CUDA graph writes each result into the same memory.
    first, equal = [x.clone() for x in bits(call(0))], 0
    for _ in range(runs):
        if load is not None:
            load()
        equal += all(torch.equal(x, y) for x, y in zip(first, bits(call(0)), strict=True))
    return equal


def products_beside(call: Call) -> Load:
    """Queues products on a stream of its own, which take about as long as `call`."""
    stream, factor = torch.cuda.Stream(), torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16)
    result = torch.empty_like(factor)
    # Without this, their memory would be given to the next case's tensors while products still run.
    factor.record_stream(stream)
    result.record_stream(stream)

    def queue(count: int) -> None:
        with torch.cuda.stream(stream):
            for _ in range(count):
                torch.mm(factor, factor, out=result)

    stream.wait_stream(torch.cuda.current_stream())
    queue(3)
    count = math.ceil(seconds(lambda: call(0)) / seconds(lambda: queue(10)) * 10)

    def load() -> None:
        # Those of the call before have ended: they would pile up beside a call that is shorter, and outlast the case.
        stream.synchronize()
        queue(count)

    return load


def seconds(function: Callable[[], Any]) -> float:
    """How long the GPU and the host take, together."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def repeats(
    cases: Sequence[Case], runs: int, device: str = "cuda", beside: Callable[[Call], Load] = products_beside
) -> Iterator[Repeats]:
    """Call our competitors of each case `runs` times alone, and as often beside another load."""
    for case in cases:
        yield from _repeats_of(case, runs, device, beside)
        release()


def _repeats_of(case: Case, runs: int, device: str, beside: Callable[[Call], Load]) -> Iterator[Repeats]:
    try:
        made = built(case, device)
    except CANNOT_BUILD as error:
        yield Repeats(case, "all", runs, error=first_line(error))
        return
    for name, call in made.calls.items():
        if name.startswith(OURS):
            try:
                yield Repeats(case, name, runs, equal_runs(call, runs), equal_runs(call, runs, beside(call)))
            except RuntimeError as error:
                yield Repeats(case, name, runs, error=first_line(error))


def table(found: Sequence[Repeats]) -> str:
    """A table of all results."""
    return aligned(HEADINGS, [row.cells() for row in found])

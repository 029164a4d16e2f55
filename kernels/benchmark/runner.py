"""Run the benchmark: one case after another, saved after each, so that an interruption loses only the current case.

`timing.ceilings` comes first (a large copy and a large matrix product); each time is compared with what they allow.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ernie_m.tokenizer.files import read_json
from ernie_m.tokenizer.new_files import replacing

from .encoders import encoder
from .figures import figures
from .measured import OURS, YOURS, Maker, Measured, bits
from .report import Case, Row, rows_of, table
from .timing import Call, Missing, Timer, Timing, first_line, time_calls
from .training_steps import training_step
from .work import BATCHES, SIZES
from .workloads import WORKLOADS
from .yours import WORKLOADS_OF_YOURS

JSON_FILE, TABLE_FILE = "bench.json", "bench.md"
CANNOT_BUILD = (RuntimeError, MemoryError, ImportError)


def makers() -> dict[str, Maker]:
    """What can be measured, by name: the whole encoder, a training step and every operation."""
    return {"encoder": encoder, "training_step": training_step, **WORKLOADS}


def makers_of_yours() -> dict[str, Maker]:
    """The operations for which a user's function can be measured, by name."""
    return {**WORKLOADS, **WORKLOADS_OF_YOURS}


def built(case: Case, device: str, yours: Callable[..., Any] | None = None) -> Measured:
    """The competitors of a case on random inputs, and `yours`, if given. Raises one of CANNOT_BUILD if there is no
    memory for them, or something that they need is missing."""
    make = (makers() if yours is None else makers_of_yours())[case.what]
    made = make(SIZES[case.size], BATCHES[case.batch], getattr(torch, case.dtype), device)
    return made if yours is None else made.with_yours(yours)


class Output:
    """The results so far, and the directory, if any, in which they are saved.

    Raises FileExistsError if the directory contains results, unless `overwrite` is true.
    """

    def __init__(self, directory: Path | None, overwrite: bool = False) -> None:
        self.directory, self.about, self.rows = directory, dict[str, Any](), list[Row]()
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        for path in (directory / JSON_FILE, directory / TABLE_FILE, *sorted(directory.glob("bench-*.png"))):
            refuse_existing(path, overwrite)

    def add(self, rows: list[Row]) -> None:
        """Add rows and save all of them."""
        self.rows += rows
        if self.directory:
            found = {"environment": self.about, "rows": [row.as_json() for row in self.rows]}
            write(self.directory / JSON_FILE, (json.dumps(found, indent=1) + "\n").encode())
            self.tell()

    def tell(self) -> None:
        """Write the table."""
        assert self.directory
        described = "".join(f"- {name}: {value}\n" for name, value in self.about.items())
        text = "\n".join(part for part in (described, table(self.rows)) if part)
        write(self.directory / TABLE_FILE, text.encode())

    def draw(self) -> None:
        """Write the figures."""
        if self.directory is None:
            return
        try:
            for name, content in figures(self.rows):
                write(self.directory / name, content)
        except ImportError as error:
            print(f"ernie_m.kernels: no figures: {error}", file=sys.stderr)


def load(directory: Path) -> Output:
    """Load the results of an earlier run. Raises ValueError, with the file's name, if they are not valid."""
    path = directory / JSON_FILE
    found = read_json(path)
    try:
        rows = [Row.from_json(row) for row in found["rows"]]
        about = dict(found["environment"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected results that bench saved, got {first_line(error)}") from None
    output = Output(directory, overwrite=True)
    output.about, output.rows = about, rows
    return output


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError if `path` has earlier results, unless `overwrite` is true."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another directory or pass --overwrite")


def write(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    with replacing(path) as (file,):
        file.write(content)


def measure(
    cases: Sequence[Case],
    output: Output,
    runs: int,
    timer: Timer = time_calls,
    device: str = "cuda",
    yours: Callable[..., Any] | None = None,
) -> None:
    """Measure, print and save case by case. Each is built when its turn comes: together they would not fit.

    yours: a function to measure too, called as the operation of the cases says.
    """
    start = time.perf_counter()
    for i, case in enumerate(cases, start=1):
        print(f"{time.perf_counter() - start:.0f} s: {i} of {len(cases)}: {case}", file=sys.stderr, flush=True)
        rows = measured(case, output.about, runs, timer, device, yours)
        print(f"\n{table(rows)}", end="", flush=True)
        output.add(rows)
        release()


def release() -> None:
    """Free what a case has left behind, once nothing refers to it.

    torch.compile caches by function: without a reset, the next case's shapes would make the code dynamic, or exceed the
    limit on recompilations.
    """
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def measured(
    case: Case,
    about: dict[str, Any],
    runs: int,
    timer: Timer,
    device: str,
    yours: Callable[..., Any] | None = None,
) -> list[Row]:
    """The rows of one case; a single row if the case cannot be built."""
    try:
        made = built(case, device, yours)
    except CANNOT_BUILD as error:
        return [Row(case, "all", Missing(first_line(error)))]
    before = kept(made.calls)
    found = timer(made.calls, runs, made.hide_host)
    # One that failed in the loop keeps its error.
    timed = {name: x for name, x in before.items() if isinstance(found.get(name), Timing)}
    found |= changed(timed, made.calls)
    floor = made.floor(about["matrix_flops_per_s"][case.dtype], about["copy_bytes_per_s"])
    return rows_of(case, made, found, floor, differences(made, found))


def kept(calls: Mapping[str, Call]) -> dict[str, list[Tensor]]:
    """The bits of our competitors' results, on the host. One that cannot run is left to the timer, which says why."""
    found = {}
    for name in calls:
        if name.startswith(OURS):
            with suppress(Exception):
                found[name] = [x.cpu() for x in bits(calls[name](0))]
    return found


def changed(before: Mapping[str, list[Tensor]], calls: Mapping[str, Call]) -> dict[str, Timing | Missing]:
    """Our competitors whose results are no longer what they were before the timed loop: their times mean nothing."""
    after = kept({name: calls[name] for name in before})
    return {
        name: Missing("its result after the timed loop differs from the one before")
        for name, old in before.items()
        if name not in after or not all(torch.equal(x, y) for x, y in zip(old, after[name], strict=True))
    }


def differences(made: Measured, found: dict[str, Timing | Missing]) -> dict[str, float]:
    """Relative RMS difference of each result from that of our first competitor, on the same inputs.

    Where we have none, from the user's.
    """

    def result(name: str) -> Tensor | None:
        x = made.packed(name, made.calls[name](0))
        return None if x is None else x.detach().to("cpu", torch.float32)

    running = [name for name, t in found.items() if isinstance(t, Timing)]
    first = next((name for name in running if name.startswith(OURS)), YOURS if YOURS in running else None)
    ours = None if first is None else result(first)
    if ours is None:
        return {}
    others = ((name, result(name)) for name in running if name != first)
    return {name: float((x - ours).norm() / ours.norm()) for name, x in others if x is not None}

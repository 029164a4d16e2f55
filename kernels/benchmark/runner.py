"""`python -m ernie_m.kernels bench`: how fast the kernels are on this GPU, beside what else there is.

First the kernels are verified: what is wrong is not timed. Then the ceilings are measured, a large copy and a large
product, and after that one case after the other; with `--output`, what is done is saved after each of them. Everything,
in every dtype: `--all --output DIR`; an interruption loses the case that it falls into.

Without a GPU there is nothing to time: the compile report is printed instead.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._triton import HAS_TRITON
from .bench_cases import BATCHES, SIZES
from .bench_figures import figures
from .bench_models import encoder
from .bench_operations import OPERATIONS, OURS, Measured
from .bench_report import Case, Row, environment, rows_of, table, write
from .bench_summary import summary_table
from .bench_timing import Missing, Timer, Timing, ceilings, first_line, time_calls
from .cli import FAILED
from .operation import INTERPRETED
from .verify import kernel_rows, prepare

RUNS, QUICK_RUNS = 100, 15
DTYPES = ("bfloat16", "float16", "float32")
MAKERS = {"encoder": encoder, **OPERATIONS}
JSON_FILE, TABLE_FILE = "bench.json", "bench.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = __doc__
    parser.epilog = "exit codes: 0 measured, or no GPU; 1 a kernel is wrong; 2 it could not be measured"
    for name, choices, default in (
        ("--operation", MAKERS, "all"),
        ("--model", SIZES, "both"),
        ("--case", BATCHES, "all"),
        ("--dtype", DTYPES, f"{DTYPES[0]}, with --all all"),
    ):
        help = f"of {', '.join(choices)} (may be repeated; by default {default})"
        parser.add_argument(name, action="append", metavar="NAME", choices=tuple(choices), help=help)
    parser.add_argument("--all", action="store_true", help="every dtype")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} runs of each instead of {RUNS}")
    parser.add_argument("--output", type=Path, metavar="DIR", help="save JSON, table and figures there")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    parser.add_argument("--saved", type=Path, metavar="DIR", help="measure nothing: table and figures of DIR once more")


def run(arguments: argparse.Namespace) -> int:
    """Verify, measure, print, save."""
    if arguments.saved:
        return redraw(arguments.saved)
    why = nothing_to_time()
    if why:
        return compile_instead(why)
    output = Output(arguments.output, arguments.overwrite)
    prepare()
    dtypes = tuple(arguments.dtype or (DTYPES if arguments.all else DTYPES[:1]))
    wrong = [row for row in kernel_rows(dtypes, quick=True) if not row.holds]
    for row in wrong:
        print(f"ernie_m.kernels: not timed, as it is wrong: {row.op}, {row.dtype}: {row.found}", file=sys.stderr)
    if wrong:
        return FAILED
    runs = QUICK_RUNS if arguments.quick else RUNS
    batches = "; ".join(f"{name}: {batch.name}" for name, batch in BATCHES.items())
    output.about = {**environment(), **ceilings(dtypes, runs), "batches": batches}
    for name, value in output.about.items():
        print(f"{name}: {value}")
    try:
        measure(plan(arguments, dtypes), output, runs)
    finally:
        output.draw()
    print(f"\n{summary_table(output.rows)}", end="")
    return 0


def nothing_to_time() -> str | None:
    """Why there are no kernels on a GPU here; None if there are."""
    if INTERPRETED:
        return "TRITON_INTERPRET is set, so that no kernel would run on a GPU"
    if not torch.cuda.is_available():
        return "no GPU to time anything on"
    return None if HAS_TRITON else "triton is not installed, so there are no kernels to time"


def compile_instead(why: str) -> int:
    """The compile report, for every kernel and target."""
    from . import compile_report

    print(f"ernie_m.kernels: {why}: this is the compile report", file=sys.stderr)
    parser = argparse.ArgumentParser()
    compile_report.add_arguments(parser)
    return compile_report.run(parser.parse_args([]))


class Output:
    """What was measured so far, and the folder, if any, where it is kept.

    Raises FileExistsError if results are there already, unless they may be replaced.
    """

    def __init__(self, directory: Path | None, overwrite: bool = False) -> None:
        self.directory, self.about, self.rows = directory, dict[str, Any](), list[Row]()
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        for path in (directory / JSON_FILE, directory / TABLE_FILE, *sorted(directory.glob("bench-*.png"))):
            if path.exists() and not overwrite:
                raise FileExistsError(f"{path} exists: name another folder, or --overwrite")

    def add(self, rows: list[Row]) -> None:
        """More rows; all are saved."""
        self.rows += rows
        if self.directory:
            found = {"environment": self.about, "rows": [row.as_json() for row in self.rows]}
            write(self.directory / JSON_FILE, (json.dumps(found, indent=1) + "\n").encode())
            self.tell()

    def tell(self) -> None:
        """Write the table."""
        assert self.directory
        described = "".join(f"- {name}: {value}\n" for name, value in self.about.items())
        text = "\n".join(part for part in (described, summary_table(self.rows), table(self.rows)) if part)
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


def redraw(directory: Path) -> int:
    """Table and figures of what was saved."""
    path = directory / JSON_FILE
    try:
        found = json.loads(path.read_text())
        rows = [Row.from_json(row) for row in found["rows"]]
        about = dict(found["environment"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected what bench saved: {first_line(error)}") from None
    output = Output(directory, overwrite=True)
    output.about, output.rows = about, rows
    output.tell()
    output.draw()
    print(table(rows), summary_table(rows), sep="\n", end="")
    return 0


def plan(arguments: argparse.Namespace, dtypes: Sequence[str]) -> list[Case]:
    """All that is asked for."""
    return [
        Case(what, size, batch, dtype)
        for dtype in dtypes
        for size in arguments.model or SIZES
        for batch in arguments.case or BATCHES
        for what in arguments.operation or MAKERS
    ]


def measure(cases: Sequence[Case], output: Output, runs: int, timer: Timer = time_calls, device: str = "cuda") -> None:
    """Measure case by case, each made when its turn comes (together they would not fit); print it, and save all."""
    start = time.perf_counter()
    for i, case in enumerate(cases, start=1):
        print(f"{time.perf_counter() - start:.0f} s: {i} of {len(cases)}: {case}", file=sys.stderr, flush=True)
        rows = measured(case, output.about, runs, timer, device)
        print(f"\n{table(rows)}", end="", flush=True)
        output.add(rows)
        # Compiled code is looked up by function: shapes of another case would make it general, or be too many for it.
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def measured(case: Case, about: dict[str, Any], runs: int, timer: Timer, device: str) -> list[Row]:
    """The rows of one case; a single one if it could not even be made."""
    try:
        made = MAKERS[case.what](SIZES[case.size], BATCHES[case.batch], getattr(torch, case.dtype), device)
    except (RuntimeError, MemoryError, ImportError) as error:
        return [Row(case, "all", Missing(first_line(error)))]
    found = timer(made.calls, runs, made.hide_host)
    floor = made.floor(about["matrix_flops_per_s"][case.dtype], about["copy_bytes_per_s"])
    return rows_of(case, made, found, floor, differences(made, found))


def differences(made: Measured, found: dict[str, Timing | Missing]) -> dict[str, float]:
    """How far each result is from that of the first of ours, on the same inputs."""

    def result(name: str) -> Tensor | None:
        x = made.packed(name, made.calls[name](0))
        return None if x is None else x.detach().to("cpu", torch.float32)

    running = [name for name, t in found.items() if isinstance(t, Timing)]
    first = next((name for name in running if name.startswith(OURS)), None)
    ours = None if first is None else result(first)
    if ours is None:
        return {}
    others = ((name, result(name)) for name in running if name != first)
    return {name: float((x - ours).norm() / ours.norm()) for name, x in others if x is not None}

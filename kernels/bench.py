"""`python -m ernie_m.kernels bench`: how fast the kernels are on this GPU, beside what else there is.

First the kernels are verified: what is wrong is not timed. Then the ceilings are measured, a large copy and a large
product, and after that one case after the other; with `--output`, what is done is saved after each of them.

Without a GPU there is nothing to time: the compile report is printed instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import compile_report
from .bench_cases import BATCHES, SIZES
from .bench_models import encoder
from .bench_operations import OPERATIONS, Measured, operations
from .bench_report import JSON_FILE, TABLE_FILE, Row, environment, figures, rows_of, save, table
from .bench_timing import ceilings, time_on_gpu
from .cli import FAILED
from .operation import INTERPRETED
from .verify import kernel_rows, prepare

RUNS, QUICK_RUNS = 100, 15
DTYPES = ("bfloat16", "float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = __doc__
    parser.epilog = "exit codes: 0 measured, or no GPU; 1 a kernel is wrong; 2 it could not be measured"
    some: dict[str, Any] = {"action": "append", "metavar": "NAME"}
    what = ("encoder", *OPERATIONS)
    parser.add_argument("--what", choices=what, help=f"of {', '.join(what)} (may be repeated; all by default)", **some)
    parser.add_argument("--size", choices=SIZES, help="base or large (both by default)", **some)
    parser.add_argument("--batch", choices=BATCHES, help=f"of {', '.join(BATCHES)} (all by default)", **some)
    parser.add_argument("--dtype", choices=DTYPES, help=f"of {', '.join(DTYPES)} (bfloat16 by default)", **some)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} runs of each instead of {RUNS}")
    parser.add_argument("--output", type=Path, metavar="DIR", help="save JSON, table and figures there")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --output")


def run(arguments: argparse.Namespace) -> int:
    """Verify, measure, print, save."""
    check_output(arguments.output, arguments.overwrite)
    if not torch.cuda.is_available() or INTERPRETED:
        print("ernie_m.kernels: no GPU to time anything on: this is the compile report", file=sys.stderr)
        everything: dict[str, Any] = {"target": [], "operation": [], "dtype": [], "gates": False, "json": False}
        return compile_report.run(argparse.Namespace(**everything))
    prepare()
    dtypes = tuple(arguments.dtype or DTYPES[:1])
    wrong = [row for row in kernel_rows(dtypes, quick=True) if not row.holds]
    for row in wrong:
        print(f"ernie_m.kernels: not timed, as it is wrong: {row.op}, {row.dtype}: {row.found}", file=sys.stderr)
    if wrong:
        return FAILED
    runs = QUICK_RUNS if arguments.quick else RUNS
    about = environment(ceilings(runs))
    for name, value in about.items():
        print(f"{name}: {value}")
    rows = measure(cases(arguments, dtypes, "cuda"), about, runs, time_on_gpu, arguments.output)
    if arguments.output and not figures(arguments.output, rows):
        print("ernie_m.kernels: no figures: matplotlib is not installed", file=sys.stderr)
    return 0


def check_output(directory: Path | None, overwrite: bool) -> None:
    """Make the folder. Raises FileExistsError if results are there already, unless they may be replaced."""
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name in (JSON_FILE, TABLE_FILE):
        if (directory / name).exists() and not overwrite:
            raise FileExistsError(f"{directory / name} exists: name another folder, or --overwrite")


def cases(arguments: argparse.Namespace, dtypes: tuple[str, ...], device: str) -> Iterator[tuple[str, Measured]]:
    """(dtype, case) of all that is asked for, each made only when its turn comes: together they would not fit."""
    wanted = set(arguments.what or ("encoder", *OPERATIONS))
    for dtype in dtypes:
        kind = getattr(torch, dtype)
        for size in (SIZES[name] for name in arguments.size or SIZES):
            for batch in (BATCHES[name] for name in arguments.batch or BATCHES):
                for case in operations(size, batch, kind, device, wanted):
                    yield dtype, case
                if "encoder" in wanted:
                    yield dtype, encoder(size, batch, kind, device)


def measure(
    found: Iterator[tuple[str, Measured]],
    about: dict[str, Any],
    runs: int,
    timer: Callable[..., Any],
    output: Path | None = None,
) -> list[Row]:
    """Measure case by case; print each, and save all so far."""
    rows: list[Row] = []
    for dtype, case in found:
        times = timer(case.calls, runs, case.hide_host)
        floor = case.floor(about["matrix_flops_per_s"], about["copy_bytes_per_s"])
        new = rows_of(case, dtype, times, floor)
        rows += new
        print(f"\n{case.what}, {case.size}, {case.batch}, {dtype}:\n{table(new)}", end="", flush=True)
        if output:
            save(output, about, rows)
    return rows

"""Time the kernels and the whole encoder on this GPU, next to plain torch, torch.compile and transformers.

The kernels are verified first: nothing is timed if one is wrong. Then the ceilings are measured, with a large copy and
a large matrix product, and then each case in turn. With `--output`, results are saved after each case, so that an
interruption loses only the current one. To measure everything in every dtype: `--all --output DIR`.

With `--repeats N`, nothing is timed: each case of ours is called N times on the same inputs, and as often beside other
work on the GPU, and the calls whose results have the bits of the first are counted.

With `--sweep`, other block sizes, warps and stages are timed beside those in the kernels' modules, and what is faster
by more than the spread is printed last. Nothing is changed.

With FILE.py:NAME and `--op`, a function of your own is checked, then timed next to the same competitors.

This needs a GPU. Without one, `compile` reports on the machine code, and `--cpu` times models on the processor: the
torch models and the NumPy reference beside transformers, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ernie_m.reference.cli.command import DIFFERENCE
from ernie_m.reference.cli.numbers import positive, some_path, thread_count
from ernie_m.tokenizer.new_files import directory

from ..benchmark import cpu
from ..benchmark.repeats import Repeats, repeats
from ..benchmark.repeats import table as repeats_table
from ..benchmark.report import Case, environment, table
from ..benchmark.runner import Output, load, makers, makers_of_yours, measure, refuse_existing, write
from ..benchmark.sweep import Tried, suggestions, sweep
from ..benchmark.sweep import table as sweep_table
from ..benchmark.timing import ceilings
from ..benchmark.work import BATCHES, SIZES
from ..benchmark.workloads import WORKLOADS
from ..checking.check import check
from ..checking.report import Failure
from ..checking.verify import kernel_rows, prepare
from ..runtime import loading
from ..runtime.dispatch import INTERPRETED
from ..runtime.optional_triton import HAS_TRITON

RUNS, QUICK_RUNS, THREADS = 100, 15, 2
REPEATS_FILE, SWEEP_FILE = "repeats.json", "sweep.json"
DTYPES = ("bfloat16", "float16", "float32")
CASES, SAVING = ("model", "case", "dtype", "all"), ("output", "overwrite")
# The options that choose what is done, and those that have an effect with each.
MODES: dict[str, tuple[str, ...]] = {
    "sweep": ("operation", *CASES, "quick", *SAVING),
    "repeats": ("operation", *CASES, *SAVING),
    "cpu": ("threads", "quick", *SAVING),
    "saved": (),
    "op": ("function", *CASES, "quick", *SAVING),
}
# The options that have an effect only with another.
NEEDED = {"threads": "cpu", "overwrite": "output", "function": "op", "op": "function"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = __doc__
    parser.epilog = "exit codes: 0 success; 1 a kernel is wrong or does not repeat; 2 error"
    parser.add_argument("function", nargs="?", metavar="FILE.py:NAME", help="a function of your own, with --op")
    parser.add_argument("--op", choices=makers_of_yours(), metavar="OP", help=f"one of {', '.join(makers_of_yours())}")
    for name, choices, default in (
        ("--operation", makers(), "all"),
        ("--model", SIZES, "both"),
        ("--case", BATCHES, "all"),
        ("--dtype", DTYPES, f"{DTYPES[0]}; with --all, all"),
    ):
        help = f"one of {', '.join(choices)} (may be repeated; default: {default})"
        parser.add_argument(name, action="append", metavar="NAME", choices=tuple(choices), help=help)
    parser.add_argument("--all", action="store_true", help="measure every dtype")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} runs of each competitor instead of {RUNS}")
    parser.add_argument("--output", type=some_path, metavar="DIR", help="save JSON, a table and figures in DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results in DIR")
    parser.add_argument("--repeats", type=positive, metavar="N", help="count results with equal bits instead of timing")
    parser.add_argument("--sweep", action="store_true", help="try other block sizes, warps and stages of the kernels")
    parser.add_argument(
        "--cpu", nargs="?", const="", metavar="WHAT", help="time on the processor: all, or what has WHAT in its name"
    )
    threads = f"with --cpu: threads of each competitor (default: {THREADS})"
    parser.add_argument("--threads", metavar="N", type=thread_count, help=threads)
    parser.add_argument("--saved", type=some_path, metavar="DIR", help="only redraw the table and figures in DIR")


def run(arguments: argparse.Namespace) -> int:
    """Verify, measure, print and save."""
    check_arguments(arguments)
    if arguments.saved:
        return redraw(arguments.saved)
    output = arguments.output
    if output is not None and os.path.lexists(output) and not output.is_dir():
        raise NotADirectoryError(f"{output}: expected a directory, or the name of a new one, got a file or a link")
    # Made before anything is measured, and removed if nothing has been saved.
    with nullcontext() if output is None else directory(output):
        return on_cpu(arguments) if arguments.cpu is not None else on_gpu(arguments)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError for an argument that would have no effect."""
    flags = {name: f"--{name}" for name in ("operation", "quick", *CASES, *SAVING, *MODES, *NEEDED)}
    flags["function"] = "FILE.py:NAME"
    given = [name for name in flags if getattr(arguments, name) not in (None, False)]
    mode = next((name for name in MODES if name in given), None)
    for name in given:
        if mode is not None and name not in (mode, *MODES[mode]):
            raise ValueError(f"--{mode}: expected no {flags[name]} with it, as it would have no effect")
        if NEEDED.get(name, name) not in given:
            raise ValueError(f"{flags[name]}: expected {flags[NEEDED[name]]} with it")
    if arguments.all and arguments.dtype:
        raise ValueError("--all: expected no --dtype with it, as it means every dtype")


def on_gpu(arguments: argparse.Namespace) -> int:
    """Verify, then measure what is asked for."""
    place = None if arguments.function is None else loading.split("function", arguments.function)
    require_gpu()
    if arguments.repeats is not None:
        return repeated(arguments)
    if arguments.sweep:
        return swept(arguments)
    yours = None if place is None else loading.load(*place, "a function", callable)
    output = Output(arguments.output, arguments.overwrite)
    prepare()
    dtypes = dtypes_of(arguments)
    wrong = wrong_kernels(dtypes) if yours is None else wrong_function(yours, arguments.op, dtypes)
    for found in wrong:
        print(f"ernie_m.kernels: wrong kernel, nothing timed: {found}", file=sys.stderr)
    if wrong:
        return DIFFERENCE
    runs = QUICK_RUNS if arguments.quick else RUNS
    batches = "; ".join(f"{name}: {batch.name}" for name, batch in BATCHES.items())
    output.about = {**environment(), **ceilings(dtypes, runs), "batches": batches}
    for name, value in output.about.items():
        print(f"{name}: {value}")
    try:
        measure(plan(arguments, dtypes), output, runs, yours=yours)
    finally:
        output.draw()
    return 0


def repeated(arguments: argparse.Namespace) -> int:
    """Count the calls that repeat bit for bit; print and save the counts after each case."""
    save = saver(arguments, REPEATS_FILE, "repeats")
    prepare()
    found = list[Repeats]()
    for row in repeats(plan(arguments, dtypes_of(arguments)), arguments.repeats):
        found.append(row)
        print(", ".join(row.cells()), file=sys.stderr, flush=True)
        save(found)
    print(repeats_table(found), end="")
    return 0 if all(row.holds for row in found) else DIFFERENCE


def swept(arguments: argparse.Namespace) -> int:
    """Try other configurations; print and save all after each round, and print what was faster last."""
    save = saver(arguments, SWEEP_FILE, "sweep")
    prepare()
    found = list[Tried]()
    runs = QUICK_RUNS if arguments.quick else RUNS
    for rows in sweep(plan(arguments, dtypes_of(arguments), WORKLOADS), runs):
        found += rows
        print(f"\n{sweep_table(rows)}", end="", flush=True)
        save(found)
    print("\n" + "\n".join(["faster than the modules' choices:", *(suggestions(found) or ["nothing"])]))
    return 0


def saver(arguments: argparse.Namespace, file: str, name: str) -> Callable[[Sequence[Any]], None]:
    """What saves rows in the output directory, if there is one. Raises FileExistsError for an earlier file."""
    path = None if arguments.output is None else arguments.output / file
    if path is not None:
        refuse_existing(path, arguments.overwrite)
    about = environment()

    def save(rows: Sequence[Any]) -> None:
        if path is not None:
            saved = {"environment": about, name: [row.as_json() for row in rows]}
            write(path, (json.dumps(saved, indent=1) + "\n").encode())

    return save


def dtypes_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The dtypes to measure."""
    return tuple(arguments.dtype or (DTYPES if arguments.all else DTYPES[:1]))


def on_cpu(arguments: argparse.Namespace) -> int:
    """Measure on the processor; a file of earlier results is replaced only on request."""
    output = arguments.output
    if output is not None:
        refuse_existing(output / cpu.TABLE_FILE, arguments.overwrite)
    rounds, runs = (1, 2) if arguments.quick else (3, 5)
    cpu.run(arguments.cpu, arguments.threads or THREADS, rounds, runs, output)
    return 0


def wrong_kernels(dtypes: tuple[str, ...]) -> list[str]:
    """What is wrong about this package's kernels, one text for each that is."""
    return [f"{row.op}, {row.dtype}: {row.found}" for row in kernel_rows(dtypes, quick=True) if not row.holds]


def wrong_function(function: Callable[..., Any], op: str, dtypes: tuple[str, ...]) -> list[str]:
    """What is wrong about a user's function, if anything."""
    try:
        print(check(function, op, dtypes=dtypes))
    except Failure as failure:
        return [str(failure)]
    return []


def require_gpu() -> None:
    """Raise RuntimeError unless kernels run on a GPU in this process."""
    if INTERPRETED:
        why = "TRITON_INTERPRET is set, so kernels would not run on the GPU"
    elif not torch.cuda.is_available():
        why = "there is no GPU"
    elif not HAS_TRITON:
        why = "triton is not installed"
    else:
        return
    raise RuntimeError(f"cannot time kernels: {why} (`compile` reports on their machine code without a GPU)")


def redraw(saved: Path) -> int:
    """Rewrite the table and figures from saved results."""
    output = load(saved)
    output.tell()
    output.draw()
    print(table(output.rows), end="")
    return 0


def plan(arguments: argparse.Namespace, dtypes: Sequence[str], all: Collection[str] | None = None) -> list[Case]:
    """The selected cases; `all`: what is meant where no operation is selected."""
    return [
        Case(what, size, batch, dtype)
        for dtype in dtypes
        for size in arguments.model or SIZES
        for batch in arguments.case or BATCHES
        for what in ([arguments.op] if arguments.op else arguments.operation or all or makers())
    ]

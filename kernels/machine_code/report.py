"""The command `compile`: every kernel as it is shipped, compiled for every GPU target, and what came out.

    registers       of one thread, of 255 at most (AMD: of 512); what does not fit is spilled to memory
    spills, stack   bytes of a thread's memory traffic for that (stored and loaded), and of its frame
    shared          bytes of a block, and what the target gives one at most; the compiler does not compare
    occupancy       blocks that a multiprocessor (AMD: compute unit) holds at once
    16-byte loads   the widest but for sm_100's; 2-byte loads are a sign that alignment was not seen
    instructions    in the hot loop for a score of attention, in the kernel for a number or, by all its warps, for a row

No GPU is needed. Two processes compile, without Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from typing import Any

import torch

from . import compile_gates, interpreter
from ._triton import HAS_TRITON, triton
from .compile_kernel import Depth, compile_kernel
from .shipped import TARGETS, TRITON_TYPES, Shipped, everything

DTYPES = tuple(str(dtype).removeprefix("torch.") for dtype in TRITON_TYPES)
_PROCESSES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = __doc__
    parser.add_argument("--json", action="store_true", help="print JSON: the versions, and one object for each kernel")
    for name, choices, what in (
        ("--target", TARGETS, "for this target only"),
        ("--operation", None, "this operation only, for instance packed_attention"),
        ("--dtype", DTYPES, "this dtype only"),
    ):
        listed = f": {', '.join(choices)}" if choices else ""
        parser.add_argument(name, action="append", metavar="NAME", choices=choices, default=[], help=what + listed)
    parser.add_argument(
        "--gates",
        action="store_true",
        help="judge what continuous integration gates: compile as far as that takes, and exit with 1 on a failure",
    )
    parser.epilog = "Each of --target, --operation and --dtype may be given several times."


def run(arguments: argparse.Namespace) -> int:
    """Compile and print; 0 if everything compiled, else 1."""
    if not HAS_TRITON:
        raise RuntimeError("triton is not installed: there is nothing to compile with (pip install 'ernie-m[kernels]')")
    if interpreter.is_active() or "TRITON_INTERPRET" in os.environ:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "ernie_m.kernels", *command_line(arguments)]
        return subprocess.run(command, env=environment).returncode
    wanted = select(arguments.target, arguments.operation, arguments.dtype)
    rows = []
    for row in compile_all(wanted, arguments.gates):
        rows.append(row)
        if sys.stderr.isatty():
            print(f"\r{len(rows)} of {len(wanted)} kernels", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    failed = {row_name(row): found for row in rows if (found := compile_gates.failures(row))} if arguments.gates else {}
    if arguments.json:
        print(json.dumps({"triton": triton.__version__, "torch": torch.__version__, "kernels": rows}, indent=1))
    elif arguments.gates:
        print("".join(f"FAILED {name}: {'; '.join(found)}\n" for name, found in failed.items()), end="")
        print(f"gates: {len(rows)} kernels, {len(failed)} failed")
    else:
        print(table(rows), end="")
    return int(bool(failed) or any("error" in row for row in rows))


def command_line(arguments: argparse.Namespace) -> list[str]:
    """The arguments that give `arguments`, for another process."""
    line = ["compile"]
    line += [f"--{name}" for name in ("json", "gates") if getattr(arguments, name)]
    for name in ("target", "operation", "dtype"):
        line += [f"--{name}={value}" for value in getattr(arguments, name)]
    return line


def select(targets: Sequence[str], operations: Sequence[str], dtypes: Sequence[str]) -> list[tuple[str, int]]:
    """What is asked for, as target and place among all that is shipped for it; other processes find it by that.

    Empty sequences ask for all. Raises ValueError for an operation that there is not.
    """
    names = sorted({shipped.operation for shipped in _everything(TARGETS[0])})
    for operation in operations:
        if operation not in names:
            raise ValueError(f"--operation: expected one of {', '.join(names)}, got {operation!r}")
    return [
        (target, i)
        for target in targets or TARGETS
        for i, shipped in enumerate(_everything(target))
        if (not operations or shipped.operation in operations) and (not dtypes or shipped.dtype in dtypes)
    ]


def compile_all(wanted: Sequence[tuple[str, int]], gates: bool = False) -> Iterator[dict[str, Any]]:
    """The metrics of each, in order, from two processes; a kernel that does not compile has "error" instead."""
    # A fresh interpreter for each process: a fork of one with torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(_PROCESSES, len(wanted)), mp_context=context) as pool:
        yield from pool.map(_row, *zip(*wanted, strict=True), [gates] * len(wanted))


@lru_cache(maxsize=len(TARGETS))
def _everything(target: str) -> list[Shipped]:
    return list(everything(target))


def _row(target: str, i: int, gates: bool) -> dict[str, Any]:
    shipped = _everything(target)[i]
    try:
        return compile_kernel(shipped, target, compile_gates.depth(shipped, target) if gates else Depth.LISTING)
    except Exception as error:
        # Whatever a compiler raises is a result here; the others are reported all the same.
        name = {"operation": shipped.operation, "dtype": shipped.dtype, "label": shipped.label, "target": target}
        return {**name, "error": f"{type(error).__name__}: {error}"}


def row_name(row: Mapping[str, Any]) -> str:
    """What a row is about, in words."""
    return f"{row['target']} {row['operation']} {row['dtype']} {row['label']}"


_HEADS = ("", "warps", "regs", "spills", "stack", "shared", "occ", "tensor cores", "16 B", "2 B", "instructions")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each target, and below it what the assembler warned of and what did not compile."""
    text = [f"triton {triton.__version__}, torch {torch.__version__}\n"]
    for target in TARGETS:
        of_target = [row for row in rows if row["target"] == target]
        compiled = [row for row in of_target if "error" not in row]
        if not of_target:
            continue
        limit = f", shared memory up to {compiled[0]['shared_limit']:,} bytes" if compiled else ""
        text.append(f"\n{target}{limit}\n")
        cells = [_HEADS, *map(_cells, compiled)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            first, *others = (
                cell.ljust(n) if i in (0, 7) else cell.rjust(n)
                for i, (cell, n) in enumerate(zip(line, widths, strict=True))
            )
            text.append("  ".join((first, *others)).rstrip() + "\n")
        for row in of_target:
            for message in [row["error"]] if "error" in row else row["warnings"]:
                text.append(f"! {row_name(row)}: {message}\n")
    return "".join(text)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    over = "!" if row["shared"] > row["shared_limit"] else ""
    figures = (
        row["num_warps"],
        row["registers"],
        row["spills"],
        row["stack"],
        f"{over}{row['shared']}",
        row["occupancy"],
    )
    units = " ".join(f"{n} {kind}" for kind, n in row["tensor_cores"].items())
    work = f"{row['instructions_per']:.1f} / {row['per']}"
    name = row_name(row).partition(" ")[2]
    return (name, *map(str, figures), units, str(row["loads_16"]), str(row["loads_2"]), work)

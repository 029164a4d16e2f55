"""`python -m ernie_m.kernels compile`: report on the machine code of every kernel; no GPU is needed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import torch

from ernie_m.reference.cli.command import DIFFERENCE

from ..machine_code import gates, report
from ..runtime import interpreter
from ..runtime.dtypes import TORCH_DTYPES
from ..runtime.optional_triton import HAS_TRITON, triton
from ..runtime.variants import TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = report.__doc__
    parser.add_argument("--json", action="store_true", help="print JSON: versions, and one object per kernel")
    for name, choices, what in (
        ("--target", TARGETS, "compile for this target only"),
        ("--operation", None, "compile this operation only, e.g. packed_attention"),
        ("--dtype", tuple(TORCH_DTYPES), "compile for this dtype only"),
    ):
        listed = f": {', '.join(choices)}" if choices else ""
        parser.add_argument(name, action="append", metavar="NAME", choices=choices, default=[], help=what + listed)
    parser.add_argument(
        "--gates",
        action="store_true",
        help="evaluate the gates of continuous integration instead: compile only as far as they need, print failures",
    )
    parser.epilog = (
        "--target, --operation and --dtype may be repeated.\n"
        "exit codes: 0 success; 1 a kernel did not compile or failed a gate; 2 error"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compile and print. Return 1 if a kernel does not compile or, with --gates, fails a gate; otherwise 0."""
    if not HAS_TRITON:
        raise RuntimeError("triton is not installed: there is nothing to compile with (pip install 'ernie-m[kernels]')")
    if interpreter.is_active() or "TRITON_INTERPRET" in os.environ:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "ernie_m.kernels", *command_line(arguments)]
        return subprocess.run(command, env=environment).returncode
    wanted = report.select(arguments.target, arguments.operation, arguments.dtype)
    rows = []
    for row in report.compile_all(wanted, arguments.gates):
        rows.append(row)
        if sys.stderr.isatty():
            print(f"\r{len(rows)} of {len(wanted)} kernels", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    failed = {report.row_name(row): found for row in rows if (found := gates.failures(row))} if arguments.gates else {}
    if arguments.json:
        print(json.dumps({"triton": triton.__version__, "torch": torch.__version__, "kernels": rows}, indent=1))
    elif arguments.gates:
        print("".join(f"FAILED {name}: {'; '.join(found)}\n" for name, found in failed.items()), end="")
        print(f"gates: {len(rows)} kernels, {len(failed)} failed")
    else:
        print(report.table(rows), end="")
    return DIFFERENCE if failed or any("error" in row for row in rows) else 0


def command_line(arguments: argparse.Namespace) -> list[str]:
    """The command line that parses to `arguments`, for another process."""
    line = ["compile"]
    line += [f"--{name}" for name in ("json", "gates") if getattr(arguments, name)]
    for name in ("target", "operation", "dtype"):
        line += [f"--{name}={value}" for value in getattr(arguments, name)]
    return line

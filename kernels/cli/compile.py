"""`python -m ernie_m.kernels compile`: report on the machine code of every kernel, or of your own; no GPU is needed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import torch

from ernie_m.reference.cli.command import DIFFERENCE
from ernie_m.reference.cli.numbers import positive

from ..checking.operations import OPERATIONS
from ..machine_code import children, gates, launches, report
from ..machine_code.advice import advice, sentences
from ..runtime import interpreter, loading
from ..runtime.dtypes import TORCH_DTYPES
from ..runtime.optional_triton import HAS_TRITON, triton
from ..runtime.variants import TARGETS

OWN = """
With FILE.py:NAME, compile a kernel of your own, and say in words what is bad about its machine code. Either describe a
launch of it:

    compile my.py:kernel --signature "*bf16, *bf16, i32" --constants BLOCK=1024 --num-warps 4

`i32:16` is an integer known to be a multiple of 16, `*bf16:1` a pointer that need not be. Or name a function that
launches kernels: it is called once in Triton's interpreter, and its launches are recorded and compiled.

    compile my.py:example                          # a function without arguments, which makes a call
    compile my.py:my_rms_norm --op my.py:RMS_NORM  # called with an operation's fixed data, in each --dtype
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = f"{report.__doc__}{OWN}"
    parser.add_argument(
        "kernel", nargs="?", metavar="FILE.py:NAME", help="a kernel of your own, or a function (see above)"
    )
    parser.add_argument(
        "--signature", metavar="TYPES", help="the types of the kernel's arguments, without those that are constants"
    )
    parser.add_argument(
        "--constants", nargs="+", action="extend", metavar="NAME=VALUE", help="the values of its tl.constexpr arguments"
    )
    for name, default in launches.OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=positive, metavar="N", help=f"with --signature (default: {default})")
    parser.add_argument("--op", metavar="OP", help="call the function with the data of this operation, or FILE.py:NAME")
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
    check_arguments(arguments)
    # A name that is repeated counts once.
    arguments.target, arguments.dtype = (list(dict.fromkeys(x)) for x in (arguments.target, arguments.dtype))
    if interpreter.is_active() or "TRITON_INTERPRET" in os.environ:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "ernie_m.kernels", *arguments.argv]
        return subprocess.run(command, env=environment).returncode
    return run_own(arguments) if arguments.kernel else run_shipped(arguments)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError for arguments that do not go together."""
    own = {name: getattr(arguments, name) for name in ("signature", "constants", *launches.OPTIONS, "op")}
    given = [f"--{name.replace('_', '-')}" for name, value in own.items() if value is not None]
    if not arguments.kernel and given:
        raise ValueError(f"{given[0]}: expected FILE.py:NAME with it, got no kernel")
    if arguments.kernel and (arguments.gates or arguments.operation):
        raise ValueError(
            "--gates, --operation: expected no FILE.py:NAME with them: they are about this package's kernels"
        )
    if arguments.kernel and arguments.signature is None and (loose := [x for x in given if x != "--op"]):
        raise ValueError(f"{loose[0]}: expected --signature with it; a recorded launch has its own")
    if arguments.signature is not None and (arguments.op or arguments.dtype):
        raise ValueError("--signature: expected neither --op nor --dtype with it, as it has the types")
    if arguments.kernel and arguments.dtype and arguments.op is None:
        raise ValueError("--dtype: expected --op with it; without, the function chooses what it calls the kernel with")


def run_own(arguments: argparse.Namespace) -> int:
    """Compile a kernel of the user's, print the table, and what is bad."""
    found = described(arguments) if arguments.signature is not None else recorded(arguments)
    rows = children.rows_of(found, arguments.target or TARGETS)
    if arguments.json:
        print_json([{**row, "advice": advice(row)} for row in rows])
    else:
        print("".join(f"{launch}\n" for launch in found) + "\n" + report.table(rows))
        print(sentences(rows), end="")
    return DIFFERENCE if any("error" in row for row in rows) else 0


def described(arguments: argparse.Namespace) -> list[launches.Launch]:
    """The launch that the command line describes."""
    file, name = loading.split("kernel", arguments.kernel)
    kernel = loading.load(file, name, "a Triton kernel", launches.is_kernel)
    options = {x: getattr(arguments, x) for x in launches.OPTIONS if getattr(arguments, x) is not None}
    return [launches.described(file, kernel, arguments.signature, arguments.constants or [], **options)]


def recorded(arguments: argparse.Namespace) -> list[launches.Launch]:
    """The launches of a call of the function."""
    file, name = loading.split("kernel", arguments.kernel)
    if launches.is_kernel(loading.load(file, name, "a function", callable)):
        raise ValueError(f"{name}: expected --signature with a kernel, or a function that launches it")
    op: Any = arguments.op
    if op is not None and op not in OPERATIONS:
        op = loading.split("--op", op, f"one of {', '.join(OPERATIONS)}, or ")
    return children.launches_of(file, name, op, arguments.dtype or list(TORCH_DTYPES))


def run_shipped(arguments: argparse.Namespace) -> int:
    """Compile this package's kernels, and print the table or the gates that fail."""
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
        print_json(rows)
    elif arguments.gates:
        print("".join(f"FAILED {name}: {'; '.join(found)}\n" for name, found in failed.items()), end="")
        print(f"gates: {len(rows)} kernels, {len(failed)} failed")
    else:
        print(report.table(rows), end="")
    return DIFFERENCE if failed or any("error" in row for row in rows) else 0


def print_json(rows: list[dict[str, Any]]) -> None:
    """Versions, and one object per kernel."""
    print(json.dumps({"triton": triton.__version__, "torch": torch.__version__, "kernels": rows}, indent=1))

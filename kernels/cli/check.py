"""`python -m ernie_m.kernels check --op gelu my_file.py:my_function`: `check` for a function in a file.

Without a GPU it runs in a new process with Triton's interpreter, so no environment variable needs to be set.
"""

from __future__ import annotations

import argparse
import traceback

from ernie_m.reference.cli.command import DIFFERENCE
from ernie_m.reference.cli.numbers import positive, whole

from ..checking.check import check
from ..checking.operations import OPERATIONS, Operation, find
from ..checking.report import Failure
from ..checking.tails import TAILS
from ..runtime.dtypes import TORCH_DTYPES
from ..runtime.loading import load, split
from .interpreted import run_interpreted

DESCRIPTION = """\
Check a function that computes one of the model's operations or one of your own: the launcher of a Triton kernel, or a
function of torch tensors or NumPy arrays. It is called with inputs drawn to expose its faults and with fixed ones of
large sizes, unusual layouts and special values, and compared with the operation's definition in NumPy. Exit codes: 0
within all bounds; 1 wrong, with the smallest failing input printed; 2 it could not be checked.
"""
EPILOG = "operations, and how their functions are called:\n" + "\n".join(
    f"  {name:22} {operation.call}" for name, operation in OPERATIONS.items()
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("function", metavar="FILE.py:NAME", help="a Python file and the function in it")
    parser.add_argument(
        "--op", required=True, metavar="OP", help="the operation: a name from below, or FILE.py:NAME of an Operation"
    )
    parser.add_argument("--dtype", action="append", choices=TORCH_DTYPES, help="only this dtype (may be repeated)")
    parser.add_argument("--arrays", choices=("torch", "numpy"), default="torch", help="what it takes (default: torch)")
    parser.add_argument("--examples", type=positive, metavar="N", help="inputs drawn per dtype (default: 50)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="draw other inputs (default: 0)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", action="store_true", help="try less, in about five seconds")
    amount.add_argument("--thorough", action="store_true", help="try much more, for as long as it takes")
    parser.add_argument("--no-tail", action="store_true", help="do not ask for the digits of gelu where it is small")


def run(arguments: argparse.Namespace) -> int:
    """Check the function and print what was found."""
    file, name = split("function", arguments.function)
    own = None if arguments.op in OPERATIONS else split("op", arguments.op, f"one of {', '.join(OPERATIONS)}, or ")
    status = run_interpreted(arguments.argv)
    if status is not None:
        return status
    op = arguments.op if own is None else load(*own, "an Operation", lambda found: isinstance(found, Operation))
    if arguments.no_tail and find(op).name not in TAILS:
        raise ValueError(f"--no-tail: expected --op to be one of {', '.join(TAILS)}, got {find(op).name}")
    function = load(file, name, "a function", callable)
    chosen = {name: getattr(arguments, name) for name in ("examples", "seed", "arrays", "quick", "thorough")}
    try:
        print(check(function, op, dtypes=arguments.dtype, tail=not arguments.no_tail, **chosen))
    except Failure as failure:
        print(failure)
        if failure.__cause__ is not None:
            # The traceback shows which line of the function raised, without the calls on larger inputs before it.
            link: BaseException | None = failure.__cause__
            while link is not None:
                link.__context__ = None if isinstance(link.__context__, Failure) else link.__context__
                link = link.__context__
            print("".join(traceback.format_exception(failure.__cause__)).rstrip())
        return DIFFERENCE
    return 0

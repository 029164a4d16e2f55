"""`python -m ernie_m.kernels check --op gelu my_file.py:my_function`: `check` for a function in a file.

Without a GPU it runs in a new process with Triton's interpreter, so no environment variable needs to be set.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ernie_m.reference.cli.command import DIFFERENCE

from ..checking.check import check
from ..checking.operations import OPERATIONS
from ..checking.report import Failure
from ..runtime.dtypes import TORCH_DTYPES
from .interpreted import run_interpreted

DESCRIPTION = """\
Check a function that computes one of the model's operations: the launcher of a Triton kernel, or a function of torch
tensors or NumPy arrays. It is called with inputs drawn to expose its faults, and compared with the operation's
definition in NumPy. Exit codes: 0 within all bounds; 1 wrong, with the smallest failing input printed; 2 it could not
be checked.
"""
EPILOG = "operations, and how their functions are called:\n" + "\n".join(
    f"  {name:22} {operation.call}" for name, operation in OPERATIONS.items()
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("function", metavar="FILE.py:NAME", help="a Python file and the function in it")
    parser.add_argument("--op", required=True, choices=OPERATIONS, metavar="OP", help="the operation (see below)")
    parser.add_argument("--dtype", action="append", choices=TORCH_DTYPES, help="only this dtype (may be repeated)")
    parser.add_argument("--arrays", choices=("torch", "numpy"), default="torch", help="arguments (default: torch)")
    parser.add_argument("--examples", type=int, default=50, metavar="N", help="inputs drawn per dtype (default: 50)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draw other inputs (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Check the function and print what was found."""
    file, separator, name = arguments.function.rpartition(":")
    if not separator or not name.isidentifier():
        raise ValueError(f"function: expected FILE.py:NAME, got {arguments.function!r}")
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file")
    status = run_interpreted(arguments.argv)
    if status is not None:
        return status
    function = load(Path(file), name)
    chosen = {"dtypes": arguments.dtype, "examples": arguments.examples, "seed": arguments.seed}
    try:
        print(check(function, arguments.op, arrays=arguments.arrays, **chosen))
    except Failure as failure:
        print(failure)
        if failure.__cause__ is not None:
            # The traceback shows which line of the function raised.
            print("".join(traceback.format_exception(failure.__cause__)).rstrip())
        return DIFFERENCE
    return 0


def load(file: Path, name: str) -> Callable[..., Any]:
    """The function `name` of a Python file. Raises a one-line ImportError or ValueError if there is none."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: expected a file name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # As if the file were run, it can import neighbouring modules, and Triton finds the source of its functions.
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = next(
            (
                frame.lineno
                for frame in reversed(traceback.extract_tb(error.__traceback__))
                if Path(frame.filename).resolve() == file.resolve()
            ),
            getattr(error, "lineno", None),
        )
        raise ImportError(f"{file}, line {line}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        got = "none" if function is None else repr(function)
        raise ValueError(f"{file}: expected a function named {name}, got {got}")
    return function

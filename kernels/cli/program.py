"""`python -m ernie_m.kernels COMMAND ...`: the list of commands, and `main`.

Each command is a module of this folder with `add_arguments(parser)` and `run(arguments)`, which returns the exit code;
it is imported only when it is asked for. Exit codes and errors are those of `ernie-m` (`reference/cli/command.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from ernie_m.reference.cli import command

COMMANDS = {
    "verify": "compare every kernel with its twin in NumPy, then a whole model layer by layer",
    "bench": "time the kernels and models on a GPU, beside the alternatives",
    "compile": "compile every kernel for several GPUs, without having one, and report on the machine code",
    "check": "check a kernel of your own",
}


class Parser(command.Parser):
    """The parser of this program."""

    program = "ernie_m.kernels"


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the one that `argv` names."""
    made = Parser(
        prog="python -m ernie_m.kernels",
        description="Verify, measure and compile ERNIE-M's Triton kernels, and check your own.",
        allow_abbrev=False,
    )
    commands = made.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, help in COMMANDS.items():
        added = commands.add_parser(
            name, help=help, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in argv[:1]:
            found = import_module(f".{name}", __package__)
            found.add_arguments(added)
            added.set_defaults(run=found.run, argv=list(argv))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default the one in `sys.argv`, and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return command.execute(Parser.program, lambda: parser(arguments), arguments)

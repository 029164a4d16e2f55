"""`python -m ernie_m.kernels COMMAND ...`: the list of commands, and `main`.

Each command is a module in this folder with `add_arguments(parser)` and `run(arguments)`, which returns the exit code.
It is imported only when it is called. Exit codes and errors are those of `ernie-m` (`reference/cli/command.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from ernie_m.reference.cli import command

COMMANDS = {
    "verify": "compare every kernel with its NumPy twin, then a model and a training step layer by layer",
    "bench": "time the kernels and the encoder on a GPU, next to the alternatives",
    "compile": "compile every kernel for several GPUs (none is needed) and report on the machine code",
    "check": "check your own kernel against an operation's definition",
    "pretrain": "train a masked language model with the paper's objectives",
    "finetune": "train a model for a task: classify, tag, answer, choose, extract",
}


class Parser(command.Parser):
    """The parser of this program."""

    program = "ernie_m.kernels"


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the command that `argv` names."""
    program = Parser(
        prog="python -m ernie_m.kernels",
        description="Verify, time and compile ERNIE-M's Triton kernels, and check your own.",
        allow_abbrev=False,
    )
    commands = program.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, help in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=help, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in argv[:1]:
            module = import_module(f".{name}", __package__)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run, argv=list(argv))
    return program


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default the one in `sys.argv`, and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return command.execute(Parser.program, lambda: parser(arguments), arguments)

"""The commands of this room: `python -m ernie_m.kernels COMMAND ...`.

    results     standard output
    errors      one line on standard error, no traceback, exit code 2
    Ctrl-C      exit code 130

Each command is a module with `add_arguments(parser)` and `run(arguments)`, which gives the exit code; it is imported
only when it is what was asked for. Where there is no GPU, `verify` and `check` run themselves again in a process in
which Triton's interpreter is on: Triton looks at TRITON_INTERPRET when it is imported, so nothing can be changed in
the process that asks.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

PROGRAM = "python -m ernie_m.kernels"
COMMANDS = {
    "verify": ("verify", "every kernel against its twin in NumPy, then a whole model layer by layer"),
    "bench": ("bench", "time the kernels and models on a GPU, beside what else there is"),
    "compile": ("compile_report", "compile every kernel for GPUs, without one, and report on the machine code"),
    "check": ("check_command", "check a kernel of your own"),
}
FAILED, WRONG, INTERRUPTED = 1, 2, 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose error is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"ernie_m.kernels: error: {message} (see {self.prog} --help)\n")


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the one that `argv` names."""
    made = Parser(
        prog=PROGRAM,
        description="Prove, measure and compile ERNIE-M's Triton kernels; check others.",
        allow_abbrev=False,
    )
    commands = made.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, (module, help) in COMMANDS.items():
        command = commands.add_parser(
            name, help=help, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in argv[:1]:
            found = import_module(f".{module}", __package__)
            found.add_arguments(command)
            command.set_defaults(run=found.run, argv=list(argv))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, `sys.argv`'s by default, and give its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = parser(argv).parse_args(argv)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except SystemExit as done:  # --help, wrong arguments
        return done.code if isinstance(done.code, int) else WRONG
    except KeyboardInterrupt:
        print("ernie_m.kernels: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Nothing is left in the buffer that Python would fail to write on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, MemoryError) as error:
        print(f"ernie_m.kernels: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return WRONG


def run_interpreted(argv: Sequence[str]) -> int | None:
    """Run the command in a process with Triton's interpreter and give its exit code; None if this process will do.

    It will do on a machine with a GPU, in the interpreter, and where there is no Triton at all.
    """
    import torch

    from ._triton import HAS_TRITON
    from .operation import INTERPRETED

    if INTERPRETED or torch.cuda.is_available() or not HAS_TRITON:
        return None
    sys.stdout.flush()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    child = subprocess.Popen([sys.executable, "-m", __package__ or "", *argv], env=environment)
    try:
        status = child.wait()
    except KeyboardInterrupt:
        # A terminal's Ctrl-C has reached the child too, which says so itself.
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
        return INTERRUPTED
    if status < 0:
        name = signal.Signals(-status).name
        print(f"ernie_m.kernels: the process was ended by {name}: a kernel's pointer out of range?", file=sys.stderr)
        return FAILED
    return status

"""Shared by all commands, here and in `ernie_m.kernels`: argument parsing, errors and exit codes.

0     success
1     a comparison, an inspection or a check found a difference
2     an error: one line on standard error, no traceback
130   Ctrl-C
141   the reader closed the pipe
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

DIFFERENCE, ERROR, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line, like the rest of the program."""

    program = "ernie-m"

    def error(self, message: str) -> NoReturn:
        self.exit(ERROR, f"{self.program}: error: {message} (see {self.prog} --help)\n")


def add_command(
    commands: Any, name: str, help: str, description: str, epilog: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a parser for the command `name`; `run` does the work and returns the exit code."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def execute(program: str, parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    """Parse `argv` (by default `sys.argv`), run the command that it names, and return the exit code.

    Expected errors become one line on standard error and an exit code; others, such as a KeyError, propagate.
    """
    _prepare_streams()
    try:
        arguments = parser().parse_args(argv)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except SystemExit as done:  # --help, --version, wrong arguments
        return done.code if isinstance(done.code, int) else ERROR
    except KeyboardInterrupt:
        return _stop(f"{program}: interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _stop(None, PIPE_CLOSED)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, MemoryError) as error:
        return _stop(f"{program}: error: {describe(error)}", ERROR)


def describe(error: BaseException) -> str:
    """Describe an error to the user."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory" + (f": {error}" if str(error) else "")
    return str(error) or type(error).__name__


def _prepare_streams() -> None:
    """Write UTF-8 to files and pipes on every platform; escape characters that a terminal cannot encode."""
    if sys.stdout is None:
        # The caller closed it (>&-). Opened read-only, so that every write fails.
        sys.stdout = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def _stop(message: str | None, status: int) -> int:
    """Print the message and flush standard output, so that Python does not fail to flush it at exit."""
    if message is not None:
        print(message, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status

"""The command line: `ernie-m COMMAND ...`.

    results     standard output; JSON lines where a program would read them
    errors      one line on standard error, no traceback, exit code 2
    Ctrl-C      exit code 130; a pipe that the reader has closed: 141; in neither case half a file

Each command is a file, `cli_<command>.py`, with `add`, its arguments, and `run`, its work, which gives the exit code.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from . import cli_convert, cli_demo, cli_encode, cli_inspect, cli_tokenize, cli_trace

COMMANDS = (cli_demo, cli_encode, cli_tokenize, cli_trace, cli_inspect, cli_convert)
FAILED, INTERRUPTED, PIPE_CLOSED = 2, 130, 141

DESCRIPTION = "ERNIE-M on the command line: from text to tokens and vectors, and a look inside model and checkpoint."
EPILOG = """\
examples:
  ernie-m demo
  ernie-m encode --model DIR --file sentences.txt --output vectors.npy
  ernie-m tokenize "Good morning!" | head
  ernie-m trace "Good morning!"
  ernie-m inspect DIR
  ernie-m convert PADDLE_DIR NEW_DIR

Each command has a --help of its own. A TEXT that begins with a dash goes behind --.
exit codes: 0 done; 1 a comparison or an inspection found a difference; 2 an error; 130 Ctrl-C; 141 closed pipe"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose error is one line, as every other error of this program is."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"ernie-m: error: {message} (see {self.prog} --help)\n")


def version() -> str:
    """The installed package's version."""
    try:
        return metadata.version("ernie-m")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    made = Parser(
        prog="ernie-m",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"ernie-m {version()}")
    commands = made.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, `sys.argv`'s by default, and give its exit code."""
    _prepare_streams()
    try:
        arguments = parser().parse_args(argv)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except SystemExit as done:  # --help, --version, wrong arguments
        return done.code if isinstance(done.code, int) else FAILED
    except KeyboardInterrupt:
        return _stop("ernie-m: interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _stop(None, PIPE_CLOSED)
    except (OSError, ValueError, TypeError, ImportError, MemoryError, RecursionError) as error:
        return _stop(f"ernie-m: error: {describe(error)}", FAILED)


def describe(error: BaseException) -> str:
    """What went wrong, as a user would say it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory" + (f": {error}" if str(error) else "")
    return str(error) or type(error).__name__


def _prepare_streams() -> None:
    """Results that go to a file or a pipe are UTF-8 everywhere; a terminal that lacks a character shows its number."""
    if sys.stdout is None:
        # Closed by the caller (>&-). What is opened for reading makes each attempt to write an error.
        sys.stdout = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def _stop(message: str | None, status: int) -> int:
    """Say why, and leave nothing in standard output's buffer that Python would fail to write on its way out."""
    if message is not None:
        print(message, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status

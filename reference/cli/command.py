"""Shared by all commands, here and in `ernie_m.kernels`: argument parsing, errors and exit codes.

0     success
1     a comparison, an inspection or a check found a difference
2     an error: one line on standard error; a traceback only for what is a bug
128 + n   signal n ended it: 129 hang-up, 130 Ctrl-C, 143 SIGTERM
141   the reader closed the pipe
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from ..compat import quiet_interrupt

DIFFERENCE, ERROR, INTERRUPTED, PIPE_CLOSED = 1, 2, quiet_interrupt.INTERRUPTED, 141


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line, like the rest of the program."""

    program = "ernie-m"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown arguments here: argparse would have the main parser do it, and refer to the wrong --help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse ignores errors here, such as a full disk.
        if message:
            (file or sys.stderr).write(message)

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

    Expected errors become one line on standard error and an exit code; others, such as a KeyError, a traceback.
    """
    try:
        quiet_interrupt.restore()
        _prepare_streams()
        with _named_output(), _raising_signals():
            status = _run(parser, argv)
            sys.stdout.flush()
            sys.stderr.flush()
            return status
    except KeyboardInterrupt as stopped:
        return _stop(f"{program}: interrupted" + (f": {stopped}" if str(stopped) else ""), INTERRUPTED)
    except Terminated as error:
        return _stop(f"{program}: ended by {error.signal.name}", error.status)
    except BrokenPipeError:
        return _stop(None, PIPE_CLOSED)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, MemoryError) as error:
        return _stop(f"{program}: error: {describe(error)}", ERROR)
    except Exception:
        return _stop(traceback.format_exc().rstrip(), ERROR)


def _run(parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as done:  # --help, --version, wrong arguments
        return done.code if isinstance(done.code, int) else ERROR
    try:
        return int(arguments.run(arguments))
    except SystemExit as done:  # from a user's code: whatever its exit code is, the command has not finished
        raise RuntimeError(f"the command was ended by SystemExit: {done}") from done


class Terminated(BaseException):
    """A signal that asks the process to end; like KeyboardInterrupt, it must not be caught as an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)
        self.status = 128 + number


@contextmanager
def _raising_signals() -> Iterator[None]:
    """Make SIGTERM and a hang-up raise `Terminated`, so that temporary files are removed; ignored ones stay ignored."""
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    changed = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def handle(number: int, frame: FrameType | None) -> None:
        # Such signals often come twice, to the process and to its group, and must not interrupt the cleaning up.
        for each in changed:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    try:
        for number in changed:
            signal.signal(number, handle)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


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


class _Output:
    """Standard output, whose errors say that it is what could not be written."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As the stream's."""
        with self._naming():
            return self.stream.write(text)

    def flush(self) -> None:
        """As the stream's."""
        with self._naming():
            self.stream.flush()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except io.UnsupportedOperation:
            raise OSError("standard output: expected a file, a pipe or a terminal, but it is closed") from None
        except OSError as error:
            error.filename = "standard output"
            raise


@contextmanager
def _named_output() -> Iterator[None]:
    """In this context, errors of standard output name it."""
    stream = sys.stdout
    sys.stdout = cast(TextIO, _Output(stream))
    try:
        yield
    finally:
        sys.stdout = stream


def _stop(message: str | None, status: int) -> int:
    """Print the message and flush both streams, so that Python does not fail to flush them at exit."""
    if message is not None:
        _write(sys.stderr, message + "\n")
    _write(sys.stdout, "")
    return status


def _write(stream: TextIO, text: str) -> None:
    """Write and flush; if that is impossible, nothing more can be said there, and the rest is discarded."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""Read texts from arguments, a file or standard input, one per line.

    TEXT ...       each argument is one text
    --file FILE    each line of a UTF-8 file is one text
    neither        each line of standard input is one text

Lines end with "\\n" or "\\r\\n"; the last one needs no line end; an empty line is an empty text. Only one window of
lines is held in memory at a time, so files may be of any size.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .numbers import file_name

LONGEST_LINE = 4 * 2**20  # bytes
WINDOW_CHARACTERS = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Text:
    """One text and its origin, such as "line 3 of corpus.txt"."""

    text: str
    origin: str


def add_arguments(parser: ArgumentParser) -> None:
    """Declare TEXT and --file."""
    parser.add_argument(
        "texts", metavar="TEXT", nargs="*", help="texts (default: the lines of FILE or of standard input)"
    )
    file = "read texts from a UTF-8 file, one per line (-: standard input)"
    parser.add_argument("--file", metavar="FILE", type=file_name, help=file)


def texts(arguments: Namespace) -> Iterator[Text]:
    """The texts that the arguments name, in order.

    Raises ValueError if both TEXT and --file are given or a text is not UTF-8, OSError if FILE cannot be read.
    """
    if arguments.texts and arguments.file is not None:
        raise ValueError("TEXT, --file: expected only one of the two")
    if arguments.texts:
        return from_arguments(arguments.texts)
    if arguments.file in (None, "-"):
        return _from_stdin()
    return lines_of_file(arguments.file)


def lines_of_file(path: str) -> Iterator[Text]:
    """The lines of a UTF-8 file. Raises OSError at once if it cannot be read."""
    # Opened here, not in the generator: a wrong name must fail before any work is done.
    return _from_file(open(path, "rb"), path)


def windows(found: Iterable[Text], lines: int) -> Iterator[list[Text]]:
    """Group texts into lists of at most `lines`, or fewer if the texts are long."""
    window: list[Text] = []
    characters = 0
    for text in found:
        window.append(text)
        characters += len(text.text)
        if len(window) >= lines or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def from_arguments(given: list[str]) -> Iterator[Text]:
    """Texts from the command line. Raises ValueError for one that is not UTF-8."""
    for number, text in enumerate(given, start=1):
        # Python decodes bytes of the command line that are not UTF-8 to lone surrogates.
        wrong = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
        if wrong is not None:
            raise ValueError(f"TEXT {number}: expected UTF-8, got {text[wrong]!r} at character {wrong}")
        yield Text(text, f"TEXT {number}")


def _from_stdin() -> Iterator[Text]:
    if sys.stdin is None:
        raise ValueError("standard input: expected texts, but it is closed")
    if sys.stdin.isatty():
        print("reading one text per line; press Ctrl-D to end", file=sys.stderr)
    try:
        # Not `sys.stdin.buffer`: if a thread were waiting for a line of it, Python could not end without a fatal error.
        stream: BinaryIO = open(sys.stdin.fileno(), "rb", closefd=False)  # noqa: SIM115
    except OSError:  # not a file of the system
        stream = sys.stdin.buffer
    return _lines(stream, "stdin")


def _from_file(stream: BinaryIO, name: str) -> Iterator[Text]:
    with stream:
        yield from _lines(stream, Path(name).name)


def _lines(stream: BinaryIO, name: str) -> Iterator[Text]:
    number, offset = 0, 0
    while line := _line(stream, name):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"line {number} of {name}: expected at most {LONGEST_LINE} bytes, got more")
        skipped = len(BYTE_ORDER_MARK) if number == 1 and line.startswith(BYTE_ORDER_MARK) else 0
        try:
            text = line[skipped:].decode("utf-8")
        except UnicodeDecodeError as error:
            at = skipped + error.start
            raise ValueError(
                f"line {number} of {name}: expected UTF-8, got byte 0x{line[at]:02x} at byte {at} of the line, "
                f"byte {offset + at} of the file (both counted from 0)"
            ) from None
        offset += len(line)
        text = text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
        yield Text(text, f"line {number} of {name}")


def _line(stream: BinaryIO, name: str) -> bytes:
    """The next line, or the beginning of one that is too long. Raises OSError that names the stream."""
    try:
        # Not `next(stream)`, which would read a file without line ends whole.
        return stream.readline(LONGEST_LINE + 1)
    except OSError as error:
        error.filename = name
        raise

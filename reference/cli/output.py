"""Output besides the vectors: checked output paths, JSON lines, and notes and progress on standard error."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def writable(path: str, overwrite: bool) -> Path:
    """The file to write for `path`: where it leads, if it is a link.

    Raises OSError if it exists, unless `overwrite`, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{path}: exists and is not a regular file")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{path}: already exists; pass --overwrite to replace it")
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: cannot be written: {folder} is not a directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: cannot be written: no permission to write to {folder}")
    return target


def print_json(value: Any) -> None:
    """Print a JSON value on one line of standard output, without escaping non-ASCII text."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def say(message: str) -> None:
    """Print a note on standard error, where it does not mix with the results."""
    print(f"ernie-m: {message}", file=sys.stderr)


@contextmanager
def said_warnings() -> Iterator[None]:
    """In this context, warnings are notes on standard error, without the place in the program."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(str(message))
        yield


class Progress:
    """A count on standard error that overwrites itself; shown only on a terminal."""

    def __init__(self, what: str, shown: bool = True) -> None:
        self.what = what
        self.count = 0
        self.shown = shown and sys.stderr.isatty()

    def add(self, count: int) -> None:
        """Add to the count, and show it."""
        self.count += count
        if self.shown:
            sys.stderr.write(f"\r{self.count:,} {self.what}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Erase the count from the terminal."""
        if self.shown and self.count:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

"""Output besides the vectors: checked output paths, JSON lines, and notes and progress on standard error."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Warnings of this form, which say how many of the texts of one call they are about, are added up.
COUNTED = re.compile(r"([\d,]+) of ([\d,]+) (.+)", re.S)


def writable(path: str, overwrite: bool) -> Path:
    """The file to write for `path`: where it leads, if it is a link.

    Raises OSError if it exists, unless `overwrite`, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise FileExistsError(f"{path}: expected a file or a new name, got a link that leads back to itself")
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
    """In this context, warnings are notes on standard error, without the place in the program, and each only once.

    A command calls its task for one window of texts after the other. Warnings that count texts are added up over all
    windows, and the totals are noted when the context ends.
    """
    totals: dict[str, list[int]] = {}
    said: set[str] = set()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if counted := COUNTED.fullmatch(text):
            total = totals.setdefault(counted[3], [0, 0])
            for i in (0, 1):
                total[i] += int(counted[i + 1].replace(",", ""))
        elif text not in said:
            said.add(text)
            say(text)

    with warnings.catch_warnings():
        # Python would drop a warning with the same text as one before.
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = note
        try:
            yield
        finally:
            for what, (count, of) in totals.items():
                say(f"{count:,} of {of:,} {what}")


class Progress:
    """A count on standard error that overwrites itself; shown only on a terminal."""

    def __init__(self, what: str, shown: bool = True) -> None:
        self.what = what
        self.count = 0
        self.shown = shown and sys.stderr.isatty()
        self.written = False

    def add(self, count: int) -> None:
        """Add to the count, and show it."""
        self.count += count
        self._write(f"\r{self.count:,} {self.what}")

    def of(self, done: int, total: int) -> None:
        """The `progress` of a task: show how much is done, and erase it at the end."""
        if done == total:
            self.clear()
        else:
            self._write(f"\r{done:,} of {total:,} {self.what}")

    def clear(self) -> None:
        """Erase the count from the terminal."""
        if self.written:
            self._write("\r\x1b[K")
            self.written = False

    def _write(self, text: str) -> None:
        if self.shown:
            sys.stderr.write(text)
            sys.stderr.flush()
            self.written = True

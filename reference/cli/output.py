"""What the commands write besides their results: files that are never half written, progress, remarks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def writable(path: str, overwrite: bool) -> Path:
    """The file that `path` names, links followed. Raises OSError if it exists, or could not be written."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{path}: expected the name of a file to write, found something that is no file")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already; --overwrite replaces it")
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: cannot be written: {folder} is not a directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: cannot be written: no permission to write into {folder}")
    return target


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output, non-ASCII text as it is."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def say(message: str) -> None:
    """A remark on standard error, so that it is not among the results."""
    print(f"ernie-m: {message}", file=sys.stderr)


class Progress:
    """A count on standard error that is written over itself; only where that is a terminal."""

    def __init__(self, what: str, shown: bool = True) -> None:
        self.what = what
        self.count = 0
        self.shown = shown and sys.stderr.isatty()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.count += count
        if self.shown:
            sys.stderr.write(f"\r{self.count:,} {self.what}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the count off the screen."""
        if self.shown and self.count:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

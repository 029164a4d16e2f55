"""Reading files that are what they should be; `new_files` writes them."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

# A clone without git-lfs holds, in place of each large file, a text of three lines that names it.
# Source: git-lfs, docs/spec.md, which also lists the older address and the limit of 1,024 bytes.
POINTER = re.compile(rb"version https?://(?:git-lfs|hawser)\.github\.com/spec/")
POINTER_SIZE = re.compile(rb"^size (\d+)\r?$", re.MULTILINE)
LARGEST_POINTER = 1024
# Ten times ERNIE-M's sentencepiece model, the largest of the files that are read whole.
LARGEST_FILE = 64 * 2**20
PIECE = 2**20
# The weights of a checkpoint directory: the first that exists are its weights.
PADDLE_WEIGHTS_FILE = "model_state.pdparams"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    PADDLE_WEIGHTS_FILE,
)


def is_paddle(directory: str | os.PathLike[str]) -> bool:
    """Whether the weights of a directory are in Paddle's file."""
    found = [name for name in WEIGHT_FILES if (Path(directory) / name).is_file()]
    return found[:1] == [PADDLE_WEIGHTS_FILE]


def refuse_pointer(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if the file is a git-lfs pointer, not the file that it stands for; OSError if unreadable."""
    with open(path, "rb") as file:
        refuse_pointer_text(path, file.read(LARGEST_POINTER))


def refuse_pointer_text(path: str | os.PathLike[str], head: bytes) -> None:
    """`refuse_pointer` for a file whose first bytes, at least `LARGEST_POINTER` of them, are known."""
    if POINTER.match(head.removeprefix(b"\xef\xbb\xbf")):
        size = POINTER_SIZE.search(head)
        stands_for = f" to a file of {int(size[1]):,} bytes" if size else ""
        raise ValueError(f"{path}: this is a git-lfs pointer{stands_for}; fetch the real file with `git lfs pull`")


def refuse_irregular(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for a directory, or for a pipe or a device, which could wait, or be read only once.

    Raises FileNotFoundError or another OSError, which names the file, if there is none.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: expected a regular file, got a directory, a pipe or a device")


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file, or of one that a link leads to.

    Raises what `refuse_irregular` raises, and ValueError for a file of more than `LARGEST_FILE` bytes, or a git-lfs
    pointer; each names the file.
    """
    refuse_irregular(path)
    with open(path, "rb") as file:
        # Not the size that the system reports: the file may grow, and those in /proc have none.
        # In pieces, because `read` takes as much memory as it is allowed to return.
        data = b"".join(islice(iter(lambda: file.read(PIECE), b""), LARGEST_FILE // PIECE + 1))
    if len(data) > LARGEST_FILE:
        raise ValueError(f"{path}: expected at most {LARGEST_FILE:,} bytes, got more")
    refuse_pointer_text(path, data[:LARGEST_POINTER])
    return data


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file, UTF-8 with or without a byte order mark.

    Raises what `read_regular` raises, and ValueError that names the file if it is not such an object, or has a key
    twice.
    """
    data = read_regular(path)
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object in JSON, where readers would keep only one of those with the same name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"expected each name once, got {twice!r:.80} twice")
    return found


def path_of(text: str | os.PathLike[str], name: str = "directory") -> Path:
    """A path, but not an empty text, as of an unset variable, which would be the current directory.

    Raises ValueError that begins with the argument's name.
    """
    if text == "":
        raise ValueError(f"{name}: expected a path, such as . for the current directory, got ''")
    return Path(text)

"""Writing files that are never half-written, and recognising git-lfs pointers in place of the files to read.

Files are written under a temporary name in the same folder, then renamed. If anything goes wrong on the way (a full
disk, Ctrl-C), the temporary file is removed and the old file stays.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

# A clone without git-lfs holds, in place of each large file, a text of three lines that names it.
# Source: git-lfs, docs/spec.md, which also lists the older address and the limit of 1,024 bytes.
POINTER = re.compile(rb"version https?://(?:git-lfs|hawser)\.github\.com/spec/")
POINTER_SIZE = re.compile(rb"^size (\d+)\r?$", re.MULTILINE)
LARGEST_POINTER = 1024


def refuse_pointer(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if the file is a git-lfs pointer, not the file that it stands for; OSError if unreadable."""
    with open(path, "rb") as file:
        head = file.read(LARGEST_POINTER)
    if POINTER.match(head.removeprefix(b"\xef\xbb\xbf")):
        size = POINTER_SIZE.search(head)
        stands_for = f" to a file of {int(size[1]):,} bytes" if size else ""
        raise ValueError(f"{path}: this is a git-lfs pointer{stands_for}; fetch the real file with `git lfs pull`")


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[BinaryIO, ...]]:
    """Open a temporary file for each path; rename them all when the block ends without an exception."""
    # Not `tempfile`: its files are private to the user, but a checkpoint should have the usual permissions.
    temporary = [path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") for path in paths]
    try:
        with ExitStack() as stack:
            yield tuple(stack.enter_context(open(path, "xb")) for path in temporary)
        for source, path in zip(temporary, paths, strict=True):
            os.replace(source, path)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)

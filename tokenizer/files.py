"""Writing files that are never half-written: under a temporary name in the same folder, then renamed.

If anything goes wrong on the way (a full disk, Ctrl-C), the temporary file is removed and the old file stays.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO


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

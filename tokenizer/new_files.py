"""Writing files that are never half-written.

New files are written beside the old ones, and get their names when all are complete. If anything goes wrong on the way
(a full disk, Ctrl-C), they are removed and the old files stay. On Linux a file has no name at all while it is written
(O_TMPFILE), so even a process that is killed leaves nothing. Other systems, and some network drives, lack such files:
there it has a hidden name, `.ernie-m.*.tmp`, and a process that is killed leaves it behind. While names change hands,
the old files have hidden names too (hard links), so that an error in the middle puts them back.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# What the system says of an open file that cannot grow; it does not say of which.
NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def replacing(*paths: Path, overwrite: bool = True, removed: Iterable[Path] = ()) -> Iterator[tuple[BinaryIO, ...]]:
    """Open a new file for each path; if the block ends without an exception, name them all and delete `removed`.

    Raises FileExistsError, and changes nothing, if a path is a directory or another special file; or, unless
    `overwrite`, if it exists. Of several writers that may not overwrite, exactly one succeeds. An OSError about space
    names the path, or of several the directory of the first.
    """
    removed = tuple(removed)
    refuse_targets(paths, overwrite)
    refuse_targets(removed)
    # Not `tempfile`: its files are private to the user, but a checkpoint should have the usual permissions.
    hidden = [path.with_name(_hidden_name()) for path in paths]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(_open_new(*pair)) for pair in zip(hidden, paths, strict=True)]
            yield tuple(files)
            for file, name in zip(files, hidden, strict=True):
                file.flush()
                _give_name(file, name)
        # Checked before the first file is renamed, because by then it is too late for the others.
        refuse_targets(paths, overwrite)
        refuse_targets(removed)
        _exchange(hidden, paths, overwrite, removed)
    except OSError as error:
        if error.filename is None and error.errno in NO_SPACE:
            error.filename = os.fspath(paths[0] if len(paths) == 1 else paths[0].parent)
        raise
    finally:
        for name in hidden:
            name.unlink(missing_ok=True)


def _hidden_name() -> str:
    return f".ernie-m.{secrets.token_hex(8)}.tmp"


def _exchange(hidden: Iterable[Path], paths: Iterable[Path], overwrite: bool, removed: Iterable[Path]) -> None:
    """Name the new files and delete `removed`, or on an error in the middle put back what was there."""
    kept: list[Path] = []
    try:
        with ExitStack() as undo:
            for name, path in zip(hidden, paths, strict=True):
                if overwrite:
                    kept.append(_keep(path, undo))
                else:
                    _claim(name, path)
                    undo.callback(path.unlink, missing_ok=True)
                os.replace(name, path)
            for path in removed:
                kept.append(_keep(path, undo))
                path.unlink(missing_ok=True)
            undo.pop_all()
    finally:
        for old in kept:
            old.unlink(missing_ok=True)


def _keep(path: Path, undo: ExitStack) -> Path:
    """Give the file at `path` a hidden name too, until it is put back or no longer needed; returns that name."""
    old = path.with_name(_hidden_name())
    undo.callback(_put_back, old, path, os.path.lexists(path))
    # Where there are no hard links, an error in the middle leaves the new file there: a copy could take minutes.
    with suppress(OSError, NotImplementedError):
        os.link(path, old, follow_symlinks=False)
    return old


def _put_back(old: Path, path: Path, existed: bool) -> None:
    if os.path.lexists(old):
        os.replace(old, path)
    elif not existed:
        path.unlink(missing_ok=True)


def refuse_targets(paths: Iterable[Path], overwrite: bool = True) -> None:
    """Raise FileExistsError for a path that cannot be replaced; unless `overwrite`, for any path that exists."""
    for path in filter(os.path.lexists, paths):
        if not overwrite:
            raise FileExistsError(f"{path}: the file already exists")
        # A link is replaced, wherever it leads.
        if not (path.is_symlink() or path.is_file()):
            raise FileExistsError(f"{path}: exists and is not a regular file")


def _open_new(hidden: Path, path: Path) -> BinaryIO:
    """A new file without a name where the system has such files, else with the hidden name; errors name `path`."""
    try:
        nameless = os.open(hidden.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):
        pass
    else:
        if os.path.exists(_descriptor(nameless)):
            return open(nameless, "w+b")
        os.close(nameless)
    try:
        return open(hidden, "x+b")
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def _descriptor(number: int) -> str:
    """Where Linux shows an open file, named or not."""
    return f"/proc/self/fd/{number}"


def _give_name(file: BinaryIO, name: Path) -> None:
    """Give a file from `_open_new` its hidden name, if it does not have it yet."""
    if name.exists():
        return
    try:
        # Without `src_dir_fd`, which an absolute path ignores, Python would link to the link in /proc.
        os.link(_descriptor(file.fileno()), name, src_dir_fd=file.fileno(), follow_symlinks=True)
    except OSError:
        # A security policy or a network drive may forbid the link, and what was written must not be lost.
        file.seek(0)
        with open(name, "xb") as copy:
            shutil.copyfileobj(file, copy)


def _claim(source: Path, path: Path) -> None:
    """Create `path`, with the content of `source` where there are hard links, else empty. Raises FileExistsError."""
    with suppress(OSError):
        os.link(source, path)
        return
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise FileExistsError(f"{path}: the file already exists") from None


@contextmanager
def directory(path: Path) -> Iterator[None]:
    """Create a directory and its parents if needed.

    If the block raises, or leaves the directory empty, those created that are empty are removed.
    """
    filled = False
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
        filled = any(path.iterdir())
    finally:
        for folder in () if filled else created:
            with suppress(OSError):
                folder.rmdir()

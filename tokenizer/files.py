"""Writing files that are never half-written, and reading files that are what they should be.

New files are written beside the old ones, and get their names when all are complete. If anything goes wrong on the way
(a full disk, Ctrl-C), they are removed and the old files stay. On Linux a file has no name at all while it is written
(O_TMPFILE), so even a process that is killed leaves nothing. Other systems, and some network drives, lack such files:
there it has a hidden name, `.ernie-m.*.tmp`, and a process that is killed leaves it behind. While names change hands,
the old files have hidden names too (hard links), so that an error in the middle puts them back.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

# A clone without git-lfs holds, in place of each large file, a text of three lines that names it.
# Source: git-lfs, docs/spec.md, which also lists the older address and the limit of 1,024 bytes.
POINTER = re.compile(rb"version https?://(?:git-lfs|hawser)\.github\.com/spec/")
POINTER_SIZE = re.compile(rb"^size (\d+)\r?$", re.MULTILINE)
LARGEST_POINTER = 1024
# Ten times ERNIE-M's sentencepiece model, the largest of the files that are read whole.
LARGEST_FILE = 64 * 2**20
PIECE = 2**20
# What the system says of an open file that cannot grow; it does not say of which.
NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
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


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file, or of one that a link leads to.

    Raises FileNotFoundError or another OSError, or ValueError for a directory, a pipe or a device (which could wait or
    go on for ever), a file of more than `LARGEST_FILE` bytes, or a git-lfs pointer; each names the file.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: expected a regular file, got a directory, a pipe or a device")
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


def path_of(text: str | os.PathLike[str], name: str = "directory") -> Path:
    """A path, but not an empty text, as of an unset variable, which would be the current directory.

    Raises ValueError that begins with the argument's name.
    """
    if text == "":
        raise ValueError(f"{name}: expected a path, such as . for the current directory, got ''")
    return Path(text)


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

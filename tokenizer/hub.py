"""Checkpoints on the Hugging Face Hub: from a repository's name to a directory in huggingface_hub's cache.

A name such as "owner/name" is looked up only if it is no local path; without one, nothing here touches the network or
imports huggingface_hub. Its cache, settings and tokens apply: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.

Only files that this project reads are downloaded, and weights in one format, the one that would be read. They arrive in
an order that makes a download that was interrupted look incomplete, also offline: first the files that may be absent,
last those that must be there. huggingface_hub checks lengths; the content is checked here, against the hashes that the
repository lists, before any file of the next kind is downloaded.

Source: huggingface_hub 0.36 and 2.4, `validate_repo_id`, `snapshot_download`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .files import PADDLE_WEIGHTS_FILE, PIECE, WEIGHT_FILES, path_of, read_json
from .saving import ADDED, CONFIG, MODEL, SPECIAL, VOCABULARY

PART = r"\w(?:[\w.-]*\w)?"
REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.))(?!.*\.git$)(?=.{{3,96}}$){PART}/{PART}", re.ASCII)
# Readers go on without these.
OPTIONAL = (CONFIG, SPECIAL, ADDED, "retrieval.json")
# Readers fail without these. How they are read depends on whether there are Paddle's weights, which thus come earlier.
REQUIRED = ("config.json", "model_config.json", VOCABULARY, MODEL)


def is_repository(name: str | os.PathLike[str]) -> bool:
    """Whether `name` is a string such as "owner/name", and there is no local "owner", in which it would be a path."""
    if not isinstance(name, str) or not REPOSITORY.fullmatch(name):
        return False
    return not os.path.lexists(name.partition("/")[0])


def directory(
    name: str | os.PathLike[str], revision: str | None = None, weights: bool = True
) -> str | os.PathLike[str]:
    """The local directory of a checkpoint: of a repository's name, its snapshot in the cache; of any other, `name`.

    revision: a branch, a tag or a commit of the repository; by default its main branch.
    weights: whether weights are needed. If not, only Paddle's are downloaded, as other files are read by them.

    Raises ValueError if `name` is empty, or if a revision is given for a local path; ImportError if huggingface_hub is
    not installed; FileNotFoundError, naming the repository, if it or the revision does not exist or, offline, is not in
    the cache; PermissionError if access must be requested; another OSError if the download fails, a file is damaged, or
    the cache cannot be written.
    """
    if not is_repository(name):
        if revision is not None and os.path.lexists(name):
            raise ValueError(f"revision: expected none for {name}, as a local path has no revisions, got {revision!r}")
        path_of(name)
        return name
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(
            f"{name}: no such directory; loading a repository of that name from the Hugging Face Hub needs "
            "huggingface_hub: pip install 'ernie-m[hub]'"
        ) from None
    try:
        return _snapshot(huggingface_hub, os.fspath(name), revision, weights)
    except Exception as error:
        explained = _explained(os.fspath(name), revision, error)
        if explained is None:
            raise
        raise explained from None


def _snapshot(hub: Any, name: str, revision: str | None, weights: bool) -> Path:
    # Without a connection, this is whatever the cache has.
    folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(OPTIONAL)))
    commit = folder.name
    try:
        listed = hub.HfApi().model_info(name, revision=commit, files_metadata=True).siblings
    except Exception:
        if any((folder / file).is_file() for file in REQUIRED):
            return folder
        raise
    files = {item.rfilename: item for item in listed or ()}

    def fetch(names: Iterable[str]) -> None:
        for file in names:
            if file not in files or (folder / file).is_file():
                continue
            _check(Path(hub.hf_hub_download(name, file, revision=commit)), files[file])

    for file in OPTIONAL:
        if file in files:
            _check(folder / file, files[file])
    chosen = [file for file in WEIGHT_FILES if file in files][:1]
    if weights or chosen == [PADDLE_WEIGHTS_FILE]:
        fetch(chosen)
        fetch(shard for file in chosen if file.endswith(".index.json") for shard in _shards(folder / file))
    fetch(REQUIRED)
    return folder


def _shards(index: Path) -> list[str]:
    """The files that an index names; none if it is damaged, which its reader reports."""
    with suppress(ValueError, KeyError, AttributeError, TypeError):
        return sorted(set(read_json(index)["weight_map"].values()))
    return []


def _check(path: Path, listed: Any) -> None:
    """Remove a file from the cache, and raise OSError, unless it has the hash that the repository lists for it."""
    if listed.lfs is not None:
        kind, expected, found = "SHA-256", listed.lfs.sha256, hashlib.sha256()
    else:
        # The hash that git gives a file. Security is not what it is for.
        kind, expected, found = "git hash", listed.blob_id, hashlib.sha1(usedforsecurity=False)
        found.update(b"blob %d\0" % path.stat().st_size)
    if expected is None:
        return
    try:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(PIECE), b""):
                found.update(piece)
        if found.hexdigest() != expected:
            raise OSError(f"{path.name}: expected the {kind} {expected}, got {found.hexdigest()}")
    except BaseException:  # if the check was interrupted, the next call must repeat it
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what led to it, from the outside in."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _system_error(error: Exception) -> tuple[OSError | None, str]:
    """The operating system's error behind one of a library, and its text."""
    for cause in _causes(error):
        # Errors of the libraries may be OSErrors too, without a number.
        if isinstance(cause, OSError) and (cause.errno is not None or isinstance(cause, TimeoutError)):
            text = cause.strerror or str(cause) or "timed out"
            return cause, text[0].lower() + text[1:]
    return None, ""


def _explained(name: str, revision: str | None, error: Exception) -> OSError | None:
    """What to tell the user about an error of huggingface_hub; None if it is about neither the network nor files."""
    from socket import gaierror

    from huggingface_hub import constants, errors

    # Errors of its own, and of the network libraries that it is built on by release, need not be OSErrors.
    if not isinstance(error, (OSError, RuntimeError)) and type(error).__module__ == "builtins":
        return None
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{name}: the repository is gated: request access on its page, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{name}: the repository has no revision {revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{name}: no such directory, and no such public repository at {constants.ENDPOINT} (for a private one, set "
            "HF_TOKEN)"
        )
    system, text = _system_error(error)
    if system is not None and (system.filename is not None or system.errno in (errno.ENOSPC, errno.EDQUOT)):
        place = constants.HF_HUB_CACHE if system.filename is None else system.filename
        return OSError(f"{name}: the repository of that name cannot be stored in the cache: {place}: {text}")
    if constants.HF_HUB_OFFLINE:
        of = "" if revision is None else f"{revision} of "
        return FileNotFoundError(
            f"{name}: no such directory, and {of}the repository of that name is not in the cache "
            f"({constants.HF_HUB_CACHE}); HF_HUB_OFFLINE is set, so it was not looked up"
        )
    advice = "try again, or set HF_HUB_OFFLINE=1 to use what is in the cache"
    if isinstance(system, (ConnectionRefusedError, TimeoutError, gaierror)) or (
        system is not None and system.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    ):
        return OSError(
            f"{name}: no such directory, and {constants.ENDPOINT}, which may have a repository of that name, cannot be "
            f"reached: {text}; {advice}"
        )
    reason: BaseException = error
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        reason = error.__cause__
    line = text or next(iter(str(reason).splitlines()), "") or type(reason).__name__
    return OSError(
        f"{name}: no such directory, and downloading the repository of that name from {constants.ENDPOINT} failed: "
        f"{line}; {advice}"
    )

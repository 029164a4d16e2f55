"""What the commands that train share: the directory of a run, changed settings, and being stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ernie_m.reference.cli.command import Terminated
from ernie_m.tokenizer.new_files import directory

from ..runtime import dispatch
from ..training import Group, Stopped, logs, saving
from ..training.settings import check


def changed(changes: Sequence[str]) -> dict[str, Any]:
    """The settings in arguments such as rate=1e-4. Raises ValueError for one that does not exist, or a wrong value."""
    found: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--set: expected NAME=VALUE, got {change!r}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
        try:
            check(name, found[name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"--set: {error}") from None
    return found


@contextmanager
def prepared(out: Path, resume: bool, processes: Group) -> Iterator[bool]:
    """Make the run's directory, and remove it at the end if nothing was written; yields whether an earlier run goes on.

    Raises FileExistsError if there is a run already, or a model in it that no run has written.
    """
    exists = (out / saving.FILE).exists()
    if exists and not resume:
        raise FileExistsError(f"{out}: holds a run; go on with it by --resume, or choose another directory")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: expected a directory, or the name of a new one, got a file")
    if (out / saving.MODEL).exists() and not exists and not (out / logs.FILE).exists():
        found = out / saving.MODEL
        raise FileExistsError(f"{found}: exists, but no run has written it: move it, or choose another directory")
    with directory(out):
        processes.wait()
        yield exists


def kept(out: Path) -> Path:
    """Where the run's model is. Raises FileNotFoundError if somebody has removed it."""
    model = out / saving.MODEL
    if not (model / "config.json").exists():
        raise FileNotFoundError(f"{model}: expected the model that the run kept, got none; train it again elsewhere")
    return model


@contextmanager
def stopping(processes: Group, how: str = "--resume goes on") -> Iterator[None]:
    """If a signal stops the run inside, say how to go on, and end the program as that signal does.

    Says so first if kernels are interpreted, which a user may have asked for in another command and forgotten.
    """
    if processes.leads and dispatch.INTERPRETED and not torch.cuda.is_available():
        print("TRITON_INTERPRET is set: Triton's interpreter runs the kernels, many times slower", file=sys.stderr)
    try:
        yield
    except Stopped as stopped:
        if stopped.number == 2:
            raise KeyboardInterrupt(f"{stopped}; {how}") from None
        if processes.leads:
            print(f"{stopped}; {how}", file=sys.stderr)
        raise Terminated(stopped.number) from None

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

from ..runtime import dispatch
from ..training import Group, Stopped, saving


def changed(changes: Sequence[str]) -> dict[str, Any]:
    """The settings in arguments such as rate=1e-4. Raises ValueError for one without a name and a value."""
    found: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--set: expected NAME=VALUE, got {change!r}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def prepare(out: Path, resume: bool, processes: Group) -> bool:
    """Make the run's directory; returns whether a run goes on. Raises FileExistsError if there is one already.

    Says so if kernels will be interpreted, which a user may have asked for in another command and forgotten.
    """
    exists = (out / saving.FILE).exists()
    if exists and not resume:
        raise FileExistsError(f"{out}: holds a run; go on with it by --resume, or choose another directory")
    if processes.leads:
        out.mkdir(parents=True, exist_ok=True)
        if dispatch.INTERPRETED and not torch.cuda.is_available():
            print("TRITON_INTERPRET is set: Triton's interpreter runs the kernels, many times slower", file=sys.stderr)
    processes.wait()
    return exists


@contextmanager
def stopping(processes: Group, how: str = "--resume goes on") -> Iterator[None]:
    """End the program as the signal asks that stopped the run inside, and say how to go on."""
    try:
        yield
    except Stopped as stopped:
        if stopped.number == 2:
            raise KeyboardInterrupt(f"{stopped}; {how}") from None
        if processes.leads:
            print(f"{stopped}; {how}", file=sys.stderr)
        raise Terminated(stopped.number) from None

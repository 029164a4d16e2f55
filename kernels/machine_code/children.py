"""Recording needs Triton's interpreter, compiling needs a process without it: each in a child process if need be."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checking.operations import Operation, fixed_case
from ..runtime.dispatch import INTERPRETED
from ..runtime.dtypes import TORCH_DTYPES
from ..runtime.loading import load
from .launches import Launch, record
from .report import ends_quietly, row_of

CHILD = """
import signal
signal.signal({:d}, {:d})
from ernie_m.kernels.machine_code.children import serve
serve({!r})
"""


def rows_of(launches: Sequence[Launch], targets: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of each launch on each target, as rows for `report.table`; "error" if it does not compile."""
    if INTERPRETED:
        return _in_child(_rows, (list(launches), list(targets)), interpreted=False)
    return _rows(launches, targets)


def _rows(launches: Sequence[Launch], targets: Sequence[str]) -> list[dict[str, Any]]:
    variants = [launch.variant() for launch in launches]
    return [row_of(variant, target) for target in targets for variant in variants]


def launches_of(file: Path, name: str, op: tuple[Path, str] | str | None, dtypes: Sequence[str]) -> list[Launch]:
    """The launches of a function in a file: of a call without arguments or, with `op`, with an operation's fixed data.

    op: the name of an operation, or the file and the name of one. Raises ValueError if the function launches nothing.
    """
    call = (file, name, op, list(dtypes))
    if INTERPRETED:
        return _launches(*call)
    return _in_child(_launches, call, interpreted=True)


def _launches(file: Path, name: str, op: tuple[Path, str] | str | None, dtypes: Sequence[str]) -> list[Launch]:
    function = load(file, name, "a function", callable)
    if op is None:
        required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        if required:
            arguments = ", ".join(required)
            raise ValueError(
                f"{name}: expected --op, or a function without arguments that makes a call; got {name}({arguments})"
            )
        return record(function)
    operation = op if isinstance(op, str) else load(*op, "an Operation", lambda found: isinstance(found, Operation))
    found: list[Launch] = []
    for dtype in dtypes:
        found += record(function, *tensors(operation, dtype))
    return found


def tensors(op: str | Operation, dtype: str) -> list[Any]:
    """The fixed data of an operation as a function is called with them: tensors and numbers."""

    def tensor(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        found = torch.from_numpy(np.ascontiguousarray(value))
        return found.to(TORCH_DTYPES[dtype]) if found.dtype == torch.float64 else found

    return [tensor(value) for value in fixed_case(op, dtype).inputs.values()]


def _in_child(function: Any, arguments: tuple[Any, ...], interpreted: bool) -> Any:
    """What `function` returns in a new process, in which Triton's interpreter is on or off. Raises what it raises."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "call"
        file.write_bytes(pickle.dumps((sys.path, function.__name__, arguments)))
        program = CHILD.format(signal.SIGINT, ends_quietly(), str(file))
        done = subprocess.run([sys.executable, "-c", program], env=environment)
        answer = answer_to(file)
        if done.returncode or not answer.exists():
            raise RuntimeError(
                f"the process that {function.__name__[1:]} were asked of ended with code {done.returncode}"
            )
        result, error = pickle.loads(answer.read_bytes())
    if error is not None:
        raise error
    return result


def answer_to(file: Path) -> Path:
    """Where the answer to a call is written; a process that a user's code ends writes none."""
    return file.with_suffix(".answer")


def serve(file: str) -> None:
    """Make the call that is in the file, in this process, and write the result, or the error, beside it."""
    path, name, arguments = pickle.loads(Path(file).read_bytes())
    sys.path[:] = path
    result = error = None
    try:
        result = globals()[name](*arguments)
    except (Exception, SystemExit) as raised:
        plain = isinstance(raised, (ValueError, RuntimeError, ImportError, FileNotFoundError))
        error = raised.with_traceback(None) if plain else RuntimeError(f"{type(raised).__name__}: {raised}")
    answer_to(Path(file)).write_bytes(pickle.dumps((result, error)))

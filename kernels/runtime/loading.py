"""Functions, kernels and operations from a user's Python file: FILE.py:NAME."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def split(argument: str, text: str, others: str = "") -> tuple[Path, str]:
    """The file and the name in FILE.py:NAME; `others` says what else is accepted.

    Raises ValueError, or FileNotFoundError if there is no such file.
    """
    file, separator, name = text.rpartition(":")
    if not separator or not name.isidentifier():
        raise ValueError(f"{argument}: expected {others}FILE.py:NAME, got {text!r}")
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file")
    return Path(file), name


def load(file: Path, name: str, expected: str, fits: Callable[[Any], bool]) -> Any:
    """What is called `name` in a Python file; `expected` says in words what `fits`.

    Raises a one-line ImportError if the file raises or exits, and ValueError if it has nothing of that name that fits.
    """
    found = getattr(_module(file), name, None)
    if found is None or not fits(found):
        raise ValueError(f"{file}: expected {expected} named {name}, got {'none' if found is None else repr(found)}")
    return found


def kernel(module: str, file: Path, name: str) -> Any:
    """The kernel `name` of a file that has been imported before, here or in another process, as `module`."""
    try:
        known = importlib.import_module(module)
    except ImportError:
        known = None
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == file.resolve():
        return getattr(known, name)
    return load(file, name, "a kernel", lambda found: hasattr(found, "arg_names"))


def _module(file: Path) -> Any:
    """The file as a module, executed once."""
    known = sys.modules.get(file.stem)
    if known is not None and getattr(known, "__file__", None) == str(file.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(file.stem, file.resolve())
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: expected a file name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # As if the file were run, it can import neighbouring modules, and Triton finds the source of its functions.
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        # A file that ends in sys.exit(0) must not end the program, as if it had succeeded.
        del sys.modules[file.stem]
        frames = reversed(traceback.extract_tb(error.__traceback__))
        lines = (frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve())
        line = next(lines, getattr(error, "lineno", None))
        raise ImportError(f"{file}, line {line}: {type(error).__name__}: {error}") from error
    return module

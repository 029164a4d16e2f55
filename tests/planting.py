"""Plant a fault in a kernel: one line of its page changed, and the operation launches the changed kernel."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import pytest

# Operations that a page registers get a namespace of their own each time.
NAMESPACES = itertools.count()


def plant(
    page: ModuleType, kernel: str, old: str, new: str, folder: Path, patch: pytest.MonkeyPatch, user: ModuleType
) -> None:
    """`user`, which launches the kernel of that page, has it with `new` in the place of `old`."""
    text = Path(str(page.__file__)).read_text("utf-8").replace("from .", "from ernie_m.kernels.")
    assert old in text
    text = text.replace(old, new).replace("ernie_m::", f"planted{next(NAMESPACES)}::")
    (folder / "planted.py").write_text(text, "utf-8")
    spec = importlib.util.spec_from_file_location("planted", folder / "planted.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    patch.setattr(user, kernel, getattr(module, kernel))

"""Shared by the tests of the exercises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def exercises(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`notebooks/exercises` is searched for modules, as for its notebooks; figures are drawn without a window."""
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "notebooks" / "exercises"))
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    yield
    plt.close("all")

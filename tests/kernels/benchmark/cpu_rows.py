"""Rows for the tests of `benchmark/cpu.py`, found by child processes on PYTHONPATH."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(folder: Path) -> None:
    """What all competitors read."""
    (folder / "numbers").write_text("1 2 3")


def reads(folder: Path) -> Callable[[], Any]:
    """The numbers that `prepare` wrote."""
    return lambda: [float(x) for x in (folder / "numbers").read_text().split()]


def threads(folder: Path) -> Callable[[], Any]:
    """What the environment says."""
    return lambda: [float(os.environ["OMP_NUM_THREADS"]), float("TRITON_INTERPRET" in os.environ), 4.0]


def calls(folder: Path) -> Callable[[], Any]:
    """How often it was called, and in which process."""
    found: list[int] = []

    def call() -> list[float]:
        found.append(0)
        return [float(len(found)), float(os.getpid())]

    return call


def fails(folder: Path) -> Callable[[], Any]:
    """Nothing."""
    raise RuntimeError("no such instructions")


ROWS = {"numbers": {"reads": reads, "threads": threads, "fails": fails}, "processes": {"calls": calls}}

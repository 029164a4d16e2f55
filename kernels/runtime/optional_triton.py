"""Triton, or stand-ins without it (macOS, Windows): the package still imports, and uses plain torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["HAS_TRITON", "tl", "triton"]


class _NoTriton:
    """What modules need of `triton` and `triton.language` at import time; it cannot run a kernel."""

    @staticmethod
    def jit(function: Any) -> Any:
        return function

    @staticmethod
    def constexpr(value: Any) -> Any:
        return value


tl: Any
triton: Any
try:
    triton, tl = import_module("triton"), import_module("triton.language")
    HAS_TRITON = True
except ImportError:
    triton = tl = _NoTriton()
    HAS_TRITON = False

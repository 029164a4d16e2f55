"""The tail of GELU: for negative x the result is small, and float32 has digits for all of it down to 10⁻³⁸.

½x(1 + erf(x/√2)) loses them, because it subtracts nearly equal numbers: it is 0 below about -5.5. `bounds.gelu` lets
that pass. These bounds do not: for z < 0 the error may be what `kernels.gelu.gelu_error_bound` derives for the least
accurate GPU that its manual allows, relative to the result. erfc(−x/√2) in float32 is within it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from ..gelu import gelu_error_bound
from .bounds import Expected, expected


def _tail(found: Expected, z: Array) -> Expected:  # (...) -> (...)
    """The bound on GELU of z, sharpened where z < 0."""
    finite = np.where(np.isfinite(z), z, 0.0)
    sharp = expected(found.format, found.exact, gelu_error_bound(finite)).limit
    return replace(found, limit=np.where(z < 0, np.fmin(found.limit, sharp), found.limit))


# operation -> (the expected result, inputs...) -> the same with sharper limits.
TAILS: dict[str, Callable[..., Expected]] = {
    "gelu": lambda found, x: _tail(found, x),
    "bias_gelu": lambda found, x, bias: _tail(found, x + bias),
}


def sharpened(op: str, found: Expected, inputs: dict[str, Any]) -> Expected:
    """The expected result with its tail asked for, if the operation has one."""
    return TAILS[op](found, **inputs) if op in TAILS else found

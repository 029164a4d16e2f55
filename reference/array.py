"""The array type, checks of dtype, range and flags, and bfloat16.

NumPy has no bfloat16. It is the upper half of a float32, so its bits are stored as uint16:

    bfloat16 -> float32    the same 16 bits, followed by 16 zeros: exact
    float32 -> bfloat16    the upper 16 bits, rounded to nearest, ties to even
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def floating(name: str, x: Any) -> Array:
    """Return `x` as an array. Raises TypeError, naming the argument, unless it is float16, float32 or float64."""
    x = np.asarray(x)
    if x.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"{name}: expected float16, float32 or float64, got {x.dtype}")
    return x


def is_number(value: Any) -> bool:
    """Whether `value` is one real number, of Python or NumPy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def true_or_false(**flags: Any) -> None:
    """Raise TypeError, naming the argument, unless each is True or False."""
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name}: expected True or False, got {value!r:.80}")


def sum_of_tokens(x: Array) -> Array:  # (..., E) -> (E,)
    """The sum over all axes but the last; float16 is summed in float32 and rounded once."""
    wide = np.float32 if x.dtype == np.float16 else x.dtype
    return x.reshape(-1, x.shape[-1]).sum(axis=0, dtype=wide).astype(x.dtype, copy=False)


def check_range(name: str, values: Array, end: int, table: str) -> None:
    """Raise ValueError, with the first offending value and its index, unless every value is in [0, end).

    `table` describes what is indexed, such as "a vocabulary of {} rows"; `end` replaces the placeholder.
    """
    if values.size and (values.min() < 0 or values.max() >= end):
        first = tuple(np.argwhere((values < 0) | (values >= end))[0].tolist())
        raise ValueError(
            f"{name}: expected values in [0, {end}) for {table.format(end)}, got {values[first]} at {list(first)}"
        )


def widen_bfloat16(bits: Array) -> Array:  # (...) uint16 -> (...) float32
    """Convert bfloat16 bit patterns to float32, exactly."""
    wide = np.atleast_1d(bits).astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32).reshape(np.shape(bits))


def round_to_bfloat16(x: Array, nearest: bool = True) -> Array:  # (...) float16, float32 or float64 -> (...) uint16
    """Round `x` to bfloat16 bit patterns, once: to nearest even, or towards zero if not `nearest`.

    Rounding to nearest overflows to infinity, as in IEEE 754; nan stays nan.
    """
    with np.errstate(over="ignore"):
        single = np.atleast_1d(np.asarray(x, np.float32))
    bits = single.view(np.uint32)
    if np.asarray(x).dtype == np.float64:
        # Rounding twice could create a false tie. So where float32 is inexact, round to odd first: of the two float32
        # neighbours of x, take the one whose last bit is 1.
        exact = single.astype(np.float64)
        bits = bits - (np.abs(exact) > np.abs(x)).astype(np.uint32) | (exact != x).astype(np.uint32)
    upper = bits >> np.uint32(16)
    # 0x7FFF carries into the upper half if the lower half is above a tie; the last bit of the upper half breaks ties.
    carry = np.uint32(0x7FFF) + (upper & np.uint32(1)) if nearest else np.uint32(0)
    # nan keeps its sign and becomes quiet. Otherwise the carry could turn it into infinity.
    nan = np.isnan(single)
    rounded = (np.where(nan, np.uint32(0), bits) + carry) >> np.uint32(16)
    return np.where(nan, upper | np.uint32(0x40), rounded).astype(np.uint16).reshape(np.shape(x))

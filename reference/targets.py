"""Targets, checked at the edge like all other inputs: shape, type and range, named in the error.

Nothing behind this file looks at a target again before it is used as an index.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .inputs import integers
from .losses import IGNORE_INDEX
from .parameters import Array


def classes(name: str, values: Any, shape: tuple[int, ...], C: int) -> Array:
    """Integers of `shape` in [0, C), or -100. Raises TypeError or ValueError."""
    array = integers(name, values)
    if array.shape != shape and array.shape != (*shape, 1):
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    wrong = array[((array < 0) | (array >= C)) & (array != IGNORE_INDEX)]
    if wrong.size:
        raise ValueError(f"{name}: expected classes in [0, {C}), or {IGNORE_INDEX} to leave out, got {wrong[0]}")
    return array.reshape(shape)


def positions(name: str, values: Any, rows: int) -> Array:
    """Integers of shape (B,), or (B, 1) as transformers allows, with B = `rows`; of any size."""
    array = integers(name, values)
    if array.shape not in ((rows,), (rows, 1)):
        raise ValueError(f"{name}: expected shape (B,) = ({rows},), got {array.shape}")
    return array.reshape(rows)


def numbers(name: str, values: Any, shapes: tuple[tuple[int, ...], ...], dtype: Any) -> Array:
    """Finite numbers (integers and booleans too) in one of `shapes`, as `dtype`."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    if array.shape not in shapes:
        raise ValueError(f"{name}: expected shape {' or '.join(map(str, shapes))}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)][0]}")
    return array.astype(dtype)


def probabilities(name: str, values: Array) -> Array:
    """`values`, or a ValueError unless all are from 0 to 1."""
    wrong = values[(values < 0) | (values > 1)]
    if wrong.size:
        raise ValueError(f"{name}: expected numbers from 0 to 1, got {wrong[0]}")
    return values


def both_or_neither(start: Any, end: Any) -> bool:
    """Whether there are targets; ValueError if there is one of the two."""
    if (start is None) != (end is None):
        missing = "start_positions" if start is None else "end_positions"
        raise ValueError(f"{missing}: expected with the other of the pair, got None")
    return start is not None


def choices(options: dict[str, Any]) -> tuple[int, int]:
    """(B, C) of a multiple-choice call, from its ids (B, C, S) or vectors (B, C, S, E)."""
    for name, axes in (("input_ids", 3), ("inputs_embeds", 4)):
        if options.get(name) is not None:
            shape = np.shape(options[name])
            if len(shape) != axes or 0 in shape:
                letters = "(B, C, S)" if axes == 3 else "(B, C, S, E)"
                raise ValueError(f"{name}: expected shape {letters}, none of them 0, got {shape}")
            return shape[0], shape[1]
    raise ValueError("input_ids, inputs_embeds: expected exactly one of the two, got neither")


def merge_choices(name: str, values: Any, axes: tuple[int, ...], rows: tuple[int, int]) -> Array:
    """(B, C, ...) -> (B·C, ...), for arrays with a number of axes among `axes`."""
    array = np.asarray(values)
    if array.ndim not in axes or array.shape[:2] != rows:
        raise ValueError(f"{name}: expected shape (B, C, ...) = ({rows[0]}, {rows[1]}, ...), got {array.shape}")
    return array.reshape(-1, *array.shape[2:])

"""The targets of a call, validated: shape, type and range. Errors name the argument.

Targets are not validated again before they are used as indices. The checks are shared with `ernie_m.kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .array import Array
from .inputs import Shape, integers
from .losses import IGNORE_INDEX

# The number of axes of each input of a multiple-choice call; a mask may be (B, C, S) or (B, C, S, S).
CHOICE_AXES = {
    "input_ids": (3,),
    "attention_mask": (3, 4),
    "position_ids": (3,),
    "inputs_embeds": (4,),
    "token_type_ids": (3,),
}


def classes(name: str, values: Any, shape: Shape, C: int) -> Array:
    """`values` as integers of `shape`, each in [0, C) or -100. Raises TypeError or ValueError."""
    array = integers(name, values)
    check_shape(name, array.shape, shape, (*shape, 1))
    check_classes(name, array, C)
    return array.reshape(shape)


def positions(name: str, values: Any, rows: int) -> Array:
    """`values` as integers, not range-checked, of shape (B,), B = `rows`; (B, 1) is accepted, as in transformers."""
    array = integers(name, values)
    check_shape(name, array.shape, (rows,), (rows, 1))
    return array.reshape(rows)


def numbers(name: str, values: Any, shapes: tuple[Shape, ...], dtype: Any) -> Array:
    """`values` as finite numbers of `dtype`, in one of `shapes`; integers and booleans are accepted."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    check_shape(name, array.shape, *shapes)
    check_finite(name, array)
    return array.astype(dtype)


def probabilities(name: str, values: Array) -> Array:
    """`values`, unchanged. Raises ValueError unless all are in [0, 1]."""
    check_probabilities(name, values)
    return values


def merge_choices(call: dict[str, Any]) -> tuple[int, int]:
    """Fold the choices of a multiple-choice call into its rows, (B, C, ...) -> (B·C, ...), in place; return (B, C)."""
    batch = choices(call)
    for name, axes in CHOICE_AXES.items():
        if call.get(name) is not None:
            array = np.asarray(call[name])
            check_choices_shape(name, array.shape, axes, batch)
            call[name] = array.reshape(-1, *array.shape[2:])
    return batch


# Everything below is shared with `ernie_m.kernels.targets`.


def both_or_neither(start: Any, end: Any) -> bool:
    """Whether both are given. Raises ValueError if only one is."""
    if (start is None) != (end is None):
        missing, given = ("start", "end") if start is None else ("end", "start")
        raise ValueError(f"{missing}_positions: expected together with {given}_positions, got None")
    return start is not None


def choices(options: dict[str, Any]) -> tuple[int, int]:
    """(B, C) of a multiple-choice call, from its ids (B, C, S) or vectors (B, C, S, E)."""
    for name, letters in (("input_ids", "(B, C, S)"), ("inputs_embeds", "(B, C, S, E)")):
        if options.get(name) is not None:
            shape = tuple(np.shape(options[name]))
            if len(shape) != letters.count(",") + 1 or 0 in shape:
                raise ValueError(f"{name}: expected shape {letters} with no empty axis, got {shape}")
            return shape[0], shape[1]
    raise ValueError("input_ids, inputs_embeds: expected exactly one of the two, got neither")


def check_shape(name: str, shape: Shape, *allowed: Shape) -> None:
    """Raise ValueError, listing the allowed shapes, unless `shape` is one of them."""
    if tuple(shape) not in [tuple(one) for one in allowed]:
        # A trailing axis of 1 is allowed but not listed.
        listed = [tuple(one) for one in allowed if tuple(one) != (*allowed[0], 1)]
        raise ValueError(f"{name}: expected shape {' or '.join(map(str, listed))}, got {tuple(shape)}")


def check_choices_shape(name: str, shape: Shape, axes: tuple[int, ...], batch: tuple[int, int]) -> None:
    """Raise ValueError unless `shape` begins with (B, C) and its number of axes is in `axes`."""
    if len(shape) not in axes or tuple(shape[:2]) != batch:
        raise ValueError(f"{name}: expected shape (B, C, ...) = ({batch[0]}, {batch[1]}, ...), got {tuple(shape)}")


def check_classes(name: str, values: Array, C: int) -> None:
    """Raise ValueError, with the first offending value, unless all are in [0, C) or -100."""
    wrong = values[((values < 0) | (values >= C)) & (values != IGNORE_INDEX)]
    if wrong.size:
        raise ValueError(f"{name}: expected classes in [0, {C}), or {IGNORE_INDEX} to ignore, got {wrong[0]}")


def check_finite(name: str, values: Array) -> None:
    """Raise ValueError, with the first offending value, unless all are finite."""
    wrong = values[~np.isfinite(values)]
    if wrong.size:
        raise ValueError(f"{name}: expected finite numbers, got {wrong[0]}")


def check_weights(name: str, values: Array) -> None:
    """Raise ValueError, with the first offending value, if any is below 0."""
    wrong = values[values < 0]
    if wrong.size:
        raise ValueError(f"{name}: expected numbers of at least 0, got {wrong[0]}")


def check_probabilities(name: str, values: Array) -> None:
    """Raise ValueError, with the first offending value, unless all are in [0, 1]."""
    wrong = values[(values < 0) | (values > 1)]
    if wrong.size:
        raise ValueError(f"{name}: expected numbers from 0 to 1, got {wrong[0]}")

"""Targets, validated like all other inputs: type, shape and device always, values when `validate` is true.

Twin: reference/targets.py, which holds the checks and all messages.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ernie_m.reference import targets as shared
from ernie_m.reference.inputs import Shape
from ernie_m.reference.targets import both_or_neither as both_or_neither

from .inputs import integers, is_number, on_device
from .runtime.dtypes import widen


def classes(name: str, values: Any, shape: Shape, C: int, logits: Tensor, validate: bool) -> Tensor:
    """Integers of `shape` in [0, C), or -100. Raises TypeError or ValueError."""
    values = integers(name, values, logits)
    shared.check_shape(name, values.shape, shape, (*shape, 1))
    if validate:
        shared.check_classes(name, values.numpy(force=True), C)
    return values.reshape(shape)


def positions(name: str, values: Any, logits: Tensor) -> Tensor:
    """Integers, not range-checked, of shape (B,), or (B, 1) as transformers allows; `logits` has B rows."""
    values, rows = integers(name, values, logits), logits.shape[0]
    shared.check_shape(name, values.shape, (rows,), (rows, 1))
    return values.reshape(rows)


def numbers(name: str, values: Any, shapes: tuple[Shape, ...], logits: Tensor, validate: bool) -> Tensor:
    """Finite numbers, integers or booleans in one of `shapes`, converted to the dtype of `logits`."""
    on_device(name, values, logits)
    if not is_number(values):
        raise TypeError(f"{name}: expected numbers, got {values.dtype}")
    shared.check_shape(name, values.shape, *shapes)
    if validate and values.dtype.is_floating_point:
        shared.check_finite(name, widen(values).numpy(force=True))
    return values.to(logits.dtype)


def probabilities(name: str, values: Tensor, validate: bool) -> Tensor:
    """Return `values`. Raises ValueError unless all are in [0, 1]."""
    if validate:
        shared.check_probabilities(name, widen(values).numpy(force=True))
    return values


def weights(name: str, values: Any, shape: Shape, like: Tensor, validate: bool) -> None:
    """Raise TypeError or ValueError unless these are finite numbers of at least 0 in that shape."""
    numbers(name, values, (shape,), like, validate)
    if validate:
        shared.check_weights(name, values.numpy(force=True))


def merge_choices(call: dict[str, Any]) -> tuple[int, int]:
    """Fold the choices of a multiple-choice call into its rows, (B, C, ...) -> (B·C, ...), in place; return (B, C)."""
    for name in shared.CHOICE_AXES:
        if call.get(name) is not None and not isinstance(call[name], Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(call[name]).__name__}")
    batch = shared.choices(call)
    for name, axes in shared.CHOICE_AXES.items():
        if call.get(name) is not None:
            shared.check_choices_shape(name, call[name].shape, axes, batch)
            call[name] = call[name].flatten(0, 1)
    return batch

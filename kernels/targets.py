"""Targets, checked at the edge like all other inputs: type, shape and device always, values where they are looked at.

Twin: reference/targets.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ernie_m.reference.losses import IGNORE_INDEX
from ernie_m.reference.targets import both_or_neither as both_or_neither

from .inputs import integers, is_number, on_device


def classes(name: str, values: Any, shape: tuple[int, ...], C: int, logits: Tensor, look: bool) -> Tensor:
    """Integers of `shape` in [0, C), or -100. Raises TypeError or ValueError."""
    values = integers(name, values, logits)
    if values.shape != shape and values.shape != (*shape, 1):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(values.shape)}")
    if look:
        wrong = values[((values < 0) | (values >= C)) & (values != IGNORE_INDEX)]
        if wrong.numel():
            raise ValueError(
                f"{name}: expected classes in [0, {C}), or {IGNORE_INDEX} to leave out, got {wrong[0].item()}"
            )
    return values.reshape(shape)


def positions(name: str, values: Any, logits: Tensor) -> Tensor:
    """Integers of shape (B,), or (B, 1) as transformers allows, of any size; `logits` has B rows."""
    values, rows = integers(name, values, logits), logits.shape[0]
    if values.shape not in ((rows,), (rows, 1)):
        raise ValueError(f"{name}: expected shape (B,) = ({rows},), got {tuple(values.shape)}")
    return values.reshape(rows)


def numbers(name: str, values: Any, shapes: tuple[tuple[int, ...], ...], logits: Tensor, look: bool) -> Tensor:
    """Finite numbers (integers and booleans too) in one of `shapes`, in the dtype of `logits`."""
    on_device(name, values, logits)
    if not is_number(values):
        raise TypeError(f"{name}: expected numbers, got {values.dtype}")
    if values.shape not in shapes:
        expected = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(values.shape)}")
    if look and not bool(values.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got {values[~values.isfinite()][0].item()}")
    return values.to(logits.dtype)


def probabilities(name: str, values: Tensor, look: bool) -> Tensor:
    """`values`, or a ValueError unless all are from 0 to 1."""
    if look:
        wrong = values[(values < 0) | (values > 1)]
        if wrong.numel():
            raise ValueError(f"{name}: expected numbers from 0 to 1, got {wrong[0].item()}")
    return values


def choices(options: dict[str, Any]) -> tuple[int, int]:
    """(B, C) of a multiple-choice call, from its ids (B, C, S) or vectors (B, C, S, E)."""
    for name, axes in (("input_ids", 3), ("inputs_embeds", 4)):
        values = options.get(name)
        if values is not None:
            if not isinstance(values, Tensor):
                raise TypeError(f"{name}: expected a torch.Tensor, got {type(values).__name__}")
            if values.dim() != axes or values.numel() == 0:
                letters = "(B, C, S)" if axes == 3 else "(B, C, S, E)"
                raise ValueError(f"{name}: expected shape {letters}, none of them 0, got {tuple(values.shape)}")
            return values.shape[0], values.shape[1]
    raise ValueError("input_ids, inputs_embeds: expected exactly one of the two, got neither")


def merge_choices(name: str, values: Any, axes: tuple[int, ...], rows: tuple[int, int]) -> Tensor:
    """(B, C, ...) -> (B·C, ...), for tensors with a number of axes among `axes`."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(values).__name__}")
    if values.dim() not in axes or values.shape[:2] != rows:
        expected = f"(B, C, ...) = ({rows[0]}, {rows[1]}, ...)"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(values.shape)}")
    return values.flatten(0, 1)

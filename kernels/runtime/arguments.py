"""Argument checks that operations and models share: types, shapes, devices, and the ranges of ids.

They run once, at the public edge of an operation or a model; inner functions trust their arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ernie_m.reference import array

from .dtypes import TRITON_TYPES


def check_shape(name: str, x: Tensor, shape: tuple[int | None, ...], letters: str) -> None:
    """Raise ValueError unless `x` has that shape; None stands for any size."""
    fits = x.dim() == len(shape) and all(n is None or x.shape[i] == n for i, n in enumerate(shape))
    if not fits:
        sizes = ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape {letters} = ({sizes}), got {tuple(x.shape)}")


def check_floats(**tensors: Tensor) -> None:
    """Raise unless all are tensors of one floating-point dtype on one device; the first sets both."""
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in (*TRITON_TYPES, torch.float64):
            raise TypeError(f"{name}: expected float32, float16, bfloat16 or float64, got {x.dtype}")
        if x.dtype != first.dtype:
            raise TypeError(f"{name}: expected {first.dtype} like {first_name}, got {x.dtype}")
        check_device(name, x, first_name, first)


def check_integers(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.int32, torch.int64)) -> None:
    """Raise TypeError unless `x` is a tensor of one of these integer dtypes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {x.dtype}")


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both are on the same device."""
    if x.device != other.device:
        raise ValueError(f"{name}: expected a tensor on {other.device} like {other_name}, got one on {x.device}")


def check_range(name: str, values: Tensor, end: int, table: str) -> None:
    """As `reference.array.check_range`. Reads the values, so on a GPU the host waits for them."""
    array.check_range(name, values.numpy(force=True), end, table)

"""Argument checks that operations and models share: types, shapes, devices, and the ranges of ids.

They run once, at the public edge of an operation or a model; inner functions trust their arguments.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ernie_m.reference import array

from .dtypes import TRITON_TYPES


def check_tensor(name: str, x: Any) -> None:
    """Raise TypeError unless `x` is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {described(x)}")


def described(x: Any) -> str:
    """The type of a wrong argument, and its value if that is short."""
    value = repr(x)
    return f"{type(x).__name__} {value}" if len(value) <= 40 and "\n" not in value else type(x).__name__


def check_count(name: str, value: Any) -> Any:
    """Return an integer of at least 0, as int (or, in a graph that is being compiled, its symbol).

    Raises TypeError for anything but an integer (a boolean does not count), ValueError if it is negative.
    """
    if isinstance(value, np.integer):
        value = int(value)
    if torch.jit.is_tracing() and isinstance(value, Tensor):
        value = int(value)  # there, sizes are tensors
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an integer of at least 0, got {described(value)}")
    if value < 0:
        raise ValueError(f"{name}: expected an integer of at least 0, got {value}")
    return value


def check_eps(eps: Any) -> float:
    """Return the ε of a layer normalisation as float. Raises TypeError unless it is a number, ValueError unless it is
    finite and at least 0."""
    if isinstance(eps, (bool, np.bool_)) or not isinstance(eps, (int, float, np.integer, np.floating)):
        raise TypeError(f"eps: expected a number of at least 0, got {described(eps)}")
    eps = float(eps)
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite number of at least 0, got {eps}")
    return eps


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
        check_tensor(name, x)
        if x.dtype not in (*TRITON_TYPES, torch.float64):
            raise TypeError(f"{name}: expected float32, float16, bfloat16 or float64, got {x.dtype}")
        if x.dtype != first.dtype:
            raise TypeError(f"{name}: expected {first.dtype} like {first_name}, got {x.dtype}")
        check_device(name, x, first_name, first)


def check_integers(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.int32, torch.int64)) -> None:
    """Raise TypeError unless `x` is a tensor of one of these integer dtypes."""
    check_tensor(name, x)
    if x.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {x.dtype}")


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both are on the same device."""
    if x.device != other.device:
        raise ValueError(f"{name}: expected a tensor on {other.device} like {other_name}, got one on {x.device}")


def check_range(name: str, values: Tensor, end: int, table: str) -> None:
    """As `reference.array.check_range`. Reads the values, so on a GPU the host waits for them."""
    array.check_range(name, values.numpy(force=True), end, table)

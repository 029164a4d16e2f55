"""What every operation asks: may a Triton kernel run here, and is what the caller passed what it has to be?

Three ways to compute, chosen by what the tensors are and never by their values:

    the plain-torch form     where gradients are wanted (the kernels are forward only) and in float64
    the Triton kernel        on a GPU, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1)
    the plain-torch form     on a CPU without the interpreter, so that the room runs wherever torch does
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ._triton import HAS_TRITON
from .shipped import TRITON_TYPES

# Triton reads the variable when it is imported: what it was then is what counts, whatever happens to it later.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")


def runs_triton(x: Tensor) -> bool:
    """Whether a kernel can work on `x`."""
    return x.dtype in TRITON_TYPES and HAS_TRITON and (x.is_cuda or (INTERPRETED and x.device.type == "cpu"))


def wants_plain(*tensors: Tensor) -> bool:
    """Whether the plain form has to serve: gradients are enabled and one of `tensors` requires them, or float64."""
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return wants_gradient or tensors[0].dtype not in TRITON_TYPES


def checks_values(x: Tensor, validate: bool) -> bool:
    """Whether values are looked at: on a CPU always, on a GPU, where looking waits for it, if asked; never in a graph
    that is being compiled, which has no values yet."""
    return (validate or x.device.type == "cpu") and not torch.compiler.is_compiling()


def check_shape(name: str, x: Tensor, shape: tuple[int | None, ...], letters: str) -> None:
    """Raise ValueError unless `x` has that shape; None stands for any size."""
    fits = x.dim() == len(shape) and all(n is None or x.shape[i] == n for i, n in enumerate(shape))
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape {letters} = ({wanted}), got {tuple(x.shape)}")


def check_floats(**tensors: Tensor) -> None:
    """Raise unless all are tensors of one floating dtype on one device; the first sets both."""
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in (*TRITON_TYPES, torch.float64):
            raise TypeError(f"{name}: expected float32, float16, bfloat16 or float64, got {x.dtype}")
        if x.dtype != first.dtype:
            raise TypeError(f"{name}: expected {first.dtype} as {first_name}, got {x.dtype}")
        check_device(name, x, first_name, first)


def check_integers(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.int32, torch.int64)) -> None:
    """Raise TypeError unless `x` is a tensor of one of these integer dtypes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {x.dtype}")


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both are on one device."""
    if x.device != other.device:
        raise ValueError(f"{name}: expected a tensor on {other.device}, where {other_name} is, got one on {x.device}")


def check_range(name: str, values: Tensor, end: int, table: str) -> None:
    """Raise ValueError, naming the first offender and where it stands, unless every value is in [0, end)."""
    wrong = (values < 0) | (values >= end)
    if bool(wrong.any()):
        where = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: expected values in [0, {end}) for {table.format(end)}, got {int(values[tuple(where)])} at {where}"
        )

"""The dtypes that kernels support, the wider ones that they compute in, and those that a model can have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


# The dtypes that kernels support, and Triton's name for each.
TRITON_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# The same by name.
TORCH_DTYPES = {name_of(dtype): dtype for dtype in TRITON_TYPES}


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype for arithmetic on `x`: float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """`x` in its `wide_dtype`."""
    return x.to(wide_dtype(x))


def chosen_dtype(dtype: Any, torch_dtype: Any) -> torch.dtype | None:
    """The dtype that either argument names; None for the file's own."""
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ValueError(f"dtype, torch_dtype: expected one of the two, got {dtype!r} and {torch_dtype!r}")
    chosen = torch_dtype if dtype is None else dtype
    if chosen is None or chosen == "auto":
        return None
    by_name = getattr(torch, chosen.removeprefix("torch."), chosen) if isinstance(chosen, str) else chosen
    return float_dtype(by_name)


def float_dtype(dtype: Any) -> torch.dtype:
    """Return `dtype`; raise TypeError unless a model can have it."""
    allowed = (*TRITON_TYPES, torch.float64)
    if dtype not in allowed:
        raise TypeError(f"dtype: expected one of {', '.join(map(str, allowed))}, got {dtype!r}")
    return dtype

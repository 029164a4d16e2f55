"""The dtypes that kernels support, and the wider ones that they compute in."""

from __future__ import annotations

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

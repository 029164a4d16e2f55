"""Launching a kernel: on its tensors' device, with a grid that the device can count.

CUDA allows 2³¹ − 1 programs along axis x but only 65,535 along y and z, so whatever grows with a batch (tokens, rows,
sequences) is on x. Triton launches on the current device, which need not be the one that holds the tensors. Its
interpreter gets bfloat16 wrong, so it is repaired first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import interpreter
from .dispatch import INTERPRETED

# Programs along the axes x, y and z, by CUDA's programming guide, "Technical Specifications per Compute Capability".
GRID_LIMITS = (2**31 - 1, 65535, 65535)


def check_grid(grid: tuple[int, ...]) -> None:
    """Raise ValueError if a grid has more programs along an axis than CUDA allows."""
    if any(n > limit for n, limit in zip(grid, GRID_LIMITS, strict=False)):
        raise ValueError(f"grid: expected at most {GRID_LIMITS} programs along x, y and z, got {grid}; split the batch")


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, /, *arguments: Any, **constants: Any) -> None:
    """`kernel[grid](*arguments, **constants)` on the device of `like`; in the interpreter, on the CPU.

    All launches go through here. Raises ValueError for a grid that is too large.
    """
    check_grid(grid)
    if INTERPRETED:
        interpreter.install()
    with torch.cuda.device_of(like):
        kernel[grid](*arguments, **constants)

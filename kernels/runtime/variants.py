"""The block sizes, warps and stages that each kernel runs with on each GPU target.

There is no tuning at run time. Each kernel module picks its configuration with a small function of target, dtype and
size. The launcher calls that function, and the module's `variants(target)` lists its results, so that the compile
report and the gates examine the very kernels that run. `bench --sweep` tells, on a GPU, whether others are faster.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Configuration:
    """How a kernel is launched: block sizes, by the names of the kernel's constants; warps; pipeline stages."""

    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """What a launch passes besides the kernel's own arguments."""
        # Kernels rely on a·b + c becoming one instruction, which newer versions of Triton will do only on request.
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Variant:
    """One kernel as it runs on one target.

    `signature` has the Triton type of every non-constant argument ("*bf16", "i32", "fp32"), `constants` the values of
    the rest. `tile` is the number of elements that a program processes or, with `loop`, one step of its innermost loop:
    attention scores, rows to normalise, numbers of an elementwise kernel; 0 if that is not known. `aligned` names the
    arguments that are multiples of 16; None: all pointers.
    """

    operation: str
    dtype: str
    label: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    configuration: Configuration
    tile: int
    loop: bool = False
    aligned: tuple[str, ...] | None = None


@functools.lru_cache(maxsize=64)
def _target_of(index: int) -> str:
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(index)[0]
    return "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"


def target_of(device: torch.device) -> str:
    """The target whose configurations a device uses; on a CPU, in the interpreter, sm_90."""
    if device.type != "cuda":
        return "sm_90"
    return _target_of(torch.cuda.current_device() if device.index is None else device.index)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n; Triton requires such block sizes."""
    return 1 << max(n - 1, 0).bit_length()

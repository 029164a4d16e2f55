"""Which implementation an operation uses. The choice never depends on values:

the plain torch form     for gradients (the kernels are forward only) and in float64
the Triton kernel        on a GPU, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1)
the plain torch form     on a CPU without the interpreter, so that the package runs wherever torch does
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .dtypes import TRITON_TYPES
from .optional_triton import HAS_TRITON

# Triton reads the variable when it is imported, so only its value at that time counts.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")


def runs_triton(x: Tensor) -> bool:
    """Whether a kernel can run on `x`."""
    return x.dtype in TRITON_TYPES and HAS_TRITON and (x.is_cuda or (INTERPRETED and x.device.type == "cpu"))


def transformed() -> bool:
    """Whether `torch.func` transforms the function that is running, or forward-mode derivatives are taken.

    `requires_grad` does not tell, and an operation without a rule for it would silently give a derivative of 0.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def wants_plain(*tensors: Tensor) -> bool:
    """Whether to use the plain form: one of `tensors` needs a derivative, or is float64."""
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return wants_gradient or tensors[0].dtype not in TRITON_TYPES or transformed()


def should_validate(x: Tensor, validate: bool) -> bool:
    """Whether to validate values: always on a CPU; on a GPU only on request, because it synchronises.

    Never in a graph that is being compiled or in a function that `torch.func` transforms, which have no values yet.
    """
    return (validate or x.device.type == "cpu") and not torch.compiler.is_compiling() and not transformed()

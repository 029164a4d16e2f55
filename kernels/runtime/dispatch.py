"""Which implementation an operation uses. The choice never depends on values:

the plain torch form     in float64, under `torch.func`, for forward-mode derivatives, and for gradients of operations
                         whose kernels have no backward
the Triton kernel        on a GPU, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1)
the plain torch form     on a CPU without the interpreter
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from .dtypes import TRITON_TYPES
from .optional_triton import HAS_TRITON

# Triton reads the variable when it is imported, so only its value at that time counts.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")

# The modes under which operations are recorded, or only their shapes computed.
_KEYS = torch._C._TorchDispatchModeKey
_RECORDING = (_KEYS.FAKE, _KEYS.PROXY, _KEYS.FUNCTIONAL)


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


def without_values(*tensors: Any) -> bool:
    """Whether one of `tensors` has a shape but no values to read: on the meta device, fake, or recorded by `make_fx`.

    False in a graph that is being compiled, where sizes that depend on values have symbols.
    """
    if torch.compiler.is_compiling():
        return False
    recorded = any(torch._C._get_dispatch_mode(key) is not None for key in _RECORDING)
    return recorded or any(isinstance(x, Tensor) and (isinstance(x, FakeTensor) or x.is_meta) for x in tensors)


def exports_onnx() -> bool:
    """Whether a model is traced by `torch.onnx.export`, which knows torch's operations alone."""
    return (torch.jit.is_tracing() or torch.compiler.is_exporting()) and torch.onnx.is_in_onnx_export()


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`; the meta device has none."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def eager_on_cpu(x: Tensor) -> bool:
    """Whether `x` is on a CPU, in a function that is not being compiled, traced or transformed: its values can be read,
    and memory can be written."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed() or without_values(x)
    return x.device.type == "cpu" and not recorded


def wants_derivative(*tensors: Tensor) -> bool:
    """Whether one of `tensors` needs a derivative."""
    return (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)) or transformed()


def wants_plain(*tensors: Tensor, reads_values: bool = False, differentiable: bool = False) -> bool:
    """Whether to use the plain form: one of `tensors` needs a derivative, or no kernel runs on them.

    `differentiable`: the custom operation has a backward, so plain gradients need no plain form; transforms do.

    Without a kernel, calling a custom operation would only add its overhead, and hide the plain form from
    `torch.compile`; the first such call of a process also imports the whole compiler. But if the plain form
    `reads_values`, a graph needs the custom operation around it.
    """
    x = tensors[0]
    derivative = transformed() if differentiable else wants_derivative(*tensors)
    return derivative or not (runs_triton(x) or (reads_values and not eager_on_cpu(x)))


def should_validate(x: Tensor, validate: bool) -> bool:
    """Whether to validate values: always on a CPU; on a GPU only on request, because it synchronises.

    Never in a graph that is being compiled, in a function that `torch.func` transforms, or `without_values`.
    """
    wanted = validate or x.device.type == "cpu"
    return wanted and not (torch.compiler.is_compiling() or transformed() or without_values(x))

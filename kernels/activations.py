"""The activation functions that `hidden_act` can name, in plain torch. Half precision is computed in float32.

The exact GELU has its own kernel, in gelu.py, which is used when no gradient is needed.

Twin: reference/activations.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
EXACT_GELU = ("gelu", "gelu_python")


def _tanh_gelu(x: Tensor, scale: float) -> Tensor:
    """½x (1 + tanh(scale·(x + 0.044715 x³)))."""
    return 0.5 * x * (1.0 + torch.tanh(scale * (x + 0.044715 * x**3)))


def _gelu_new(x: Tensor) -> Tensor:
    return _tanh_gelu(x, math.sqrt(2.0 / math.pi))


def _laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_10": lambda x: F.gelu(x).clip(-10.0, 10.0),
    "gelu_accurate": _gelu_new,
    "gelu_fast": lambda x: _tanh_gelu(x, 0.7978845608),
    "gelu_new": _gelu_new,
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": _gelu_new,
    "laplace": _laplace,
    "leaky_relu": F.leaky_relu,
    "linear": lambda x: x,
    "mish": F.mish,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activate(name: str | Activation, x: Tensor) -> Tensor:  # (...) -> (...)
    """Apply the activation `name`: one of `ACTIVATIONS`, or a callable that takes `x` itself; else raise ValueError."""
    if callable(name):
        return name(x)
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected a callable or one of {', '.join(ACTIVATIONS)}, got {name!r}")
    wide = x if x.dtype == torch.float64 else x.float()
    return ACTIVATIONS[name](wide).to(x.dtype)

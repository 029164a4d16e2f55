"""The activation functions that `hidden_act` can name, in plain torch. Half precision is computed in float32.

All smooth ones come with their derivative (σ is the sigmoid, c is x clamped to ±1,000, where all of these have reached
their limits):

    x σ(s(x))      σ(s(c)) (1 + c s'(c) σ(−s(c)))        silu, quick_gelu, and the tanh form of GELU, as
                                                         ½ (1 + tanh(y)) = σ(2y)

Torch's formulas for them subtract nearly equal numbers for large |x|, and are nan at infinity, where they multiply it
by 0. Those with a kink (`relu`, `gelu_10`, ...) have torch's derivative: at nan, and on the kink, that of one side.

The exact GELU has its own kernel, in gelu.py, which is used when no gradient is needed.

Twin: reference/activations.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, sigmoid

from .gelu import plain_gelu
from .runtime.derivative import with_derivative

Activation = Callable[[Tensor], Tensor]
EXACT_GELU = ("gelu", "gelu_python")

# exp(-1000) is 0 in float64 too.
FAR = 1000.0
MU, SIGMA = 0.707107, 0.282095


def _near(x: Tensor) -> Tensor:
    return x.clamp(-FAR, FAR)


def _gated(s: Activation, slope: Activation) -> Activation:
    """x · σ(s(x)), where `slope` is the derivative of s. Where the gate is 0 the product is 0, even for x = -inf."""

    def value(x: Tensor) -> Tensor:
        return x.clamp(min=torch.finfo(x.dtype).min) * sigmoid(s(_near(x)))

    def derivative(x: Tensor) -> Tensor:
        c = _near(x)
        return sigmoid(s(c)) * (1.0 + c * slope(c) * sigmoid(-s(c)))

    return with_derivative(value, derivative)


def _gated_by(scale: float) -> Activation:
    """x · σ(scale · x)."""
    return _gated(lambda x: scale * x, lambda x: torch.full_like(x, scale))


def _tanh_gelu(scale: float) -> Activation:
    """½x (1 + tanh(scale·(x + 0.044715 x³)))."""
    return _gated(lambda x: 2 * scale * (x + 0.044715 * x * x * x), lambda x: 2 * scale * (1.0 + 0.134145 * x * x))


def _mish(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).min) * F.softplus(_near(x)).tanh()


def _mish_derivative(x: Tensor) -> Tensor:
    c = _near(x)
    gate = F.softplus(c).tanh()
    return gate + c * (1.0 - gate * gate) * sigmoid(c)


def _laplace(x: Tensor) -> Tensor:
    """½ (1 + erf((x − μ)/(σ√2))) = ½ erfc(−(x − μ)/(σ√2))."""
    return 0.5 * torch.erfc((MU - x) / (SIGMA * math.sqrt(2.0)))


def _laplace_derivative(x: Tensor) -> Tensor:
    y = (_near(x) - MU) / SIGMA
    return torch.exp(-0.5 * y * y) / (SIGMA * math.sqrt(2.0 * math.pi))


def _sigmoid_derivative(x: Tensor) -> Tensor:
    return sigmoid(x) * sigmoid(-x)


_silu = _gated_by(1.0)
_gelu_new = _tanh_gelu(math.sqrt(2.0 / math.pi))

ACTIVATIONS: dict[str, Activation] = {
    "gelu": plain_gelu,
    "gelu_10": lambda x: plain_gelu(x).clip(-10.0, 10.0),
    "gelu_accurate": _gelu_new,
    "gelu_fast": _tanh_gelu(0.7978845608),
    "gelu_new": _gelu_new,
    "gelu_python": plain_gelu,
    "gelu_pytorch_tanh": _gelu_new,
    "laplace": with_derivative(_laplace, _laplace_derivative),
    "leaky_relu": F.leaky_relu,
    "linear": lambda x: x,
    "mish": with_derivative(_mish, _mish_derivative),
    "quick_gelu": _gated_by(1.702),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "sigmoid": with_derivative(sigmoid, _sigmoid_derivative),
    "silu": _silu,
    "swish": _silu,
    "tanh": with_derivative(torch.tanh, lambda x: 4.0 * _sigmoid_derivative(2.0 * x)),
}


def activate(name: str | Activation, x: Tensor) -> Tensor:  # (...) -> (...)
    """Apply the activation `name`: one of `ACTIVATIONS`, or a callable that takes `x` itself; else raise ValueError."""
    if callable(name):
        return name(x)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"activation: expected a callable or one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name](x)

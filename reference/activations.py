"""The activation functions that `hidden_act` can name, all elementwise: float16, float32 or float64 in, the same out.

For large |x| they return the limit, without a warning: if an intermediate overflows, such as exp(-x) in
1 / (1 + exp(-x)), the inf leads to that limit. float16 is computed in float32 and rounded.

`gelu` and `gelu_python` are the exact form. `gelu_new`, `gelu_accurate` and `gelu_pytorch_tanh` are one function;
`gelu_fast` is the same with √(2/π) truncated to ten digits.

Source: transformers 4.40.2, `activations.py`, `ACT2CLS`. Derivatives: `slopes.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from .array import Array, floating
from .erf import erf
from .gelu import gelu

Activation = Callable[[Array], Array]


def elementwise(function: Activation) -> Activation:
    """Validate the dtype, compute float16 in float32, and let overflow become inf without a warning.

    `function` receives at least one axis: NumPy 1 promotes a 0-d float32 times a Python float to float64.
    """

    @functools.wraps(function)
    def checked(x: Array) -> Array:
        x = floating("x", x)
        wide = np.atleast_1d(x.astype(np.float32) if x.dtype == np.float16 else x)
        with np.errstate(over="ignore"):
            return function(wide).astype(x.dtype, copy=False).reshape(x.shape)

    return checked


@elementwise
def sigmoid(x: Array) -> Array:  # (...) -> (...)
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + np.exp(-x))


@elementwise
def softplus(x: Array) -> Array:  # (...) -> (...)
    """log(1 + exp(x)), written so that the exponential cannot overflow."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


@elementwise
def silu(x: Array) -> Array:  # (...) -> (...)
    """x · sigmoid(x), also called swish."""
    return _gated(x, sigmoid(x))


@elementwise
def mish(x: Array) -> Array:  # (...) -> (...)
    """x · tanh(softplus(x))."""
    return _gated(x, np.tanh(softplus(x)))


@elementwise
def quick_gelu(x: Array) -> Array:  # (...) -> (...)
    """x · sigmoid(1.702 x), a cheap approximation of GELU."""
    return _gated(x, sigmoid(1.702 * x))


@elementwise
def gelu_new(x: Array) -> Array:  # (...) -> (...)
    """½x (1 + tanh(√(2/π) (x + 0.044715 x³))), the form in the original BERT and GPT code."""
    return _tanh_gelu(x, math.sqrt(2.0 / math.pi))


@elementwise
def gelu_fast(x: Array) -> Array:  # (...) -> (...)
    """`gelu_new` with √(2/π) truncated to ten digits."""
    return _tanh_gelu(x, 0.7978845608)


@elementwise
def gelu_10(x: Array) -> Array:  # (...) -> (...)
    """The exact GELU, clipped to [-10, 10]."""
    return np.clip(gelu(x), -10.0, 10.0)


@elementwise
def laplace(x: Array) -> Array:  # (...) -> (...)
    """½ (1 + erf((x - μ) / (σ√2))) with μ = 0.707107 and σ = 0.282095, from MEGA (arXiv:2209.10655)."""
    return 0.5 * (1.0 + erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


@elementwise
def relu(x: Array) -> Array:  # (...) -> (...)
    """max(x, 0)."""
    return np.maximum(x, 0.0)


@elementwise
def relu2(x: Array) -> Array:  # (...) -> (...)
    """max(x, 0)²."""
    return np.square(relu(x))


@elementwise
def relu6(x: Array) -> Array:  # (...) -> (...)
    """x clipped to [0, 6]."""
    return np.clip(x, 0.0, 6.0)


@elementwise
def leaky_relu(x: Array) -> Array:  # (...) -> (...)
    """x, or 0.01 x where x is negative."""
    return np.where(x >= 0, x, 0.01 * x)


@elementwise
def tanh(x: Array) -> Array:  # (...) -> (...)
    """The hyperbolic tangent."""
    return np.tanh(x)


@elementwise
def linear(x: Array) -> Array:  # (...) -> (...)
    """x, copied, because callers may overwrite what an activation returns."""
    return x.copy()


def _gated(x: Array, gate: Array) -> Array:
    """x · gate; where the gate is 0 the product is 0, even for x = -inf."""
    return np.maximum(x, -np.finfo(x.dtype).max) * gate


def _tanh_gelu(x: Array, scale: float) -> Array:
    """Uses ½(1 + tanh(y)) = sigmoid(2y), which is accurate for negative y too."""
    return _gated(x, sigmoid(2.0 * scale * (x + 0.044715 * x * x * x)))


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_new,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_new,
    "gelu_python": gelu,
    "gelu_pytorch_tanh": gelu_new,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "linear": linear,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu2,
    "relu6": relu6,
    "sigmoid": sigmoid,
    "silu": silu,
    "swish": silu,
    "tanh": tanh,
}


def activation(name: str | Activation) -> Activation:
    """Return the function called `name` in `ACTIVATIONS`, or `name` itself if callable; otherwise raise ValueError."""
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected a callable or one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]

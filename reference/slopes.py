"""The derivative of every activation that `hidden_act` can name: what a cotangent is multiplied by.

    dx = dy · f′(x)

Where f has a kink, f′ is torch's: 0 for relu at 0 and for relu6 at 0 and 6; 0.01 for leaky_relu at 0. For large |x|
every derivative here is its limit, 0 or 1 (0.01 for leaky_relu and x < 0), except relu2's for x > 0, which is 2x.

In the derivatives of x·σ(x) and its relatives, 1 − σ(x) is written σ(−x), which does not cancel for large x.
Source: torch's autograd for the values at kinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .activations import ACTIVATIONS, Activation, elementwise, sigmoid, softplus
from .array import Array, floating
from .gelu import gelu, gelu_slope

# Far beyond this every gate is 0 or 1, and powers of it are still finite.
FAR = 1e3


@elementwise
def sigmoid_slope(x: Array) -> Array:  # (...) -> (...)
    """σ(x) σ(−x)."""
    return sigmoid(x) * sigmoid(-x)


@elementwise
def silu_slope(x: Array) -> Array:  # (...) -> (...)
    """σ(x) (1 + x σ(−x))."""
    x = np.clip(x, -FAR, FAR)
    return sigmoid(x) * (1.0 + x * sigmoid(-x))


@elementwise
def quick_gelu_slope(x: Array) -> Array:  # (...) -> (...)
    """That of silu, at 1.702 x: x σ(ax) = silu(ax) / a."""
    return silu_slope(1.702 * x)


@elementwise
def mish_slope(x: Array) -> Array:  # (...) -> (...)
    """t + x (1 − t²) σ(x) with t = tanh(softplus(x)), because softplus′ = σ."""
    x = np.clip(x, -FAR, FAR)
    t = np.tanh(softplus(x))
    return t + x * (1.0 - t) * (1.0 + t) * sigmoid(x)


@elementwise
def gelu_new_slope(x: Array) -> Array:  # (...) -> (...)
    """The derivative of x σ(2y), y = √(2/π) (x + 0.044715 x³)."""
    return _tanh_gelu_slope(x, math.sqrt(2.0 / math.pi))


@elementwise
def gelu_fast_slope(x: Array) -> Array:  # (...) -> (...)
    """`gelu_new_slope` with √(2/π) truncated to ten digits."""
    return _tanh_gelu_slope(x, 0.7978845608)


def _tanh_gelu_slope(x: Array, scale: float) -> Array:
    """σ(2y) (1 + 2 x y′ σ(−2y)), y′ = scale · (1 + 3 · 0.044715 x²)."""
    x = np.clip(x, -FAR, FAR)
    y = scale * (x + 0.044715 * x * x * x)
    dy = scale * (1.0 + 3.0 * 0.044715 * x * x)
    return sigmoid(2.0 * y) * (1.0 + 2.0 * x * dy * sigmoid(-2.0 * y))


@elementwise
def gelu_10_slope(x: Array) -> Array:  # (...) -> (...)
    """That of GELU, 0 where its value is clipped."""
    return np.where(gelu(x) > 10.0, 0.0, gelu_slope(x)).astype(x.dtype, copy=False)


@elementwise
def laplace_slope(x: Array) -> Array:  # (...) -> (...)
    """The density of a normal distribution: exp(−z²/2) / (σ√(2π)), z = (x − μ) / σ."""
    z = (x - 0.707107) / 0.282095
    return np.exp(-0.5 * z * z) / (0.282095 * math.sqrt(2.0 * math.pi))


@elementwise
def relu_slope(x: Array) -> Array:  # (...) -> (...)
    """1 where x is positive, else 0; nan for nan."""
    return np.where(np.isnan(x), x, x > 0).astype(x.dtype, copy=False)


@elementwise
def relu2_slope(x: Array) -> Array:  # (...) -> (...)
    """2 max(x, 0)."""
    return 2.0 * np.maximum(x, 0.0)


@elementwise
def relu6_slope(x: Array) -> Array:  # (...) -> (...)
    """1 between 0 and 6, else 0; nan for nan."""
    return np.where(np.isnan(x), x, (x > 0) & (x < 6)).astype(x.dtype, copy=False)


@elementwise
def leaky_relu_slope(x: Array) -> Array:  # (...) -> (...)
    """1 where x is positive, else 0.01; nan for nan."""
    return np.where(np.isnan(x), x, np.where(x > 0, 1.0, 0.01)).astype(x.dtype, copy=False)


@elementwise
def tanh_slope(x: Array) -> Array:  # (...) -> (...)
    """1 − tanh²(x)."""
    t = np.tanh(x)
    return (1.0 - t) * (1.0 + t)


@elementwise
def linear_slope(x: Array) -> Array:  # (...) -> (...)
    """1."""
    return np.ones_like(x)


SLOPES: dict[str, Activation] = {
    "gelu": gelu_slope,
    "gelu_10": gelu_10_slope,
    "gelu_accurate": gelu_new_slope,
    "gelu_fast": gelu_fast_slope,
    "gelu_new": gelu_new_slope,
    "gelu_python": gelu_slope,
    "gelu_pytorch_tanh": gelu_new_slope,
    "laplace": laplace_slope,
    "leaky_relu": leaky_relu_slope,
    "linear": linear_slope,
    "mish": mish_slope,
    "quick_gelu": quick_gelu_slope,
    "relu": relu_slope,
    "relu2": relu2_slope,
    "relu6": relu6_slope,
    "sigmoid": sigmoid_slope,
    "silu": silu_slope,
    "swish": silu_slope,
    "tanh": tanh_slope,
}


def activation_vjp(name: str | Activation) -> Callable[[Array, Array], Array]:
    """Return the function (dy, x) -> dx of the activation called `name`.

    Raises ValueError if there is none of that name, or if a callable was passed that is not one of `ACTIVATIONS`: the
    derivative of any other function is not known.
    """
    if callable(name):
        names = [known for known, function in ACTIVATIONS.items() if function is name]
        if not names:
            raise ValueError(f"activation: expected one with a known derivative ({', '.join(SLOPES)}), got {name!r}")
        name = names[0]
    if name not in SLOPES:
        raise ValueError(f"activation: expected one of {', '.join(SLOPES)}, got {name!r}")
    slope = SLOPES[name]

    def vjp(dy: Array, x: Array) -> Array:  # (...), (...) -> (...)
        x = floating("x", x)
        if x.dtype == np.float16:
            return vjp(dy.astype(np.float32), x.astype(np.float32)).astype(np.float16)
        dx = slope(x)
        dx *= dy
        return dx

    return vjp

"""GELU, the Gaussian error linear unit, in its exact form.

    gelu(x) = x Φ(x) = max(x, 0) - |x| Φ(-|x|)

The second form needs only the tail of the normal distribution, which `erf.normal_tail` computes with a small relative
error. x·½(1 + erf(x/√2)) would subtract nearly equal numbers for negative x, and return 0 below about -5.5 in float32.

    gelu′(x) = Φ(x) + x φ(x),   φ(x) = exp(-x²/2) / √(2π), the density of the normal distribution

Left out: the tanh approximation, which is a different function (`activations.py`).
Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415, section 2.
"""

from __future__ import annotations

import math

import numpy as np

from .array import Array, floating, sum_of_tokens
from .erf import TAIL_END, gaussian, in_pieces, normal_tail


def gelu(x: Array) -> Array:  # (...) -> (...)
    """x Φ(x), elementwise: float16, float32 or float64 in, the same dtype out; x is unchanged.

    The error relative to |gelu(x)|, with u = 2⁻²⁴ or 2⁻⁵³, unless Φ(-|x|) is subnormal:

        float64   at most 14 u                           (down to x = -37.5)
        float32   at most (10 + x²/2) u for x < 0        (down to x = -12.9; as if x were off by half an ulp)
                  at most 6 u for x > 0

    It comes from Φ(-|x|) (`normal_tail`), a multiplication and, for x > 0, a subtraction in which the tail is at most
    half of x. For lower x the result passes through the subnormal numbers to 0. gelu(-inf) = -0.0, gelu(inf) = inf,
    gelu(nan) = nan; the result has the sign of x, 0 included. float16 is computed in float32 and rounded. Raises
    TypeError for other dtypes.
    """
    x = floating("x", x)
    if x.dtype == np.float16:
        return gelu(x.astype(np.float32)).astype(np.float16)
    return in_pieces(_gelu, x)


def _gelu(x: Array, out: Array) -> None:
    a = np.abs(x)
    # Rarely true, and the test costs a fifth of `minimum`; `not <=` also catches nan.
    if not a.max() <= TAIL_END:
        np.minimum(a, TAIL_END, out=a)
    tail = normal_tail(a)
    tail *= a
    # `fmax` maps nan to 0 (subtracting the tail restores it) and is several times faster than `maximum`.
    np.fmax(x, 0.0, out=out)
    out -= tail
    # Subtracting loses the sign of a zero.
    np.copysign(out, x, out=out)


def bias_gelu(x: Array, bias: Array) -> Array:  # (..., F), (F,) -> (..., F)
    """gelu(x + bias): the activation after a linear map whose bias has not been added yet."""
    if np.shape(bias) != np.shape(x)[-1:]:
        raise ValueError(f"bias: expected shape (F,) = {np.shape(x)[-1:]}, got {np.shape(bias)}")
    return gelu(x + bias)


def gelu_slope(x: Array) -> Array:  # (...) -> (...)
    """gelu′(x) = Φ(x) + x φ(x), elementwise; dtypes as in `gelu`.

    The error is within a few units of rounding of Φ(x) + |x| φ(x). Near x = -0.75 the two terms cancel: gelu has its
    minimum there. gelu′(-inf) = 0, gelu′(inf) = 1, gelu′(nan) = nan.
    """
    x = floating("x", x)
    if x.dtype == np.float16:
        return gelu_slope(x.astype(np.float32)).astype(np.float16)
    return in_pieces(_slope, x)


def _slope(x: Array, out: Array) -> None:
    a = np.minimum(np.abs(x), TAIL_END)
    tail = normal_tail(a)
    density = gaussian(a)
    density *= 1.0 / math.sqrt(2.0 * math.pi)
    # For positive x, with Φ(x) = 1 - tail, this is 1 - (tail - a φ); for negative x it is tail - a φ.
    density *= a
    tail -= density
    np.copyto(out, np.where(x > 0, 1.0 - tail, tail))


def gelu_vjp(dy: Array, x: Array) -> Array:  # (...), (...) -> (...)
    """dx = dy · gelu′(x)."""
    if np.asarray(x).dtype == np.float16:
        return gelu_vjp(dy.astype(np.float32), x.astype(np.float32)).astype(np.float16)
    dx = gelu_slope(x)
    dx *= dy
    return dx


def bias_gelu_vjp(dy: Array, x: Array, bias: Array) -> tuple[Array, Array]:  # (..., F) x 2, (F,) -> (..., F), (F,)
    """dx = dy · gelu′(x + bias). The bias is added to every token, so its gradient is the sum of dx over tokens."""
    dx = gelu_vjp(dy, x + bias)
    return dx, sum_of_tokens(dx)

"""GELU, the Gaussian error linear unit, in its exact form.

    gelu(x) = x Φ(x) = max(x, 0) - |x| Φ(-|x|)

The second form needs only the tail of the normal distribution, which `erf.normal_tail` computes with a small relative
error. x·½(1 + erf(x/√2)) would subtract nearly equal numbers for negative x, and return 0 below about -5.5 in float32.

Left out: the tanh approximation, which is a different function (`activations.py`).
Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415, section 2.
"""

from __future__ import annotations

import numpy as np

from .array import Array, floating
from .erf import TAIL_END, in_pieces, normal_tail


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

"""The error function, which NumPy lacks, built on the tail of the normal distribution.

    erf(x) = 2/√π ∫₀ˣ exp(-t²) dt            Φ(-a) = ½ erfc(a/√2) = ½ (1 - erf(a/√2))

|x| < 1.1: the Maclaurin series of erf. |x| >= 1.1: erf(x) = ±(1 - 2 Φ(-√2 |x|)), where the tail is

    Φ(-a) = exp(-a²/2) · M(a),    M(a) = ½ exp(a²/2) erfc(a/√2) ≈ P(a) / Q(a),    a >= 0.

M decreases slowly and smoothly, from ½ towards 1/(a√(2π)), so a ratio of two polynomials approximates it closely; the
exponential covers the many orders of magnitude. All coefficients are positive, so no sum in P or Q cancels.
Left out: complex arguments. Source: W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp.
23 (1969), for the idea of a rational function times an exponential; the coefficients are this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .array import Array, floating

# P and Q, highest power first. P/Q equals M at the Chebyshev points of (a - k)/(a + k) for a in [0, top]. The
# coefficients solve a linear system; tests/reference/test_erf.py solves it with 60 digits and compares.
# float32: k = 3, top = 14.5, |P/Q - M| <= 7.4e-9 M. float64: k = 4, top = 39, |P/Q - M| <= 1.8e-18 M.
# Beyond `top` the exponential is 0 in that dtype.
RATIO = {
    np.dtype(np.float32): (
        (0.39894697206296811, 3.9509682222581053, 17.851380208311499, 42.763682039537996, 48.862314670753913),
        (1.0, 9.9042437431897575, 45.732003660838707, 117.29448250988632, 163.50036786520859, 97.724628946778589),
    ),
    np.dtype(np.float64): (
        (
            *(0.39894228040152636, 12.475196070036272, 191.31292931993303, 1872.2897564530977, 12860.862299377222),
            *(64550.353369413766, 239466.74349324367, 649266.73513523817, 1236964.3427637472, 1509488.0612826202),
            913248.30989094767,
        ),
        (
            *(1.0, 31.270679200773443, 480.55039792995611, 4724.4051214090117, 32714.951456771106),
            *(166434.33452594993, 631542.39674632935, 1780200.7998981886, 3641106.45939901, 5132258.6755795519),
            *(4476309.5758478363, 1826496.6197818953),
        ),
    ),
}

# Beyond this, Φ(-a) and a·Φ(-a) are 0 in float32 (from 14.3 on) and in float64 (from 38.6 on).
TAIL_END = 40.0

# Adding and subtracting 1.5·2³² rounds a float64 to a multiple of 2⁻²⁰; a number below 64 keeps 26 bits.
ROUNDER = 1.5 * 2.0**32

# Below this the series is more accurate, above it 1 - 2Φ.
NEAR = 1.1

# erf(x)/x - 1 in powers of x²: 2/√π Σ (-1)ⁿ x²ⁿ / (n! (2n + 1)), highest first. The 1 is separate because
# x + x·(small) rounds better than x·(1 + small); the last entry is 2/√π - 1. At |x| = 1.1 the first term left
# out is 3e-20.
SERIES = [2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(20, 0, -1)]
SERIES.append(0.12837916709551257)

# Elements processed at a time: few enough that the arrays in use (256 KiB each in float32) stay in cache, enough that
# the overhead of forty NumPy calls per piece is small.
PIECE = 65536


def erf(x: Array) -> Array:  # (...) -> (...)
    """The error function, elementwise: float16, float32 or float64 in, the same dtype out; x is unchanged.

    float64 is within 2 ulp: near |x| = 1.1 the terms of the series begin to cancel, and 2Φ, which is 0.12 there,
    contributes an eighth of its error of about 10 u. float32 and float16 are computed in float64 and rounded once.
    erf(±inf) = ±1, erf(±0) = ±0, erf(nan) = nan. Raises TypeError for other dtypes.
    """
    return in_pieces(_erf, floating("x", x))


def _erf(x: Array, out: Array) -> None:
    x = x.astype(np.float64)
    a = np.minimum(np.abs(x), TAIL_END / 2)
    small = np.where(a < NEAR, x, 0.0)
    near = small + small * polynomial(SERIES, small * small)
    far = np.copysign(1.0 - 2.0 * normal_tail(math.sqrt(2.0) * a), x)
    out[...] = np.where(a < NEAR, near, far)


def normal_tail(a: Array) -> Array:  # (...) -> (...)
    """Φ(-a), the probability that a normal variable is below -a: 0 <= a <= TAIL_END, float32 or float64; nan for nan.

    Unless the result is subnormal, its relative error, with u = 2⁻²⁴ or 2⁻⁵³, is that of `gaussian` plus at most 10 u:
    the terms of P and Q are positive, so rounding errors do not grow, and partly cancel in P/Q.
    """
    numerator, denominator = RATIO[a.dtype]
    tail = gaussian(a)
    tail *= polynomial(numerator, a)
    tail /= polynomial(denominator, a)
    return tail


def gaussian(a: Array) -> Array:  # (...) -> (...)
    """exp(-a²/2) for 0 <= a <= TAIL_END. The relative error is at most (5 + a²/2) u in float32, 5 u in float64.

    Rounding a² shifts the exponent by up to u·a²/2, no more than an error of half an ulp in a would. float32 accepts
    that. float64, against which everything else is measured, adds what the rounding lost: with h = a rounded to
    26 bits, a² = h² + (a - h)(a + h), where h² is exact.
    """
    value = a * a
    value *= -0.5
    np.exp(value, out=value)
    if a.dtype == np.float64:
        h = (a + ROUNDER) - ROUNDER
        lost = (h * h - a * a) + (a - h) * (a + h)
        value -= 0.5 * lost * value
    return value


def polynomial(coefficients: Sequence[float], x: Array) -> Array:  # (...) -> (...)
    """c₀xⁿ + c₁xⁿ⁻¹ + ... + cₙ by Horner's rule: at least two coefficients, highest power first."""
    value = x * coefficients[0]
    for coefficient in coefficients[1:-1]:
        value += coefficient
        value *= x
    value += coefficients[-1]
    return value


def in_pieces(function: Callable[[Array, Array], None], x: Array) -> Array:
    """Call `function(piece of x, same piece of the result)` for every piece, so that its temporaries stay in cache.

    Single-threaded: a second thread gains nothing right after a matrix product, while BLAS's own threads still spin.
    """
    out = np.empty(x.shape, x.dtype)
    flat, flat_out = x.reshape(-1), out.reshape(-1)
    for start in range(0, x.size, PIECE):
        function(flat[start : start + PIECE], flat_out[start : start + PIECE])
    return out

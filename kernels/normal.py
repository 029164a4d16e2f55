"""The normal distribution: its tail as kernels compute it, and both of its functions in plain torch.

    Φ(−a) = exp(−a²/2) · M(a),   M(a) = ½ − a N(t),   N(t) = t (q₀t⁶ + q₁t⁵ + ... + q₆),   t = 1/(1 + a/4),   a >= 0

M is smooth and falls from ½ to 1/(a√(2π)), so a polynomial in t fits it for all a. The tail itself is computed, not the
rest to 1, so it keeps its digits, where ½(1 + erf) has none left at z = -5.5.

Twin: reference/erf.py. Source: M. Abramowitz, I. Stegun, "Handbook of Mathematical Functions", 7.1.26, for a Gaussian
times a polynomial in 1/(1 + pa); the form of M and the coefficients are this project's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .runtime.optional_triton import tl, triton

# q₀ ... q₆, such that |M̃/M − 1| <= 0.73 · 2⁻²⁴ (1 + a²/2) for a in [0, 13.25], beyond which exp(−a²/2) < 2⁻¹²⁶. The
# weight is what one rounding of the exponent costs. M multiplies 2^(EXPONENT a²), so it absorbs the error of that
# float32 constant, −½ log₂e. tests/kernels/test_gelu.py repeats the minimax fit and compares.
COEFFICIENTS = (-0.024422681, 0.06832016, -0.013207925, 0.07312477, 0.06924277, 0.10093815, 0.12494643)
EXPONENT = -0.7213475108146667
_Q = tl.constexpr(COEFFICIENTS)
_EXPONENT = tl.constexpr(EXPONENT)

# √½ = HIGH + LOW, where HIGH has 26 bits. Adding and subtracting ROUNDER keeps 26 bits of a float64 below 64 too, so
# products with the two upper parts are exact.
ROOT = math.sqrt(0.5)
HIGH, LOW = 0.7071067839860916, -2.799544089368687e-09
ROUNDER = 1.5 * 2.0**32


@triton.jit
def scaled_tail(a):  # (...) float32 in [0, 16] -> (...) x 2
    """M(a) and exp(−a²/2), whose product is Φ(−a)."""
    # Squaring a reciprocal square root takes six fewer instructions than a division.
    root = tl.math.rsqrt(1.0 + 0.25 * a)
    t = root * root
    q = _Q[0] * t + _Q[1]
    for k in tl.static_range(2, 7):
        q = q * t + _Q[k]
    return 0.5 - a * t * q, tl.math.exp2(a * a * _EXPONENT)


def normal_cdf(z: Tensor) -> Tensor:  # (...) -> (...)
    """Φ(z) = ½ erfc(−z/√2) for |z| <= TAIL_END, in float32 for all z, with a small relative error in the tail too.

    Rounding −z/√2 to w costs a relative error of up to z² u in the tail. float32 accepts it, as the kernel does.
    float64 corrects it: erfc(w + δ) ≈ erfc(w) (1 − 2wδ) for large w.
    """
    w = -ROOT * z
    if z.dtype != torch.float64:
        return torch.erfc(w).mul_(0.5)
    tail = 0.5 * torch.erfc(w)
    upper = (z + ROUNDER) - ROUNDER
    delta = -(upper * HIGH + w) - (upper * LOW + (z - upper) * ROOT)
    return tail * (1.0 - 2.0 * w.clamp(min=0.0) * delta)


def normal_density(z: Tensor) -> Tensor:  # (...) -> (...)
    """φ(z) = exp(−z²/2)/√(2π) for |z| <= TAIL_END. In float64, z² is split so that its rounding is not magnified."""
    if z.dtype != torch.float64:
        return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    upper = (z + ROUNDER) - ROUNDER
    rest = torch.exp(-0.5 * (z - upper) * (z + upper))
    return torch.exp(-0.5 * upper * upper) * rest / math.sqrt(2 * math.pi)

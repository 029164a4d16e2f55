"""The truth for each operation, and how far a good computation may be from it: bounds that are derived, not picked.

The truth, `exact`, is the twin in `ernie_m.reference` in float64, on inputs that are already rounded to the format.
A good computation widens its inputs to float32, works there, and rounds once to the format. For each number it gives

    |got − exact| <= u |exact| + c        u: the format's unit roundoff;  c: what float32 may be off, times (1 + u)

With ε = 2⁻²⁴, float32's unit roundoff: an addition or a product is off by at most ε of its result, a sum of n numbers
by at most (chain of additions) · ε · Σ|numbers|; a GPU's exp2, rsqrt and division by at most 4 ε (2⁻²², the figure in
the PTX manual for `ex2.approx` and `rsqrt.approx`). Errors of float64 are 2²⁹ times smaller and are left out.
Float32 may also flush what is below 2⁻¹²⁶ to 0. Where an intermediate leaves float32's range, c is infinite.

These hold for any finite input, so they judge inputs of any size and kind. `judge.py` has two more, for random data.
Source: N. Higham, "Accuracy and Stability of Numerical Algorithms", chapters 3 (dot products) and 4 (sums).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_m import reference
from ernie_m.reference.array import Array

from .formats import Format

EPS = 2.0**-24
FLUSHED = 2.0**-126
# Sums of squares and of products stay below float32's largest number with a margin for their own error.
SAFE = 2.0**126
APPROXIMATE = 4 * EPS
# The largest slope of gelu, at x = √2.
GELU_SLOPE = 1.13


@dataclass(frozen=True)
class Expected:
    """What a computation should give: `exact`, and `limit` on the error of each number.

    `roundings` to the format on the way and `terms` in its longest sum are what the statistical bounds depend on.
    """

    format: Format
    exact: Array
    limit: Array
    roundings: int = 1
    terms: int = 1


def expected(format: Format, exact: Array, error: Array, large: Any = 0.0, **counts: int) -> Expected:
    """Add the last rounding to an error in float32: u |exact + error|, half of the smallest number where those are
    subnormal, and what float32 flushes. `large`: the largest intermediate that float32 has to hold."""
    limit = format.u * np.abs(exact) + (1 + format.u) * error + format.smallest / 2 + FLUSHED
    return Expected(format, exact, np.where(large > SAFE, np.inf, limit), **counts)


def gelu(format: Format, x: Array) -> Expected:  # (...)
    """x Φ(x), where Φ is computed as ½(1 + erf(x/√2)) or so: off by up to 8 ε, and that much of |x| in the product.

    Of the 8, erf may have 4 (libm has 1, a short polynomial 3), ½(1 + erf) has 1, the product 1; the two roundings of
    x/√2 are ones of the argument, 2ε |x| φ(x) <= ½ε. Nothing is asked of the tail beyond that: 1 + erf has lost it.
    """
    return expected(format, reference.gelu(x), 8 * EPS * np.abs(x))


def bias_gelu(format: Format, x: Array, bias: Array) -> Expected:  # (..., F), (F,)
    """The same after one addition, whose error ε |x + bias| is passed on by gelu's slope."""
    z = x + bias
    return expected(format, reference.gelu(z), (8 + GELU_SLOPE) * EPS * np.abs(z), np.abs(z))


def chain(n: int) -> int:
    """How many additions a number passes through in a sum of n: a row of blocks of √n, and the blocks one by one.

    One running total through thousands of numbers has longer chains, and is not a good sum.
    """
    return min(n - 1, 2 * math.ceil(math.sqrt(n)))


def _normalised(format: Format, z: Array, dz: Array, gamma: Array, beta: Array, eps: float, exact: Array) -> Expected:
    """LayerNorm of z, of which float32 knows each number to within dz.

    Mean: off by dμ <= mean(dz) + (chain + 4) ε mean|z|; this is where a large mean costs digits.
    Centred, d = z − mean(z): off by dμ, the same for all, and by r = dz + ε |d|, which differs.
    Variance: 2 mean(d r) + (dμ + rms r)²; dμ enters squared only, as Σd = 0. And (chain + 6) ε of itself.
    1/√(variance + ε_LN): the two ends of that interval, and 4 ε. Whatever the mean was, a number that is divided by
    the root mean square of its row cannot exceed √E.
    Times γ plus β: 3 roundings more.
    """
    E = z.shape[-1]
    additions = chain(E)
    scaling = 0 if E & (E - 1) == 0 else 4  # division by a power of two is exact
    size = np.abs(z).mean(-1, keepdims=True)
    d = z - z.mean(-1, keepdims=True)
    mean_error = dz.mean(-1, keepdims=True) + (additions + scaling) * EPS * (size + dz.mean(-1, keepdims=True))
    r = dz + EPS * (np.abs(d) + mean_error)
    spread = np.sqrt(np.square(d).mean(-1, keepdims=True))
    rms = np.sqrt(np.square(r).mean(-1, keepdims=True))
    variance = np.square(spread) + eps
    change = 2 * spread * rms + np.square(mean_error + rms)
    change = change * (1 + (additions + 6) * EPS) + (additions + 6) * EPS * variance
    low = np.maximum(variance - change, np.finfo(np.float64).tiny)
    factor = np.sqrt(variance / low) * (1 + APPROXIMATE) - 1
    y = np.abs(d) / np.sqrt(variance)
    error = (mean_error + r) / np.sqrt(variance) * (1 + factor) + y * factor
    error = np.minimum(error, y + math.sqrt(E) * (1 + (additions + 8) * EPS)) * np.abs(gamma)
    error = error * (1 + 3 * EPS) + 3 * EPS * np.abs(y * gamma) + EPS * np.abs(beta) + FLUSHED * np.abs(gamma)
    return expected(format, exact, error, E * np.square(np.abs(z)).max(-1, keepdims=True), terms=E)


def layer_norm(format: Format, x: Array, gamma: Array, beta: Array, eps: float) -> Expected:  # (..., E), (E,) x 2
    """LayerNorm of numbers that are known exactly; see `_normalised`."""
    return _normalised(format, x, np.zeros_like(x), gamma, beta, eps, reference.layer_norm(x, gamma, beta, eps))


def add_layer_norm(
    format: Format, x: Array, bias: Array, residual: Array, gamma: Array, beta: Array, eps: float
) -> Expected:  # (..., E), (E,), (..., E), (E,), (E,)
    """The same after two additions in any order, each off by ε of a partial sum; what cancels keeps that error."""
    dz = 2 * EPS * (np.abs(x) + np.abs(bias) + np.abs(residual))
    exact = reference.add_layer_norm(x, bias, residual, gamma, beta, eps)
    return _normalised(format, x + bias + residual, dz, gamma, beta, eps, exact)


def embed(
    format: Format,
    input_ids: Array,
    position_ids: Array,
    word: Array,
    position: Array,
    gamma: Array,
    beta: Array,
    eps: float,
) -> Expected:  # (T,) x 2, (V, E), (P, E), (E,) x 2 -> (T, E)
    """LayerNorm after one addition."""
    z = word[input_ids] + position[position_ids + 2]
    exact = reference.embed(input_ids, position_ids, word, position, gamma, beta, eps)
    return _normalised(format, z, EPS * np.abs(z), gamma, beta, eps, exact)


def softmax_error(scores: Array, delta: Array, probs: Array) -> Array:  # (..., S) x 3 -> (..., S)
    """w with |Σ_j p̃_j a_j − Σ_j p_j a_j| <= Σ_j w_j |a_j − Σ p a| for any a, if each score is off by at most delta.

    Softmax does not change when all scores do alike. So the error of the row's largest score, t, can be moved to the
    others, d_j <= delta_j + delta_t and d_t = 0, and  p̃_j = p_j e^{d_j} / Σ_k p_k e^{d_k}  gives
    w_j = p_j (e^{d_j} − 1) / Σ_k p_k e^{−d_k}: nothing where one key has all the weight, however large the scores.
    """
    top = scores.argmax(-1)[..., None]
    d = delta + np.take_along_axis(delta, top, -1)
    np.put_along_axis(d, top, 0.0, -1)
    # In logarithms where e^d is large: p may be 0 in float64 while p e^d is not.
    largest = scores.max(-1, keepdims=True)
    logs = scores - largest - np.log(np.exp(scores - largest).sum(-1, keepdims=True))
    w = np.where(d < 1, probs * np.expm1(np.minimum(d, 1)), np.exp(np.minimum(logs + d, 300)))
    return np.asarray(w / (probs * np.exp(-d)).sum(-1, keepdims=True))


def softmax(format: Format, scores: Array) -> Expected:  # (..., S)
    """e^{s − max} / Σ: the exponent, a difference, times log₂e, is off by 3 ε |s − max|, and exp2 by 4 ε.

    Then S additions and a division, and what float32 flushes.
    """
    probs = reference.softmax(scores)
    delta = 3 * EPS * (scores.max(-1, keepdims=True) - scores) + APPROXIMATE
    w = softmax_error(scores, delta, probs)
    # Number j is the mean of a = 1 at j, 0 elsewhere: |a − p_j| is 1 − p_j there and p_j elsewhere.
    error = w * (1 - probs) + probs * (w.sum(-1, keepdims=True) - w)
    S = scores.shape[-1]
    error = np.minimum(error, 1.0) + (S * EPS + APPROXIMATE) * probs + 2 * FLUSHED
    return expected(format, probs, error, terms=S)

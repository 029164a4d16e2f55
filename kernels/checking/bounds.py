"""The exact result of each operation, and how far a good computation may be from it: derived bounds, not picked ones.

`exact` comes from the twin in `ernie_m.reference`, run in float64 on inputs that are already rounded to the format.
A good computation widens its inputs to float32, works there, and rounds once to the format. Each of its results has

    |got − exact| <= u |exact| + c        u: the format's unit roundoff;  c: the error in float32, times (1 + u)

With ε = 2⁻²⁴, float32's unit roundoff, the error of an addition or a product is at most ε times its result; that of a
sum of n numbers at most (chain of additions) · ε · Σ|numbers|; that of exp2, rsqrt and division on a GPU at most 4 ε
(2⁻²², the figure in the PTX manual for `ex2.approx` and `rsqrt.approx`). Float64's errors, 2²⁹ times smaller, are
ignored. Float32 may also flush numbers below 2⁻¹²⁶ to 0. Where an intermediate leaves float32's range, c is infinite.

These bounds hold for every finite input. `verdicts.py` has two more, for random data.
Source: N. Higham, "Accuracy and Stability of Numerical Algorithms", chapters 3 (dot products) and 4 (sums).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_m import reference
from ernie_m.reference.array import Array

from .formats import Format

EPS = 2.0**-24
FLUSHED = 2.0**-126
# Sums of squares or products up to here are safely below float32's largest number, errors included.
SAFE = 2.0**126
APPROXIMATE = 4 * EPS
# The largest slope of GELU, at x = √2.
GELU_SLOPE = 1.13


@dataclass(frozen=True)
class Part:
    """One of several results: its name and shape, and what its statistical bounds depend on (see `Expected`)."""

    name: str
    shape: tuple[int, ...]
    roundings: int
    terms: int


@dataclass(frozen=True)
class Expected:
    """The `exact` result of a computation, and the `limit` on the error of each number.

    The statistical bounds depend on the number of `roundings` to the format and of `terms` in the longest sum. Several
    results (`several`) stand one after the other in flat arrays, and `parts` says how long each is.
    """

    format: Format
    exact: Array
    limit: Array
    roundings: int = 1
    terms: int = 1
    parts: tuple[Part, ...] = ()

    def each(self) -> Iterator[tuple[str, slice, Expected]]:
        """Each result by name, with its place in the flat arrays; the only one has no name, and is not flat."""
        if not self.parts:
            yield "", slice(None), self
        start = 0
        for part in self.parts:
            place = slice(start, start + math.prod(part.shape))
            exact, limit = (x[place].reshape(part.shape) for x in (self.exact, self.limit))
            yield part.name, place, Expected(self.format, exact, limit, part.roundings, part.terms)
            start = place.stop


def several(**results: Expected) -> Expected:
    """Several results of one computation, by name and in order."""
    parts = tuple(Part(name, x.exact.shape, x.roundings, x.terms) for name, x in results.items())
    exact, limit = (np.concatenate([getattr(x, name).ravel() for x in results.values()]) for name in ("exact", "limit"))
    return Expected(next(iter(results.values())).format, exact, limit, parts=parts)


def expected(
    format: Format, exact: Array, error: Array, large: Any = 0.0, roundings: int = 1, terms: int = 1
) -> Expected:
    """Add the last rounding to a float32 error: u |exact + error|, half the smallest number for subnormal results, and
    what float32 flushes. `large`: the largest intermediate that float32 has to hold."""
    limit = format.u * np.abs(exact) + (1 + format.u) * error + format.smallest / 2 + FLUSHED
    return Expected(format, exact, np.where(large > SAFE, np.inf, limit), roundings, terms)


def gelu(format: Format, x: Array) -> Expected:  # (...)
    """x Φ(x), where Φ, computed for instance as ½(1 + erf(x/√2)), may be off by 8 ε, and the product by 8 ε |x|.

    Of these 8, erf may use 4 (libm needs 1, a short polynomial 3), ½(1 + erf) 1 and the product 1; the two roundings
    of x/√2 change the argument, hence Φ by 2ε |x| φ(x) <= ½ε. The tail need not be better: 1 + erf has lost it.
    """
    return expected(format, reference.gelu(x), 8 * EPS * np.abs(x))


def bias_gelu(format: Format, x: Array, bias: Array) -> Expected:  # (..., F), (F,)
    """GELU after an addition, with error ε |x + bias|, which GELU multiplies by its slope."""
    z = x + bias
    return expected(format, reference.gelu(z), (8 + GELU_SLOPE) * EPS * np.abs(z), np.abs(z))


def chain(n: int) -> int:
    """The longest chain of additions in a good sum of n numbers: within a block of √n, then over the blocks.

    A single running total over thousands of numbers has a longer chain, and is not a good sum.
    """
    return min(n - 1, 2 * math.ceil(math.sqrt(n)))


def _normalised(format: Format, z: Array, dz: Array, gamma: Array, beta: Array, eps: float, exact: Array) -> Expected:
    """LayerNorm of z, where each number in float32 is off by at most dz.

    Mean: off by dμ <= mean(dz) + (chain + 4) ε mean|z|; this is where a large mean costs digits.
    Centred, d = z − mean(z): off by dμ, the same for all numbers, and by r = dz + ε |d|, which varies.
    Variance: off by 2 mean(d r) + (dμ + rms r)²; dμ only enters squared, as Σd = 0. Also by (chain + 6) ε of itself.
    1/√(variance + ε_LN): taken at the lower end of that interval, plus 4 ε. Whatever the mean, a number divided by
    the root mean square of its row cannot exceed √E.
    Times γ plus β: 3 more roundings.
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
    """LayerNorm of exact numbers; see `_normalised`."""
    return _normalised(format, x, np.zeros_like(x), gamma, beta, eps, reference.layer_norm(x, gamma, beta, eps))


def add_layer_norm(
    format: Format, x: Array, bias: Array, residual: Array, gamma: Array, beta: Array, eps: float
) -> Expected:  # (..., E), (E,), (..., E), (E,), (E,)
    """LayerNorm after two additions in any order, each off by ε times a partial sum, even if the terms cancel."""
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

    Softmax does not change when all scores shift by the same amount. So the error of the row maximum, t, can be moved
    to the others: d_j <= delta_j + delta_t and d_t = 0. From  p̃_j = p_j e^{d_j} / Σ_k p_k e^{d_k}  follows
    w_j = p_j (e^{d_j} − 1) / Σ_k p_k e^{−d_k}, which is 0 if one key has all the weight, however large the scores.
    """
    top = scores.argmax(-1)[..., None]
    d = delta + np.take_along_axis(delta, top, -1)
    np.put_along_axis(d, top, 0.0, -1)
    # Where e^d is large, use logarithms: p may be 0 in float64 while p e^d is not.
    largest = scores.max(-1, keepdims=True)
    logs = scores - largest - np.log(np.exp(scores - largest).sum(-1, keepdims=True))
    w = np.where(d < 1, probs * np.expm1(np.minimum(d, 1)), np.exp(np.minimum(logs + d, 300)))
    return np.asarray(w / (probs * np.exp(-d)).sum(-1, keepdims=True))


def softmax(format: Format, scores: Array) -> Expected:  # (..., S)
    """e^{s − max} / Σ: the exponent, a difference times log₂e, is off by 3 ε |s − max|, and exp2 by 4 ε.

    S additions, a division and flushing in float32 follow. A probability of -inf is 0, without error.
    """
    probs = reference.softmax(scores)
    depth = np.where(np.isneginf(scores), 0.0, scores.max(-1, keepdims=True) - scores)
    delta = 3 * EPS * depth + APPROXIMATE
    w = softmax_error(scores, delta, probs)
    # p_j is the mean of an a that is 1 at j and 0 elsewhere: |a − p_j| is 1 − p_j at j and p_j elsewhere.
    error = w * (1 - probs) + probs * (w.sum(-1, keepdims=True) - w)
    S = scores.shape[-1]
    error = np.minimum(error, 1.0) + (S * EPS + APPROXIMATE) * probs + 2 * FLUSHED
    return expected(format, probs, error, terms=S)

"""The exact gradients of each operation with a backward kernel, and bounds on their errors, derived as in `bounds`.

A good backward computes in float32 from its inputs, like a good forward, and rounds each gradient once. A gradient that
is a sum over tokens is a sum of numbers that are not rounded first: with a good chain of additions (`chain`), each term
off by what the term may be off by,

    |got − Σ a| <= Σ error(a) + chain ε Σ |a|
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ernie_m.reference.array import Array
from ernie_m.reference.dropout import dropout
from ernie_m.reference.dropout import dropout_vjp as exact_dropout_vjp
from ernie_m.reference.dropped_layer_norm import dropped_layer_norm_vjp as exact_dropped_layer_norm_vjp
from ernie_m.reference.embedding import POSITION_OFFSET, sum_by_row
from ernie_m.reference.embedding import embed_vjp as exact_embed_vjp
from ernie_m.reference.gelu import bias_gelu_vjp as exact_bias_gelu_vjp
from ernie_m.reference.layer_norm import add_layer_norm_vjp as exact_add_layer_norm_vjp
from ernie_m.reference.layer_norm import layer_norm_vjp

from .bounds import APPROXIMATE, EPS, FLUSHED, Expected, chain, expected, several
from .formats import Format


def summed(format: Format, exact: Array, terms: Array, error: Array, large: Any = 0.0) -> Expected:
    """The sum of `terms`, (N, E), over N, if each is off by `error`."""
    N = len(terms)
    size = np.abs(terms).sum(0)
    off = error.sum(0) + chain(N) * EPS * (size + error.sum(0))
    return expected(format, exact, off, np.maximum(size, large), terms=max(N, 1))


def dropout_vjp(format: Format, dy: Array, p: float, seed: int, tokens: Array) -> Expected:  # (N, E), (N,)
    """What is kept is multiplied by 1/(1 − p), a factor that is itself rounded, or divided; what is dropped is 0."""
    exact = exact_dropout_vjp(dy, p, seed, tokens)
    return expected(format, exact, 2 * EPS * np.abs(exact), np.abs(exact))


def bias_gelu_vjp(format: Format, dy: Array, x: Array, bias: Array) -> Expected:  # (..., F) x 2, (F,)
    """dy · gelu′(z), gelu′(z) = Φ(z) + z φ(z), z = x + bias.

    Φ may be off by 8 ε, as in `bounds.gelu`; z φ(z) by (7 + z²) ε of itself: two roundings of the exponent z²/2, 4 ε
    for the exponential and 3 products. The rounding of z, ε |z|, changes gelu′ by gelu″(z) = (2 − z²) φ(z) times as
    much. The sum, and then the product with dy, round once more.
    """
    z = x + bias
    dx, dbias = exact_bias_gelu_vjp(dy, x, bias)
    square = np.square(z)
    density = np.abs(z) * np.exp(-0.5 * square) / math.sqrt(2.0 * math.pi)
    slope_error = 8 * EPS + (7 + square) * EPS * density + EPS * np.abs(2 - square) * density
    error = np.abs(dy) * (slope_error + 2 * FLUSHED) + 2 * EPS * np.abs(dx)
    large = np.maximum(np.abs(dy), np.abs(z))
    found = expected(format, dx, error, large)
    rows = (dx.reshape(-1, dx.shape[-1]), error.reshape(-1, dx.shape[-1]))
    worst = large.reshape(-1, dx.shape[-1]).max(0, initial=0.0)
    return several(dx=found, dbias=summed(format, dbias, *rows, worst))


def _layer_norm_vjp(
    format: Format, dy: Array, z: Array, dz: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array, dict[str, Expected]]:
    """The gradient of z, whose numbers in float32 are off by at most dz: exact, error, and the largest intermediate.
    Also what is expected of γ's and β's gradients.

    With n = (z − mean)/s, off by dn as in `bounds._normalised`, and g = dy γ:

        dγ = Σ dy n             a term is off by |dy| dn, and a rounding
        mean(g), mean(g n)      off by (chain + 6) ε of the mean magnitude, and mean(|g| dn)
        dx = (g − mean(g) − n mean(g n)) / s     each of the three terms is rounded up to three times; s is off by the
                                                 root of the variance's interval, whose lower end is at least ε_LN
    """
    E = z.shape[-1]
    steps = chain(E) + 6

    def mean(values: Array) -> Array:
        return np.asarray(values.mean(-1, keepdims=True))

    d = z - mean(z)
    mean_error = mean(dz) + steps * EPS * (mean(np.abs(z)) + mean(dz))
    r = dz + EPS * (np.abs(d) + mean_error)
    spread, rms = np.sqrt(mean(np.square(d))), np.sqrt(mean(np.square(r)))
    variance = np.square(spread) + eps
    change = 2 * spread * rms + np.square(mean_error + rms)
    change = change * (1 + steps * EPS) + steps * EPS * variance
    factor = np.sqrt(variance / np.maximum(variance - change, eps * (1 - 4 * EPS))) * (1 + APPROXIMATE) - 1
    s = np.sqrt(variance)
    n = d / s
    dn = (mean_error + r) / s * (1 + factor) + np.abs(n) * (factor + 2 * EPS)
    dn = np.minimum(dn, np.abs(n) + math.sqrt(E) * (1 + steps * EPS))
    dx, dgamma, dbeta = layer_norm_vjp(dy, z, gamma, eps)
    g = dy * gamma
    along = mean(g * n)
    first = steps * EPS * mean(np.abs(g))
    second = mean(np.abs(g) * dn) * (1 + steps * EPS) + steps * EPS * mean(np.abs(g * n))
    inner = first + np.abs(n) * second + dn * (np.abs(along) + second)
    inner = inner + 3 * EPS * (np.abs(g) + np.abs(mean(g)) + np.abs(n * along)) + 3 * FLUSHED * (1 + np.abs(gamma))
    error = inner / s * (1 + factor) + np.abs(dx) * (factor + 2 * EPS)
    most = np.abs(g).max(-1, keepdims=True) * (1 + math.sqrt(E)) / np.minimum(s, 1)
    large = E * np.maximum(np.square(z).max(-1, keepdims=True), most)
    flat = (-1, E)
    terms, term_error = dy * n, np.abs(dy) * (dn + 2 * EPS * np.abs(n)) + FLUSHED
    worst = large.max(initial=0.0)
    affine = {
        "dgamma": summed(format, dgamma, terms.reshape(flat), term_error.reshape(flat), worst),
        "dbeta": summed(format, dbeta, dy.reshape(flat), np.zeros_like(dy).reshape(flat)),
    }
    return dx, error, large, affine


def add_layer_norm_vjp(
    format: Format, dy: Array, x: Array, bias: Array, residual: Array, gamma: Array, eps: float
) -> Expected:  # (..., E) x 2, (E,), (..., E), (E,)
    """The sum may be off by 2 ε of its terms, in any order; the bias has the sum of dx."""
    dz = 2 * EPS * (np.abs(x) + np.abs(bias) + np.abs(residual))
    dx, error, large, affine = _layer_norm_vjp(format, dy, x + bias + residual, dz, gamma, eps)
    exact = exact_add_layer_norm_vjp(dy, x, bias, residual, gamma, eps)
    found = expected(format, dx, error, large, terms=dx.shape[-1])
    flat = (-1, dx.shape[-1])
    dbias = summed(format, exact[1], dx.reshape(flat), error.reshape(flat), large.max(initial=0.0))
    return several(dx=found, dbias=dbias, dresidual=found, **affine)


def dropped_layer_norm_vjp(
    format: Format,
    dy: Array,
    x: Array,
    bias: Array,
    residual: Array,
    gamma: Array,
    eps: float,
    p: float,
    seed: int,
    tokens: Array,
) -> Expected:  # (N, E) x 2, (E,), (N, E), (E,), (N,)
    """What is kept of x + bias is rounded once as a sum, and twice more as in `dropout_vjp`; adding the residual rounds
    the result. What is dropped is 0, and has no error; so is its dx. What is kept of dx is rounded twice more than
    the gradient of the sum. The bias has the sum of dx."""
    kept = dropout(x + bias, p, seed, tokens)
    z = kept + residual
    dz = EPS * (3 * np.abs(kept) + np.abs(z))
    dv, error, large, affine = _layer_norm_vjp(format, dy, z, dz, gamma, eps)
    dx, dbias, *_ = exact_dropped_layer_norm_vjp(dy, x, bias, residual, gamma, eps, p, seed, tokens)
    large = np.broadcast_to(large, dx.shape)
    rounded = error + 2 * EPS * (np.abs(dv) + error)
    dx_error, dx_large = (dropout(values, p, seed, tokens) for values in (rounded, large))
    return several(
        dx=expected(format, dx, dx_error, dx_large, terms=dx.shape[-1]),
        dbias=summed(format, dbias, dx, dx_error, dx_large.max(initial=0.0)),
        dresidual=expected(format, dv, error, large, terms=dx.shape[-1]),
        **affine,
    )


def embed_vjp(
    format: Format,
    dy: Array,
    input_ids: Array,
    position_ids: Array,
    word: Array,
    position: Array,
    gamma: Array,
    eps: float,
) -> Expected:  # (T, E), (T,) x 2, (V, E), (P, E), (E,)
    """Each row of a table gets the sum over the tokens that read it, by one rounding to float32 more."""
    rows = position_ids + POSITION_OFFSET
    z = word[input_ids] + position[rows]
    d, error, large, affine = _layer_norm_vjp(format, dy, z, EPS * np.abs(z), gamma, eps)
    d_word, d_position, _, _ = exact_embed_vjp(dy, input_ids, position_ids, word, position, gamma, eps)
    error = error + EPS * (np.abs(d) + error)

    def table(exact: Array, ids: Array, like: Array) -> Expected:
        counts = np.bincount(ids.ravel(), minlength=len(like))
        additions = np.array([chain(max(int(n), 1)) for n in counts])[:, None]
        off = sum_by_row(error, ids, like)
        size = sum_by_row(np.abs(d), ids, like)
        worst = np.zeros((len(like), 1))
        np.maximum.at(worst, ids.ravel(), large.reshape(-1, 1))
        limit = off + additions * EPS * (size + off)
        return expected(format, exact, limit, np.maximum(size, worst), terms=max(like.shape[-1], int(counts.max())))

    return several(dword=table(d_word, input_ids, word), dposition=table(d_position, rows, position), **affine)

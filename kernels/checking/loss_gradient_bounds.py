"""Error bounds for the gradients of a linear map and a cross-entropy together, as in `bounds.py`.

A good computation does not keep all logits. It rounds a part of them to the format, turns them into their own gradient
in place, rounded again, and multiplies that twice. With A = |h||W|ᵀ + |b| and s = d_loss / n:

    z = h Wᵀ + b        off by e = 2(E + 1) ε A, a product whose additions may truncate, and by u (|z| + e)
    p = softmax(z)      off by what softmax makes of that (`bounds.softmax_error`); then, in float32, by p (e^r − 1),
                        where r is the error of z − lse: ε (3 |z − lse| + |lse| + 4 (lse − max) + 3 Σ p |z − max|
                        + chain + 16). Whatever the errors, p is between 0 and 1
    dz = (p − y) s      off by |s| e_p, by 4 ε |dz|, and by u |dz| for the format
    dh = dz W           off by e_dz |W|, by 2V ε |dz||W|, and by its rounding
    dW = dzᵀ h          off by e_dzᵀ |h|, by 2N ε |dz|ᵀ|h|, and by two roundings: rows may be computed in parts, whose
                        products are rounded to the format and added in float32: u |dz|ᵀ|h|, however many there are
    db = Σ dz           off by Σ e_dz, and by (chain + 2) ε Σ |dz|

In half precision the rounding of z counts most: where a logit is 100, bfloat16 cannot tell it from 100.2.

Where a logit may be past the format's range, its row has no bound, and nor do dW and db, which add up all rows. Where a
number of dz may be, its row's dh and its word's dW and db have none; nor has a number of dW where the product of a part
may be, |dz|ᵀ|h|. A row without a label is not computed.
"""

from __future__ import annotations

import numpy as np

from ernie_m import reference
from ernie_m.reference.array import Array
from ernie_m.reference.losses import IGNORE_INDEX

from .bounds import EPS, FLUSHED, Expected, chain, expected, several, softmax_error
from .formats import Format


def linear_cross_entropy_vjp(
    format: Format, d_loss: Array, hidden: Array, weight: Array, bias: Array, labels: Array
) -> Expected:  # (), (N, E), (V, E), (V,), (N,) -> (N, E), (V, E), (V,)
    """The gradients of the hidden states, the table and the bias."""
    exact = reference.linear_cross_entropy_vjp(d_loss, hidden, weight, bias, labels)
    rows = labels != IGNORE_INDEX
    own, sizes = hidden[rows], (np.abs(hidden[rows]), np.abs(weight))
    (N, E), V = own.shape, len(weight)
    errors = [np.zeros_like(x) for x in exact]
    large = 0.0
    if N:
        dz, error, out = _logit_gradients(format, d_loss, own, weight, bias, labels[rows])
        size = np.abs(dz) + error
        errors[0][rows] = (error + 2 * V * EPS * size) @ sizes[1]
        part = size.T @ sizes[0]
        errors[1] = error.T @ sizes[0] + (2 * N * EPS + format.u) * part + N * format.smallest / 2
        errors[1][part >= format.overflow] = np.inf
        errors[2] = error.sum(0) + (chain(N) + 2) * EPS * size.sum(0)
        over = size >= format.overflow
        errors[0][np.flatnonzero(rows)[over.any(1) | out]] = np.inf
        for found in errors[1:]:
            found[over.any(0) | out.any()] = np.inf
        largest = max(1.0, *(float(np.abs(x).max(initial=0.0)) for x in (own, weight, bias)))
        large = max(largest**2 * (E + 1), float(size.max()) * largest * max(N, V))
    return several(
        d_hidden=expected(format, exact[0], errors[0], large, roundings=ROUNDINGS, terms=V + E),
        d_weight=expected(format, exact[1], errors[1], large, roundings=ROUNDINGS, terms=N + E),
        d_bias=expected(format, exact[2], errors[2], large, roundings=ROUNDINGS, terms=N + E),
    )


# For averages: of the logits, their gradient, and the result.
ROUNDINGS = 3


def _logit_gradients(
    format: Format, d_loss: Array, hidden: Array, weight: Array, bias: Array, labels: Array
) -> tuple[Array, Array, Array]:  # (), (N, E), (V, E), (V,), (N,) -> (N, V) x 2, (N,)
    """Of rows with a label: the gradient of the logits, what it may be off by, and where logits may leave the range."""
    (N, E), V, u = hidden.shape, len(weight), format.u
    z = hidden @ weight.T + bias
    e = 2 * (E + 1) * EPS * (np.abs(hidden) @ np.abs(weight).T + np.abs(bias))
    out = (np.abs(z) + e >= format.overflow).any(1)
    delta = e + u * (np.abs(z) + e) + format.smallest / 2 + FLUSHED
    p = reference.softmax(z)
    w = softmax_error(z, delta, p)
    e_p = np.minimum(w * (1 - p) + p * (w.sum(-1, keepdims=True) - w), 1.0)
    # In float32, from the rounded logits.
    top, most = z.max(-1, keepdims=True), delta.max(-1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(-1, keepdims=True))
    size = np.minimum(p + e_p, 1.0)
    mean = (size * (top - z + 2 * most)).sum(-1, keepdims=True)
    r = 3 * (lse - z + 2 * most) + np.abs(lse) + most + 4 * (lse - top) + 3 * mean + chain(V) + 16
    e_p = np.minimum(e_p + size * np.expm1(np.minimum(EPS * r, 300.0)), 1 + 16 * EPS) + FLUSHED
    share = abs(float(d_loss)) / N
    y = np.zeros_like(p)
    y[np.arange(N), labels] = 1.0
    dz = (p - y) * (float(d_loss) / N)
    error = share * e_p + 4 * EPS * (np.abs(dz) + share * e_p) + FLUSHED
    return dz, error + u * (np.abs(dz) + error) + format.smallest / 2, out

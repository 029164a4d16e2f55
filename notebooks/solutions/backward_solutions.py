"""Solutions to `exercises/04_backward`. Try the exercises first, then compare."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def softmax_backward(dy: Array, probs: Array) -> Array:  # (N, C) x 2 -> (N, C)
    # Score k raises probability k by p_k and lowers each probability j by p_j p_k. The sum is one number for each row.
    # Each row of the result sums to 0: if all scores grow by 1, no probability changes.
    row_sum = (probs * dy).sum(axis=-1, keepdims=True)
    return probs * (dy - row_sum)


def layer_norm_backward(dy: Array, x: Array, gamma: Array, eps: float) -> tuple[Array, Array, Array]:
    # (N, E), (N, E), (E,) -> (N, E), (E,), (E,)
    centred = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)
    n = centred / s
    # All rows share gamma and beta, so their gradients are sums over the rows.
    dgamma, dbeta = (dy * n).sum(axis=0), dy.sum(axis=0)
    dn = dy * gamma
    # The result does not change if x is shifted, nor, but for eps, if it is scaled. So dx has no part along (1, ..., 1)
    # and none along n: both are taken away. If gamma and dy are all 1, dx is 0: the sum of a normalised row is 0
    # whatever x is.
    dx = (dn - dn.mean(axis=-1, keepdims=True) - n * (dn * n).mean(axis=-1, keepdims=True)) / s
    return dx, dgamma, dbeta


def gelu_backward(dy: Array, x: Array) -> Array:  # (N, F) x 2 -> (N, F)
    # The product rule for x Φ(x): Φ(x) + x φ(x). This slope is largest at x = √2, where it is 1.13, and negative for
    # all x below -0.75.
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    cumulative = (1 + erf(x / math.sqrt(2))) / 2
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return dy * (cumulative + x * density)


def attention_backward(dy: Array, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:  # (S, D) x 4 -> x 3
    root = math.sqrt(q.shape[-1])
    scores = q @ k.T / root
    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs = exps / exps.sum(axis=-1, keepdims=True)
    # y = probs v: each factor's gradient is that of y times the other factor, transposed.
    # If all rows of v are equal, y is that row whatever the probabilities are, so dq and dk are 0.
    dv = probs.T @ dy
    d_scores = softmax_backward(dy @ v.T, probs) / root
    return d_scores @ k, d_scores.T @ q, dv

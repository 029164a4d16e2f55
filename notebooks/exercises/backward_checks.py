"""The backward passes of the exercises by their definitions, and the mistakes that people make in them, for `own`.

The bounds are those of `ernie_m.kernels.checking`, derived for its own operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from own import Own

from ernie_m import reference
from ernie_m.kernels.checking import attention_gradient_bounds, gradient_bounds
from ernie_m.kernels.checking.bounds import Expected, expected, several
from ernie_m.kernels.checking.formats import Format
from ernie_m.kernels.checking.letters import Made, drawn
from ernie_m.kernels.checking.operation import Operation, one_row
from ernie_m.reference.array import Array
from ernie_m.reference.attention import attention_vjp
from ernie_m.reference.gelu import gelu_slope

Three = tuple[Array, Array, Array]


def softmax_backward(dy: Array, probs: Array) -> Array:  # (N, C) x 2 -> (N, C)
    return probs * (dy - np.sum(probs * dy, axis=-1, keepdims=True))


def some_probs(rng: Any, N: int, E: int) -> Array:
    return reference.softmax(2 * rng.standard_normal((N, E)))


def layer_norm_expected(format: Format, dy: Array, x: Array, gamma: Array, eps: float) -> Expected:
    """Those of add + LayerNorm with a bias and a residual of 0."""
    none = np.zeros_like(x)
    found = gradient_bounds.add_layer_norm_vjp(format, dy, x, none[0], none, gamma, eps)
    parts = {name: part for name, _, part in found.each()}
    return several(**{name: parts[name] for name in ("dx", "dgamma", "dbeta")})


def layer_norm_parts(x: Array, eps: float) -> tuple[Array, Array]:  # (N, E) -> (N, E), (N, 1)
    """The normalised rows and their √(variance + eps)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)
    return centred / s, s


def layer_norm_form(mean: float = 1, variance: float = 1, scale: bool = True, raw: bool = False) -> Any:
    """LayerNorm's backward with other factors of its terms; `raw`: dgamma from x, not from the normalised rows."""

    def form(dy: Array, x: Array, gamma: Array, eps: float) -> Three:
        n, s = layer_norm_parts(x, eps)
        g = dy * gamma if scale else dy
        dx = g - mean * g.mean(axis=-1, keepdims=True) - variance * n * (g * n).mean(axis=-1, keepdims=True)
        return dx / s, (dy * (x if raw else n)).sum(axis=0), dy.sum(axis=0)

    return form


def layer_norm_changed(change: Callable[..., Three], **left_out: Any) -> Any:
    """`change(x, gamma, eps, dx, dgamma, dbeta)` of what a `layer_norm_form` returns."""
    return lambda dy, x, gamma, eps: change(x, gamma, eps, *layer_norm_form(**left_out)(dy, x, gamma, eps))


def gelu_expected(format: Format, dy: Array, x: Array) -> Expected:
    """That of bias + GELU with a bias of 0."""
    found = gradient_bounds.bias_gelu_vjp(format, dy, x, np.zeros(x.shape[-1]))
    return next(part for name, _, part in found.each() if name == "dx")


def density(x: Array) -> Array:
    return np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)


def cumulative(x: Array) -> Array:
    """Φ(x), which is the slope without x φ(x)."""
    return gelu_slope(x) - x * density(x)


def tanh_slope(x: Array) -> Array:
    """The slope of GELU's tanh approximation."""
    root = math.sqrt(2 / math.pi)
    t = np.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)


def attention_expected(format: Format, dy: Array, q: Array, k: Array, v: Array) -> Expected:
    """dq, dk and dv of one head."""
    errors = attention_gradient_bounds.head_gradients(format, dy, q, k, v)
    exact = (x[0] for x in attention_vjp(*(x[None] for x in (dy, q, k, v))))
    parts = zip(("dq", "dk", "dv"), exact, errors, strict=True)
    return several(**{name: expected(format, x, error) for name, x, error in parts})


def attention_form(
    scale: float | None = None,
    inner: bool = True,
    weights: bool = True,
    turned: bool = True,
    early: bool = False,
    forward: bool = True,
    crossed: bool = False,
) -> Any:
    """Attention's backward with another scale, or without some of its steps.

    `forward`: whether scores are scaled; `crossed`: dq takes q, and dk takes k.
    """

    def form(dy: Array, q: Array, k: Array, v: Array) -> Three:
        root = math.sqrt(q.shape[-1])
        probs = reference.softmax(q @ k.T / (root if forward else 1.0))
        d_probs = dy @ v.T
        d_scores = softmax_backward(d_probs, probs) if inner else probs * d_probs if weights else d_probs
        d_scores = d_scores / (root if scale is None else scale)
        keys, queries = (q, k) if crossed else (k, q)
        return d_scores @ keys, (d_scores.T if turned else d_scores) @ queries, (probs if early else probs.T) @ dy

    return form


def swapped(form: Any) -> Any:
    def wrong(**given: Any) -> Three:
        dq, dk, dv = form(**given)
        return dk, dq, dv

    return wrong


ROWS = {"N": (1, 2, 5), "E": (2, 3, 8, 33)}
BACKWARD: dict[str, Own] = {
    "softmax_backward": Own(
        Operation(
            "f(dy, probs)",
            drawn(dy="N E", probs=Made("N E", some_probs)).sized(**ROWS),
            truth=softmax_backward,
            crop=one_row,
        ),
        {
            "only the diagonal of the Jacobian, p (1 − p): every score changes every probability of its row": [
                lambda dy, probs: dy * probs * (1 - probs)
            ],
            "the sum over the row is missing: a score also lowers the other probabilities": [
                lambda dy, probs: dy * probs
            ],
            "the row's sum is of dy alone; weight it by the probabilities": [
                lambda dy, probs: probs * (dy - dy.sum(axis=-1, keepdims=True)),
                lambda dy, probs: probs * (dy - dy.mean(axis=-1, keepdims=True)),
            ],
            "the row's sum is divided by the number of columns: it is a sum, not a mean": [
                lambda dy, probs: probs * (dy - (probs * dy).mean(axis=-1, keepdims=True))
            ],
            "the sum runs over all rows; each row has its own": [lambda dy, probs: probs * (dy - (probs * dy).sum())],
            "the sum runs down the columns; it is over each row": [
                lambda dy, probs: probs * (dy - (probs * dy).sum(axis=0))
            ],
            "the factor p in front is missing": [
                lambda dy, probs: dy - (probs * dy).sum(axis=-1, keepdims=True),
            ],
            "p multiplies dy alone; it also multiplies the row's sum": [
                lambda dy, probs: probs * dy - (probs * dy).sum(axis=-1, keepdims=True),
            ],
            "the sign is wrong": [lambda dy, probs: -softmax_backward(dy, probs)],
        },
        telling=({"N": 4, "E": 6}, {"N": 5, "E": 5}),
        small={"N": 2, "E": 3},
    ),
    "layer_norm_backward": Own(
        Operation(
            "f(dy, x, gamma, eps)",
            drawn(dy="N E", x="N E", gamma="E", eps=(1e-5, 1e-12)).sized(**ROWS),
            expected=layer_norm_expected,
            results=("dx", "dgamma", "dbeta"),
        ),
        {
            "mean and variance are taken as constants; x changes both, and through them the whole row": [
                layer_norm_form(mean=0, variance=0)
            ],
            "the term of the variance is missing in dx": [layer_norm_form(variance=0)],
            "the term of the mean is missing in dx": [layer_norm_form(mean=0)],
            "gamma is left out of dx": [layer_norm_form(scale=False)],
            "gamma multiplies the result; multiply dy by it first, before the two means are taken": [
                layer_norm_changed(lambda x, gamma, eps, dx, *others: (gamma * dx, *others), scale=False)
            ],
            "dx is not divided by s": [
                layer_norm_changed(lambda x, gamma, eps, dx, *others: (dx * layer_norm_parts(x, eps)[1], *others))
            ],
            "sums over the row are taken away from dx; they are means": [
                lambda dy, x, gamma, eps: layer_norm_form(x.shape[-1], x.shape[-1])(dy, x, gamma, eps)
            ],
            "dgamma and dbeta are swapped": [
                layer_norm_changed(lambda x, gamma, eps, dx, dgamma, dbeta: (dx, dbeta, dgamma))
            ],
            "dgamma is summed with x; it takes the normalised rows": [layer_norm_form(raw=True)],
            "dgamma and dbeta are means over the rows; they are sums": [
                layer_norm_changed(lambda x, gamma, eps, dx, *sums: (dx, *(total / len(x) for total in sums)))
            ],
        },
        telling=({"N": 4, "E": 6}, {"N": 5, "E": 5}),
        small={"N": 2, "E": 3},
    ),
    "gelu_backward": Own(
        Operation("f(dy, x)", drawn(dy="N E", x="N E").sized(**ROWS), expected=gelu_expected, crop=one_row),
        {
            "the term x φ(x) is missing: Φ depends on x too": [lambda dy, x: dy * cumulative(x)],
            "the term Φ(x) is missing: it is a product of two functions": [lambda dy, x: dy * x * density(x)],
            "the factor x of the second term is missing: it is x φ(x)": [
                lambda dy, x: dy * (cumulative(x) + density(x))
            ],
            "the slope is not multiplied by dy": [lambda dy, x: gelu_slope(x)],
            "this is the slope of the tanh approximation": [lambda dy, x: dy * tanh_slope(x)],
            "this is gelu itself, times dy; its slope is asked for": [lambda dy, x: dy * reference.gelu(x)],
            "the ½ of Φ is missing": [lambda dy, x: dy * (2 * cumulative(x) + x * density(x))],
            "the ½ in φ's exponent is missing: it is −x²/2": [
                lambda dy, x: dy * (cumulative(x) + x * density(math.sqrt(2) * x)),
            ],
            "φ is not divided by √(2π)": [
                lambda dy, x: dy * (cumulative(x) + x * density(x) * math.sqrt(2 * math.pi))
            ],
            "erf's argument is not divided by √2": [
                lambda dy, x: dy * (cumulative(x * math.sqrt(2)) + x * density(x)),
            ],
        },
        telling=({"N": 4, "E": 6}, {"N": 5, "E": 5}),
        small={"N": 2, "E": 3},
    ),
    "attention_backward": Own(
        Operation(
            "f(dy, q, k, v)",
            drawn(dy="S D", q="S D", k="S D", v="S D").sized(S=(1, 2, 5, 9), D=(2, 4, 16)),
            expected=attention_expected,
            results=("dq", "dk", "dv"),
        ),
        {
            "dq and dk are not divided by √D; the scores were": [attention_form(scale=1.0)],
            "the scores are not divided by √D before their softmax": [
                attention_form(forward=False),
                attention_form(1.0, forward=False),
            ],
            "dq takes q, and dk takes k; each takes the other": [attention_form(crossed=True)],
            "dq and dk are divided by D; it is √D": [
                lambda dy, q, k, v: attention_form(scale=q.shape[-1])(dy, q, k, v)
            ],
            "the softmax's backward lacks its row sum": [attention_form(inner=False)],
            "the softmax's backward is left out: the gradient of the probabilities is not that of the scores": [
                attention_form(inner=False, weights=False)
            ],
            "dk takes the gradient of the scores as it is; transpose it": [attention_form(turned=False)],
            "dv takes the probabilities as they are; transpose them": [attention_form(early=True)],
            "dq and dk are swapped": [swapped(attention_form())],
        },
        telling=({"S": 6, "D": 5}, {"S": 7, "D": 4}),
        small={"S": 2, "D": 3},
    ),
}
BACKWARD = {name: replace(own, operation=replace(own.operation, name=name)) for name, own in BACKWARD.items()}

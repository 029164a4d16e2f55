"""Wrong forms of LayerNorm(z): functions of z (N, E), gamma, beta (E,) and eps; see `mistakes`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .bounds import EPS
from .formats import FORMATS
from .mistakes import FIRST, LAST, ONE_MORE, Fitted, Form, Mistakes, following, padded_sizes, without

UNREAD_MEAN = "the mean is not subtracted"


def _moments(z: Array) -> tuple[Array, Array]:  # (N, E) -> (N, E), (N, 1)
    """The numbers without their mean, and their variance."""
    d = z - z.mean(-1, keepdims=True)
    return d, _mean_square(d)


def layer_norm(z: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """The right one."""
    d, variance = _moments(z)
    return d / np.sqrt(variance + eps) * gamma + beta


def affine(combine: Callable[[Array, Array, Array], Array]) -> Form:
    """A wrong use of gamma and beta: `combine(y, gamma, beta)`, where y is normalised."""

    def wrong(z: Array, gamma: Array, beta: Array, eps: float) -> Array:
        d, variance = _moments(z)
        return combine(d / np.sqrt(variance + eps), gamma, beta)

    return wrong


def divided(divisor: Callable[[Array, float, int], Array]) -> Form:
    """A wrong divisor of the centred numbers: `divisor(variance, eps, E)`."""

    def wrong(z: Array, gamma: Array, beta: Array, eps: float) -> Array:
        d, variance = _moments(z)
        return d / divisor(variance, eps, z.shape[-1]) * gamma + beta

    return wrong


def about_zero(centre: Callable[[Array], Array], variance: Callable[[Array], Array]) -> Form:
    """Numbers `centre(z)` over the root of `variance(z)`."""
    return lambda z, gamma, beta, eps: centre(z) / np.sqrt(variance(z) + eps) * gamma + beta


def _mean_square(z: Array) -> Array:
    return np.square(z).mean(-1, keepdims=True)


def in_block(i: int, masked: bool, mean_of_block: bool, variance_of_block: bool) -> Form:
    """Rows padded with zeros to a block. `masked`: the padding is 0 again after the mean; else it is -mean.

    The sums are divided by the block's width where `..._of_block`, else by E.
    """

    def wrong(z: Array, gamma: Array, beta: Array, eps: float) -> Array:
        E = z.shape[-1]
        P = padded_sizes(E)[i]
        mean = z.sum(-1, keepdims=True) / (P if mean_of_block else E)
        squares = np.square(z - mean).sum(-1, keepdims=True) + (0 if masked else (P - E) * np.square(mean))
        return (z - mean) / np.sqrt(squares / (P if variance_of_block else E) + eps) * gamma + beta

    return wrong


def some_columns(columns: slice, count: int, fill: str) -> Form:
    """A mask that leaves a column out: sums of the others over E - `count`; in that column `fill`: nan or beta."""

    def wrong(z: Array, gamma: Array, beta: Array, eps: float) -> Array:
        part, n = z[:, columns], z.shape[-1] - count
        mean = part.sum(-1, keepdims=True) / n
        variance = np.square(part - mean).sum(-1, keepdims=True) / n
        y = np.full_like(z, math.nan) if fill == "nan" else np.broadcast_to(beta, z.shape).copy()
        y[:, columns] = (part - mean) / np.sqrt(variance + eps) * gamma[columns] + beta[columns]
        return y

    return wrong


def one_more(last: float, count: int) -> Form:
    """A mask that lets in the number behind each row; `last` behind the last row."""

    def wrong(z: Array, gamma: Array, beta: Array, eps: float) -> Array:
        more, n = np.concatenate([z, following(z, last)], axis=1), z.shape[-1] + count
        mean = more.sum(-1, keepdims=True) / n
        variance = np.square(more - mean).sum(-1, keepdims=True) / n
        return (z - mean) / np.sqrt(variance + eps) * gamma + beta

    return wrong


def nearest_one_pass(got: Array, z: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """mean(z²) - mean(z)²: the mean is right, the variance off by up to E ε mean(z²), in float32.

    So each row is (z - mean) γ f + β with a factor f of its own, here the one that fits best; nan where the variance
    may be negative. Where mean(z²) is small, this is the right result.
    """
    d, variance = _moments(z)
    slack = z.shape[-1] * EPS * _mean_square(z)
    scaled = d * gamma
    factor = ((got - beta) * scaled).sum(-1, keepdims=True) / np.square(scaled).sum(-1, keepdims=True)
    low = variance + eps - slack
    highest = np.where(low > 0, 1 / np.sqrt(np.where(low > 0, low, 1.0)), np.inf)
    factor = np.where(np.isfinite(factor), factor, 1 / np.sqrt(variance + eps))
    factor = np.clip(factor, 1 / np.sqrt(variance + eps + slack), highest)
    negative = (low <= 0) & np.isnan(got).all(-1, keepdims=True)
    return np.where(negative, np.nan, scaled * factor + beta)


NORM: Mistakes = {
    "the variance is computed in one pass, as mean(x²) - mean(x)², which cancels where the mean is large; subtract the "
    "mean first": [Fitted(nearest_one_pass)],
    "the variance is divided by E - 1; LayerNorm divides by E": [
        divided(lambda variance, eps, E: np.sqrt(variance * (E / np.float64(E - 1)) + eps))
    ],
    "the root is missing: divide by √(variance + eps)": [divided(lambda variance, eps, E: variance + eps)],
    "eps is added to the standard deviation; it belongs under the square root": [
        divided(lambda variance, eps, E: np.sqrt(variance) + eps)
    ],
    "eps is left out": [divided(lambda variance, eps, E: np.sqrt(variance))],
    "eps is squared": [divided(lambda variance, eps, E: np.sqrt(variance + eps * eps))],
    "the variance is a sum; it should be a mean": [divided(lambda variance, eps, E: np.sqrt(variance * E + eps))],
    "multiplied by the standard deviation; it should be divided": [
        divided(lambda variance, eps, E: 1 / np.sqrt(variance + eps))
    ],
    "not divided by the standard deviation": [divided(lambda variance, eps, E: np.ones_like(variance))],
    UNREAD_MEAN: [
        about_zero(lambda z: z, _mean_square),
        about_zero(lambda z: z, lambda z: _moments(z)[1]),
    ],
    "the mean is not subtracted for the variance": [about_zero(lambda z: _moments(z)[0], _mean_square)],
    "the sum is subtracted; it should be the mean": [
        about_zero(lambda z: z - z.sum(-1, keepdims=True), lambda z: _moments(z)[1]),
        about_zero(lambda z: z - z.sum(-1, keepdims=True), lambda z: _mean_square(z - z.sum(-1, keepdims=True))),
    ],
    "the mean and the variance are those of all rows; each row has its own": [
        about_zero(lambda z: z - z.mean(), lambda z: np.asarray(z.var()))
    ],
    "columns are normalised; it should be rows": [
        lambda z, gamma, beta, eps: layer_norm(z.T, np.ones(1), np.zeros(1), eps).T * gamma + beta
    ],
    "gamma and beta are both left out": [affine(lambda y, gamma, beta: y)],
    "gamma is left out": [affine(lambda y, gamma, beta: y + beta)],
    "beta is left out": [affine(lambda y, gamma, beta: y * gamma)],
    "gamma and beta are swapped": [affine(lambda y, gamma, beta: y * beta + gamma)],
    "beta is added to gamma; it should be added to the product": [affine(lambda y, gamma, beta: y * (gamma + beta))],
    "beta is added before multiplying by gamma; it should be added after": [
        affine(lambda y, gamma, beta: (y + beta) * gamma)
    ],
    "gamma is added in place of beta": [affine(lambda y, gamma, beta: y * gamma + gamma)],
    "beta multiplies in place of gamma": [affine(lambda y, gamma, beta: y * beta + beta)],
    "gamma is added and beta left out": [affine(lambda y, gamma, beta: y + gamma)],
    "beta multiplies and gamma is left out": [affine(lambda y, gamma, beta: y * beta)],
    "beta is subtracted; it should be added": [affine(lambda y, gamma, beta: y * gamma - beta)],
    "1 is added to gamma": [affine(lambda y, gamma, beta: y * (1 + gamma) + beta)],
    "padding is not masked again after the mean is subtracted: it adds mean² to the variance": [
        in_block(i, False, False, of_block) for i in range(len(padded_sizes(1))) for of_block in (False, True)
    ],
    "the sums are divided by the width of the block; it should be E": [
        in_block(i, masked, mean, True)
        for i in range(len(padded_sizes(1)))
        for masked, mean in ((True, True), (True, False), (False, True))
    ],
    LAST: [some_columns(np.s_[:-1], count, fill) for count in (0, 1) for fill in ("nan", "beta")],
    FIRST: [some_columns(np.s_[1:], count, fill) for count in (0, 1) for fill in ("nan", "beta")],
    "the mask of the store is off by one: the last column is not written": [
        lambda z, gamma, beta, eps: without(layer_norm(z, gamma, beta, eps), ..., -1)
    ],
    "the mask of the store is off by one: the first column is not written": [
        lambda z, gamma, beta, eps: without(layer_norm(z, gamma, beta, eps), ..., 0)
    ],
    ONE_MORE: [one_more(last, count) for last in (math.nan, 0.0) for count in (0, 1)],
}


def added(x: Array, bias: Array, residual: Array, gamma: Array, beta: Array, eps: float) -> tuple[Any, ...]:
    """The arguments of the normalisation in `add_layer_norm`: x + bias + residual, (N, E), γ, β and ε."""
    return x + bias + residual, gamma, beta, eps


def embedded(
    input_ids: Array, position_ids: Array, word: Array, position: Array, gamma: Array, beta: Array, eps: float
) -> tuple[Any, ...]:
    """The arguments of the normalisation in `embed`: the sum of two rows for each id, (T, E), γ, β and ε."""
    return word[input_ids] + position[position_ids + 2], gamma, beta, eps


def _rounded_sum(dtype: str) -> Form:
    return lambda x, bias, residual, **a: layer_norm(FORMATS[dtype].round(x + bias + residual), **a)


def _positions(offset: int) -> Form:
    return lambda input_ids, position_ids, word, position, **a: layer_norm(
        word[input_ids] + position[position_ids + offset], **a
    )


ADDED: Mistakes = {
    "bias is left out of the sum": [lambda x, bias, residual, **a: layer_norm(x + residual, **a)],
    "residual is left out of the sum": [lambda x, bias, residual, **a: layer_norm(x + bias, **a)],
    "x is left out of the sum": [lambda x, bias, residual, **a: layer_norm(residual + bias + 0 * x, **a)],
    "bias and residual are left out of the sum": [lambda x, bias, residual, **a: layer_norm(x, **a)],
    "bias is added twice": [lambda x, bias, residual, **a: layer_norm(x + 2 * bias + residual, **a)],
    "residual is added after the normalisation; it should be added before": [
        lambda x, bias, residual, **a: layer_norm(x + bias, **a) + residual
    ],
    **{
        f"the sum is rounded to {dtype} before it is normalised; keep it in float32": [_rounded_sum(dtype)]
        for dtype in ("float16", "bfloat16")
    },
}
EMBEDDED: Mistakes = {
    "positions are off by one: add 2 to a position to get its row": [_positions(1), _positions(3)],
    "the offset of 2 is not added to the positions": [_positions(0)],
    "the offset of 2 is added twice": [_positions(4)],
    "the position embedding is not added": [
        lambda input_ids, position_ids, word, position, **a: layer_norm(word[input_ids], **a)
    ],
    "the word embedding is not added": [
        lambda input_ids, position_ids, word, position, **a: layer_norm(position[position_ids + 2], **a)
    ],
    "positions start at 0 in order; read position_ids": [
        lambda input_ids, position_ids, word, position, **a: layer_norm(
            word[input_ids] + position[np.arange(len(input_ids)) + 2], **a
        )
    ],
    "ids and positions are swapped": [
        lambda input_ids, position_ids, word, position, **a: layer_norm(
            word[position_ids] + position[np.minimum(input_ids + 2, len(position) - 1)], **a
        )
    ],
    "the two embeddings are multiplied; they should be added": [
        lambda input_ids, position_ids, word, position, **a: layer_norm(
            word[input_ids] * position[position_ids + 2], **a
        )
    ],
}

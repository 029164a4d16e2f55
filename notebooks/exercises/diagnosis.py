"""Guesses the cause of a wrong result by comparing it with the results of well-known mistakes on the same input.

If the result equals, or nearly equals, that of a known mistake, the mistake is named as a likely cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ernie_m import reference
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.reference.array import Array

Mistake = Callable[..., Array]

# The share of the error that a mistake may leave unexplained.
UNEXPLAINED = 0.05
PADDED = (2, 4, 8, 16, 32, 64, 128, 256)

# Hints for failures without wrong numbers to compare: a part of the reason, and the hint.
HINTS = {
    "wrote past the end of": "the last block hangs over the end of the array: give tl.store a mask",
    "wrote before the start of": "an offset is negative",
    "changed its argument": "do not write to the arguments: store into a new array",
    "it returned float64 for": "a np.float64 caused it, such as np.sqrt of a Python number: math.sqrt returns a float",
    "it returned float64, expected": "np.zeros and np.ones return float64 unless you pass a dtype",
    "it returned int64, expected bool": "a comparison returns booleans",
    "it returned shape": "write the shape next to each line and see where it changes",
    "different results": "something is read before it is written, or two programs write to the same address",
    "signed mean error": "results are truncated, not rounded to nearest",
    "rms error": "many results are slightly off: an intermediate is rounded to the format, or a scale is wrong",
}
NAN = "nan comes from inf - inf, inf / inf, 0 / 0, or memory that was never written"


def explain(reason: str, got: Array | None) -> str:
    """The hint for a failure's reason, or "" if there is none."""
    for piece, hint in HINTS.items():
        if piece in reason:
            return hint
    return NAN if got is not None and np.isnan(got).any() else ""


def diagnose(exercise: str, dtype: str, inputs: dict[str, Any], got: Array, expected: Array) -> list[str]:
    """A list with one hint that names the mistakes that best explain the wrong numbers; empty if none does."""
    format = FORMATS.get(dtype)
    best, words = UNEXPLAINED * distance(got, expected), list[str]()
    for hint, mistake in each_mistake(exercise):
        numbers = np.asarray(mistake(**inputs))
        if numbers.shape != got.shape:
            continue
        far = distance(got, numbers if format is None else format.round(numbers))
        if far < best:
            best, words = far, [hint]
        elif far == best and words and hint not in words:
            words.append(hint)
    return ["your numbers match this mistake: " + "; or this one: ".join(words)] if words else []


def each_mistake(exercise: str) -> Iterator[tuple[str, Mistake]]:
    """Each mistake's hint and function; a hint with several forms comes once for each."""
    for hint, forms in MISTAKES.get(exercise, {}).items():
        for mistake in forms if isinstance(forms, list) else [forms]:
            yield hint, mistake


def distance(a: Array, b: Array) -> float:
    """The largest difference. nan and infinity are at distance 0 from themselves and infinitely far from the rest."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.abs(np.where(same, 0.0, a - np.where(same, 0.0, b)))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return float(apart.max(initial=0.0))


def _overflowing_softmax(scores: Array) -> Array:
    exps = np.exp(scores.astype(np.float32))
    return exps / exps.sum(-1, keepdims=True)


def _padded_softmax(width: int) -> Callable[[Array], Array]:
    """Softmax as if each row were padded with scores of 0 to a multiple of `width`."""

    def mistake(scores: Array) -> Array:
        N, C = scores.shape
        longer = np.concatenate([scores, np.zeros((N, -C % width))], axis=1)
        return reference.softmax(longer)[:, :C]

    return mistake


def _normalised(v: Array, gamma: Array, beta: Array, eps: float, ddof: int = 0, inside: bool = True) -> Array:
    centred = v - v.mean(-1, keepdims=True)
    E = v.shape[-1]
    # np.float64: for E = 1 the unbiased variance is 0 / 0, which is nan and not an error.
    variance = np.square(centred).sum(-1, keepdims=True) / np.float64(E - ddof)
    return centred / (np.sqrt(variance + eps) if inside else np.sqrt(variance) + eps) * gamma + beta


def _affine_mistakes(normalise: Callable[..., Array]) -> dict[str, Callable[..., Array]]:
    """The mistakes of every normalisation. `normalise(gamma, beta, eps, ..., **options)` is `_normalised` of a sum."""
    one, zero = np.ones(1), np.zeros(1)
    return {
        "the variance is divided by E - 1; LayerNorm divides by E": lambda **a: normalise(**a, ddof=1),
        "eps is added to the standard deviation; it belongs under the square root": lambda **a: normalise(
            **a, inside=False
        ),
        "eps is left out": lambda **a: normalise(**a | {"eps": 0.0}),
        "gamma is left out": lambda **a: normalise(**a | {"gamma": one}),
        "beta is left out": lambda **a: normalise(**a | {"beta": zero}),
    }


def _added(x: Array, bias: Array, residual: Array, **affine: Any) -> Array:
    return _normalised(x + bias + residual, **affine)


def _rounded_sum(dtype: str) -> Callable[..., Array]:
    def mistake(x: Array, bias: Array, residual: Array, **affine: Any) -> Array:
        return _normalised(FORMATS[dtype].round(x + bias + residual), **affine)

    return mistake


def _head(q: Array, k: Array, v: Array, scale: float | None = None, width: int = 1) -> Array:
    """Attention as if keys and values were padded with zeros to a multiple of `width`."""
    S, D = k.shape
    k, v = (np.concatenate([array, np.zeros((-S % width, D))]) for array in (k, v))
    return reference.softmax(q @ k.T * (1 / math.sqrt(D) if scale is None else scale)) @ v


def _column_softmax_head(q: Array, k: Array, v: Array) -> Array:
    return reference.softmax((q @ k.T / math.sqrt(q.shape[1])).T).T @ v


def _tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid_gelu(x: Array) -> Array:
    return x / (1 + np.exp(-1.702 * x))


def _by_position(x: Array, mask: Array) -> Array:
    return x.swapaxes(0, 1)[mask.T]


def _padded(fill: float, transposed: bool = False) -> Callable[[Array, Array], Array]:
    def mistake(packed: Array, mask: Array) -> Array:
        shape = (*mask.shape, packed.shape[1])
        if not transposed:
            padded = np.full(shape, fill, packed.dtype)
            padded[mask] = packed
            return padded
        turned = np.zeros((shape[1], shape[0], shape[2]), packed.dtype)
        turned[mask.T] = packed
        return turned.swapaxes(0, 1)

    return mistake


def _compared(lengths: Array, S: int, first: int) -> Array:
    return np.arange(first, S + first) <= lengths[:, None]


PAST = "elements past the end of the row take part, with scores of 0; they must be -inf"
NO_MAXIMUM = "exp of the scores themselves overflows; subtract the row maximum first"

MISTAKES: dict[str, dict[str, Mistake | list[Mistake]]] = {
    "softmax": {
        NO_MAXIMUM: _overflowing_softmax,
        "each column sums to 1; it should be each row": lambda scores: reference.softmax(scores.T).T,
        PAST: [_padded_softmax(width) for width in PADDED],
    },
    "layer_norm": {
        **_affine_mistakes(lambda x, **a: _normalised(x, **a)),
        "columns are normalised; it should be rows": lambda x, gamma, beta, eps: (
            _normalised(x.T, np.ones(1), np.zeros(1), eps).T * gamma + beta
        ),
    },
    "gelu": {
        "the tanh approximation of GELU; ERNIE-M uses the exact one, with erf": _tanh_gelu,
        "the approximation x sigmoid(1.702 x); ERNIE-M uses the exact GELU, with erf": _sigmoid_gelu,
        "ReLU": lambda x: np.maximum(x, 0),
        "erf(x) without dividing x by √2": lambda x: 0.5 * x * (1 + reference.erf(x)),
    },
    "add_layer_norm": {
        "bias is left out of the sum": lambda x, bias, residual, **a: _normalised(x + residual, **a),
        "residual is left out of the sum": lambda x, bias, residual, **a: _normalised(x + bias, **a),
        **_affine_mistakes(_added),
        **{
            f"the sum is rounded to {dtype} before it is normalised; keep it in float32": _rounded_sum(dtype)
            for dtype in ("float16", "bfloat16")
        },
    },
    "attention_head": {
        "the scores are not divided by √D": lambda q, k, v: _head(q, k, v, scale=1.0),
        "the scores are divided by D; it should be √D": lambda q, k, v: _head(q, k, v, scale=1 / q.shape[1]),
        "the softmax is over columns of the scores; it should be over rows": _column_softmax_head,
        "keys past the end take part, with scores of 0; they must be -inf": [
            partial(_head, width=width) for width in PADDED
        ],
    },
    "mask_from_lengths": {
        "position <= length; positions count from 0, so it is <": lambda lengths, S: _compared(lengths, S, 0),
        "True and False are swapped": lambda lengths, S: ~_compared(lengths, S, 1),
    },
    "unpad": {"every row's first token, then every row's second; rows come one after another": _by_position},
    "pad": {
        "padding of ones; padding is 0": _padded(1),
        "padding of nan; padding is 0": _padded(math.nan),
        "tokens put back position by position; rows come one after another": _padded(0, transposed=True),
    },
}

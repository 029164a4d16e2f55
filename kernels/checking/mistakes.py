"""Wrong implementations of the operations on rows, in NumPy and float64: the mistakes that people make, by their words.

`MISTAKES[op][words]` holds the forms of one mistake: functions with the operation's arguments that return what a
function with this mistake returns, nan where it writes nothing; or None where the form says nothing about an input.
`diagnosis` compares a failing function with all of them. `attention_mistakes` and `group_mistakes` have those of
attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ernie_m import reference
from ernie_m.reference.array import Array

Form = Callable[..., Any]
# By their words, the forms of each mistake: a `Form` or a `Fitted`.
Mistakes = dict[str, list[Any]]

# Block widths: rows are padded to a multiple of one of these, or to the next power of two from one of these.
WIDTHS = (1, 16, 32, 64, 128, 256, 512, 1024)
ROW_FIRST = "every row is computed from the first one: the pointer does not move with the row"
LAST_ROW = "the last row is not written"
STRIDES = "row and column strides are swapped, in the input or in the result"
LOADED = "row and column strides are swapped where the input is read"
STORED = "row and column strides are swapped where the result is written"
LAST, FIRST = (
    "the mask is off by one: the last column is left out",
    "the mask is off by one: the first column is left out",
)
ONE_MORE = "the mask is off by one: it lets in one element past the end of the row"
PAST = "elements past the end of the row take part, with scores of 0; they must be -inf"
# Below this, e^x is no normal number of float32.
TINY = -87.0
NO_MAXIMUM = "exp of the scores themselves overflows; subtract the row maximum first"


@dataclass(frozen=True)
class Fitted:
    """A form whose numbers depend on how it rounds: `nearest(got, ...)` is the possible result nearest to `got`."""

    nearest: Form


def padded_sizes(n: int) -> list[int]:
    """The sizes that blocks may pad n numbers to; the list has the same length, and order, for every n."""
    powers = [max(width, 1 << (n - 1).bit_length()) for width in WIDTHS]
    return powers + [n + -n % width for width in (2, 4, 8, *WIDTHS[1:])]


def at_each_size(form: Callable[..., Array], n_of: Callable[..., int]) -> list[Form]:
    """One form for each block width: `form(size, ...)`, where `size` is what n_of(...) is padded to."""

    def one(i: int) -> Form:
        def padded(*arguments: Any, **inputs: Any) -> Array:
            return form(padded_sizes(n_of(*arguments, **inputs))[i], *arguments, **inputs)

        return padded

    return [one(i) for i in range(len(padded_sizes(1)))]


def without(values: Array, *where: Any) -> Array:
    """The values, with nan at an index: what a result is where nothing was written."""
    values = np.array(values)
    values[where] = np.nan
    return values


def of_rows(truth: Form, *matrices: str, elementwise: bool = False) -> Mistakes:
    """The mistakes of every operation on rows (N, E); `matrices` names its arguments of that shape.

    `elementwise`: input and result move together, so that it cannot be told which of them is transposed.
    """

    def square(inputs: dict[str, Any]) -> bool:
        N, E = inputs[matrices[0]].shape
        return bool(N == E)

    def read(change: Callable[[Array], Array], names: tuple[str, ...]) -> Form:
        return lambda **a: truth(**a | {name: change(a[name]) for name in names})

    def transposed(names: tuple[str, ...]) -> Form:
        return lambda **a: read(np.transpose, names)(**a) if square(a) else None

    if elementwise:
        return {STRIDES: [transposed(matrices)], LAST_ROW: [lambda **a: without(truth(**a), -1)]}
    some = [matrices, *((name,) for name in matrices if len(matrices) > 1)]
    return {
        LOADED: [transposed(names) for names in some],
        STORED: [lambda **a: truth(**a).T if square(a) else None],
        ROW_FIRST: [read(lambda x: np.broadcast_to(x[:1], x.shape), names) for names in some],
        LAST_ROW: [lambda **a: without(truth(**a), -1)],
    }


def nearest_without_tail(got: Array, z: Array) -> Array:
    """GELU that is 0 where 1 + erf(z/√2) is 0 in float32, and right elsewhere."""
    return np.where(z > -5.9, reference.gelu(z), np.where(got == 0, 0.0, np.nan))


# Elementwise operations: the forms take z, the argument of GELU.
GELU: Mistakes = {
    "the tanh approximation of GELU; ERNIE-M uses the exact one, with erf": [
        lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    ],
    "the approximation x sigmoid(1.702 x); ERNIE-M uses the exact GELU, with erf": [
        lambda z: z / (1 + np.exp(-1.702 * z))
    ],
    "x sigmoid(x), which is SiLU, not GELU": [lambda z: z / (1 + np.exp(-z))],
    "ReLU, not GELU": [lambda z: np.maximum(z, 0)],
    "erf(x) without dividing x by √2": [lambda z: 0.5 * z * (1 + reference.erf(z))],
    "the factor x is left out: the result is Φ(x)": [lambda z: 0.5 * (1 + reference.erf(z / math.sqrt(2)))],
    "the tail is lost: 1 + erf(x/√2) is 0 below about -5.5 in float32; erfc(-x/√2) is not": [
        Fitted(nearest_without_tail)
    ],
    "the factor ½ is left out": [lambda z: 2 * reference.gelu(z)],
    LAST: [lambda z: without(reference.gelu(z), ..., -1)],
    FIRST: [lambda z: without(reference.gelu(z), ..., 0)],
    "the mask is off by one: the last number is left out": [lambda z: without(reference.gelu(z), -1, -1)],
    "the mask is off by one: the first number is left out": [lambda z: without(reference.gelu(z), 0, 0)],
}
BIASED: Mistakes = {
    "bias is not added": [lambda x, bias: reference.gelu(x)],
    "bias is added after GELU; it should be added before": [lambda x, bias: reference.gelu(x) + bias],
    "bias is subtracted; it should be added": [lambda x, bias: reference.gelu(x - bias)],
    "bias multiplies; it should be added": [lambda x, bias: reference.gelu(x * bias)],
    "bias is added along rows; it has one number for each column": [
        lambda x, bias: reference.gelu(x + bias[:, None]) if len(x) == len(bias) else None
    ],
    "every column gets the first number of bias": [lambda x, bias: reference.gelu(x + bias[0])],
}


def _overflowing(dtype: str) -> Form:
    def wrong(scores: Array) -> Array:
        exps = np.exp(scores.astype(dtype))
        return np.asarray(exps / exps.sum(-1, keepdims=True), np.float64)

    return wrong


def _padded_softmax(size: int, scores: Array, fill: float = 0.0) -> Array:
    N, C = scores.shape
    return reference.softmax(np.concatenate([scores, np.full((N, size - C), fill)], axis=1))[:, :C]


def _part(columns: slice, fill: float) -> Form:
    """Softmax over some of the columns only; `fill` in the others."""

    def wrong(scores: Array) -> Array:
        probs = np.full_like(scores, fill)
        probs[:, columns] = reference.softmax(scores[:, columns])
        return probs

    return wrong


def following(x: Array, last: float) -> Array:  # (N, E) -> (N, 1)
    """What is in memory behind each row: the first number of the next; `last` behind the last row."""
    return np.append(x[1:, 0], last)[:, None]


def _one_more(last: float) -> Form:
    def wrong(scores: Array) -> Array:
        return reference.softmax(np.concatenate([scores, following(scores, last)], axis=1))[:, :-1]

    return wrong


def _less(maximum: Callable[[Array], Array]) -> Form:
    """Softmax in float32 that subtracts another maximum: it is right where nothing overflows or underflows."""

    def wrong(scores: Array) -> Array:
        exps = np.exp((scores - maximum(scores)).astype(np.float32))
        return np.asarray(exps / exps.sum(-1, keepdims=True), np.float64)

    return wrong


def _summed(axis: int | None) -> Form:
    """The exponentials, each row's without its maximum, over a sum along another axis."""

    def wrong(scores: Array) -> Array:
        exps = np.exp(scores - scores.max(-1, keepdims=True))
        return np.asarray(exps / exps.sum(axis))

    return wrong


def _nearest_logarithm(got: Array, scores: Array) -> Array:
    """The logarithm of a softmax that is rounded to float32: it may be anything, and -inf, where that is tiny or 0."""
    exact = scores - scores.max(-1, keepdims=True)
    exact = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    return np.where((exact < TINY) & (got < TINY), got, exact)


SOFTMAX: Mistakes = {
    NO_MAXIMUM: [_overflowing("float32"), _overflowing("float16")],
    "the maximum of all rows is subtracted; it should be each row's": [_less(np.max)],
    "the maximum of each column is subtracted; it should be each row's": [_less(lambda scores: scores.max(0))],
    "each column sums to 1; it should be each row": [lambda scores: reference.softmax(scores.T).T, _summed(0)],
    "the sum is over all rows; it should be over each row": [
        lambda scores: reference.softmax(scores.reshape(1, -1)).reshape(scores.shape),
        _summed(None),
    ],
    "the exponentials are not divided by their sum": [
        lambda scores: np.exp(scores - scores.max(-1, keepdims=True)),
        lambda scores: np.exp(scores),
    ],
    "the exponentials are divided by their mean; it should be their sum": [
        lambda scores: scores.shape[-1] * reference.softmax(scores)
    ],
    "the result is the logarithm of the softmax": [
        lambda scores: np.log(reference.softmax(scores)),
        Fitted(_nearest_logarithm),
    ],
    "powers of 2 in place of powers of e: multiply by log₂e first": [
        lambda scores: reference.softmax(scores * math.log(2))
    ],
    "log₂e is multiplied twice": [lambda scores: reference.softmax(scores / math.log(2))],
    PAST: at_each_size(_padded_softmax, lambda scores: scores.shape[1]),
    "elements past the end of the row take part, with a score that is not small enough; they must be -inf": [
        form
        for power in (2, 3, 4)
        for form in at_each_size(partial(_padded_softmax, fill=-(10.0**power)), lambda scores: scores.shape[1])
    ],
    LAST: [_part(np.s_[:-1], math.nan), _part(np.s_[:-1], 0.0)],
    FIRST: [_part(np.s_[1:], math.nan), _part(np.s_[1:], 0.0)],
    ONE_MORE: [_one_more(math.nan), _one_more(-math.inf), _one_more(0.0)],
}


def as_ops(forms: Mistakes, z_of: Callable[..., Any]) -> Mistakes:
    """Forms of z, as forms of an operation's own arguments, which `z_of` maps to those of the forms."""

    def adapt(form: Any) -> Any:
        if isinstance(form, Fitted):
            return Fitted(lambda got, **inputs: form.nearest(got, *z_of(**inputs)))
        return lambda **inputs: form(*z_of(**inputs))

    return {words: [adapt(form) for form in several] for words, several in forms.items()}


def merged(tables: Iterable[Mistakes]) -> Mistakes:
    """One table; the forms of a mistake that is in several are joined."""
    found: Mistakes = {}
    for table in tables:
        for words, forms in table.items():
            found[words] = [*found.get(words, []), *forms]
    return found

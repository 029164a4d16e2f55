"""Functions of NumPy on whole arrays of `intervals.Bounded`: sums, products of matrices, choices and moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .bounds import APPROXIMATE, EPS, FLUSHED, chain
from .interval_arithmetic import divide, square, subtract
from .intervals import FUNCTIONS, UFUNCS, Bounded, NotFollowed, Tape, rounded, widened

MOVING = (
    *(np.reshape, np.transpose, np.swapaxes, np.moveaxis, np.broadcast_to, np.expand_dims, np.squeeze, np.ravel),
    *(np.repeat, np.tile, np.roll, np.flip, np.take_along_axis, np.take, np.copy, np.atleast_1d, np.atleast_2d),
    *(np.tril, np.triu, np.diagonal, np.zeros_like, np.ones_like),
)


def _length(x: Bounded, axis: Any) -> int:
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return math.prod(x.shape[a] for a in axes)


def _sum_error(additions: int, n: int, size: Any) -> Any:
    """Of a sum of n numbers, whose absolute values sum to `size`; each may be flushed to 0 unless all are 0."""
    return np.where(size == 0, 0.0, additions * EPS * size + n * FLUSHED)


def add_reduce(x: Bounded, axis: Any = 0, keepdims: bool = False, **options: Any) -> Bounded:
    """A sum in any good order; sums of booleans are exact."""
    exact, low, high = (np.sum(end, axis=axis, keepdims=keepdims) for end in x.ends)
    if x.dtype == bool:
        return Bounded(x.tape, *(end.astype(np.float64) for end in (exact, low, high)))
    n = _length(x, axis)
    x.tape.counts(n)
    size = np.sum(x.magnitude, axis=axis, keepdims=keepdims)
    return widened(x.tape, exact, low, high, _sum_error(max(chain(n), 0), n, size))


def cumulative(x: Bounded, axis: Any = 0, **options: Any) -> Bounded:
    """Running sums: a chain through all numbers."""
    exact, low, high, size = (np.cumsum(end, axis=axis) for end in (*x.ends, x.magnitude))
    n = _length(x, axis)
    x.tape.counts(n)
    return widened(x.tape, exact, low, high, _sum_error(n - 1, n, size))


def reduction(function: Any) -> Callable[..., Bounded]:
    """max, min, any, all: selections."""

    def apply(x: Bounded, axis: Any = 0, keepdims: bool = False, **options: Any) -> Bounded:
        return x.map(lambda end: function(end, axis=axis, keepdims=keepdims))

    return apply


def mean(x: Bounded, axis: Any = None, keepdims: bool = False) -> Bounded:
    """A sum and a division, which is exact for a power of two."""
    n = _length(x, axis)
    total = add_reduce(x, axis, keepdims)
    error = 0.0 if n & (n - 1) == 0 else APPROXIMATE
    return rounded(x.tape, total.exact / n, total.low / n, total.high / n, error)


def var(x: Bounded, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Bounded:
    """The mean of squared deviations from the mean, in two passes."""
    n = _length(x, axis)
    total = add_reduce(square(subtract(x, mean(x, axis, True))), axis, keepdims)
    return divide(total, total.lift(float(n - ddof)))


def product(call: Callable[[Any, Any], Any], x: Bounded, y: Bounded, n: int) -> Bounded:
    """Sums of n products, each addition truncated as on tensor cores; computed factors may be rounded to the format."""
    x.tape.counts(n)
    off = [z.radius + (x.tape.u * z.magnitude if z.radius.any() else 0.0) for z in (x, y)]
    x.tape.roundings += any(z.radius.any() for z in (x, y))
    a, b = np.abs(x.exact), np.abs(y.exact)
    error = call(off[0], b) + call(a, off[1]) + call(off[0], off[1])
    error += _sum_error(2 * n, n, call(a + off[0], b + off[1]))
    exact = call(x.exact, y.exact)
    return widened(x.tape, exact, exact, exact, error)


def matmul(x: Bounded, y: Bounded) -> Bounded:
    """x @ y, (..., n, k), (..., k, m) -> (..., n, m)."""
    return product(np.matmul, x, y, x.shape[-1])


def einsum(first: Bounded, subscripts: str, *operands: Any) -> Bounded:
    """Of two arrays, with the result's letters given."""
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    if len(operands) != 2 or not arrow or "." in subscripts:
        raise NotFollowed(
            f"np.einsum({subscripts!r}) of {len(operands)} arrays", "write it as 'ij,jk->ik', of two arrays"
        )
    x, y = (first.lift(operand) for operand in operands)
    sizes = {
        c: n for part, z in zip(inputs.split(","), (x, y), strict=True) for c, n in zip(part, z.shape, strict=True)
    }
    n = math.prod(size for letter, size in sizes.items() if letter not in output)
    return product(lambda a, b: np.einsum(subscripts, a, b), x, y, n)


def where(first: Bounded, condition: Any, x: Any, y: Any) -> Bounded:
    """A choice; where rounding may decide, both."""
    c, x, y = first.lift(condition), first.lift(x), first.lift(y)
    if c.dtype != bool:
        raise NotFollowed(f"np.where with a condition of {c.dtype}", "compare the condition with 0")
    sure = c.low == c.high
    low, high = np.where(c.exact, x.low, y.low), np.where(c.exact, x.high, y.high)
    low = np.where(sure, low, np.minimum(x.low, y.low))
    return Bounded(c.tape, np.where(c.exact, x.exact, y.exact), low, np.where(sure, high, np.maximum(x.high, y.high)))


def clip(x: Bounded, a_min: Any = None, a_max: Any = None) -> Bounded:
    """`np.clip`: at least `a_min` and at most `a_max`, where given."""
    x = x if a_min is None else UFUNCS[np.maximum](x, x.lift(a_min))
    return x if a_max is None else UFUNCS[np.minimum](x, x.lift(a_max))


def joined(function: Any) -> Callable[..., Bounded]:
    """concatenate, stack and the like: of a sequence of arrays."""

    def apply(first: Bounded, arrays: Any, *args: Any, **options: Any) -> Bounded:
        parts = [first.lift(x) for x in arrays]
        return Bounded(
            first.tape, *(function(list(ends), *args, **options) for ends in zip(*(x.ends for x in parts), strict=True))
        )

    return apply


def split(first: Bounded, x: Bounded, *args: Any, **options: Any) -> list[Bounded]:
    """Equal parts along an axis."""
    return [Bounded(x.tape, *ends) for ends in zip(*(np.split(end, *args, **options) for end in x.ends), strict=True)]


def filled(first: Bounded, x: Any, value: Any, **options: Any) -> Bounded:
    """`np.full_like`: an array of the shape of `x`, with one exact number everywhere."""
    return first.lift(np.full(x.shape, value))


def _on_first(function: Callable[..., Bounded]) -> Callable[..., Bounded]:
    """A function of one array, as NumPy calls it for `Bounded`."""
    return lambda first, x, *args, **options: function(first.lift(x), *args, **options)


def _moved(function: Any) -> Callable[..., Bounded]:
    return _on_first(lambda x, *args, **options: x.map(lambda end: function(end, *args, **options)))


def _whole(function: Callable[..., Bounded]) -> Callable[..., Bounded]:
    """np.sum and the like, which reduce all axes by default."""
    return _on_first(lambda x, axis=None, **options: function(x, axis=axis, **options))


SELECTIONS = {
    np.max: np.maximum,
    np.amax: np.maximum,
    np.min: np.minimum,
    np.amin: np.minimum,
    np.any: np.logical_or,
    np.all: np.logical_and,
}
UFUNCS.update({np.matmul: matmul, (np.add, "reduce"): add_reduce, (np.add, "accumulate"): cumulative})
UFUNCS.update({(ufunc, "reduce"): reduction(f) for f, ufunc in SELECTIONS.items()})
FUNCTIONS.update({f: _moved(f) for f in MOVING})
FUNCTIONS.update({f: joined(f) for f in (np.concatenate, np.stack, np.hstack, np.vstack)})
FUNCTIONS.update({f: _whole(reduction(f)) for f in SELECTIONS})
FUNCTIONS.update(
    {
        np.sum: _whole(add_reduce),
        np.mean: _on_first(mean),
        np.var: _on_first(var),
        np.std: _on_first(lambda x, *args, **options: UFUNCS[np.sqrt](var(x, *args, **options))),
        np.cumsum: _on_first(cumulative),
        np.clip: _on_first(clip),
        np.where: where,
        np.einsum: einsum,
        np.dot: lambda first, x, y: matmul(first.lift(x), first.lift(y)),
        np.split: split,
        np.full_like: filled,
        np.empty_like: lambda first, x, **options: first.lift(np.zeros(x.shape)),
        np.argmax: _on_first(lambda x, *args, **options: np.argmax(x.certain("np.argmax"), *args, **options)),
        np.argmin: _on_first(lambda x, *args, **options: np.argmin(x.certain("np.argmin"), *args, **options)),
        np.shape: lambda first, x: x.shape,
        np.ndim: lambda first, x: x.ndim,
        np.size: lambda first, x: x.size,
    }
)


def running(truth: Callable[..., Any], tape: Tape, inputs: dict[str, Any]) -> Bounded:
    """The author's function on exact inputs, with intervals. Raises NotFollowed, or TypeError for another result."""
    given = {name: _argument(value, tape) for name, value in inputs.items()}
    with np.errstate(all="ignore"):
        result = truth(**given)
    if not isinstance(result, Bounded):
        raise TypeError(
            f"truth: expected it to return an array computed from its arguments, got {type(result).__name__}"
        )
    return result


def _argument(value: Any, tape: Tape) -> Any:
    """Floats, which are exact, become Bounded; ids, masks and parameters stay as they are."""
    return Bounded(tape, value.copy()) if getattr(value, "dtype", None) == np.float64 else value

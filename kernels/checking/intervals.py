"""Numbers that know how far a float32 computation of them may be off: intervals around exact values.

A `Bounded` array behaves like a NumPy array of its `exact` values, in float64. Beside each stands an interval
[`low`, `high`] that holds every result that a good computation in float32 may have. For such arrays NumPy calls the
functions in `interval_arithmetic` and `interval_functions`. Each applies the operation to the ends of the intervals,
and widens the result by its own rounding:

    + − × ÷ √     ε times the result                    exp, log, tanh, sin, cos, powers    4 ε
    sum, mean     (chain of additions) ε Σ|numbers|     products of matrices of n terms     2n ε Σ|products|

as in `bounds.py`. A factor of a matrix product that was computed may also be rounded to the format, so that tensor
cores can multiply it. Where a number may leave float32's range, its interval becomes infinite.

Comparisons give a `Bounded` of booleans, from False to True where rounding may decide, and `where` then takes in both
choices. Intervals forget that two numbers share an error: x − mean(x) is treated as if the errors were independent. So
a bound may be too wide, but never too narrow. What cannot be followed raises `NotFollowed`, which names the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from ernie_m.reference.array import Array

from .bounds import EPS, FLUSHED, SAFE

Triple = tuple[Any, Any, Any]


class NotFollowed(TypeError):
    """A function of NumPy, or a use of an array, that the default bound cannot follow."""

    def __init__(self, what: str, instead: str = "") -> None:
        advice = instead or "use functions that it can, or give the operation a bound: bound='three-way' or a function"
        super().__init__(f"{what}: the default bound cannot follow it; {advice}")


@dataclass
class Tape:
    """What the bounds on averages need to know of a computation.

    u: of the format, for the factors of matrix products. terms: in the longest sum. roundings: to the format, the last
    included. functions: how many were called.
    """

    u: float
    terms: int = 1
    roundings: int = 1
    functions: int = 0

    def counts(self, terms: int) -> None:
        """Note a sum of so many numbers."""
        self.terms = max(self.terms, terms)


# Filled by `interval_arithmetic` and `interval_functions`: ufuncs, pairs (ufunc, method), and other functions of NumPy.
UFUNCS: dict[Any, Callable[..., Any]] = {}
FUNCTIONS: dict[Any, Callable[..., Any]] = {}


class Bounded(NDArrayOperatorsMixin):
    """Exact numbers (or booleans) with intervals; see above."""

    def __init__(self, tape: Tape, exact: Any, low: Any = None, high: Any = None) -> None:
        self.tape = tape
        self.exact = np.asarray(exact)
        self.low = self.exact if low is None else np.asarray(low)
        self.high = self.exact if high is None else np.asarray(high)

    # What an array has.
    shape = property(lambda self: self.exact.shape)
    ndim = property(lambda self: self.exact.ndim)
    size = property(lambda self: self.exact.size)
    dtype = property(lambda self: self.exact.dtype)
    T = property(lambda self: self.transpose())

    @property
    def ends(self) -> Triple:
        """Exact, low and high."""
        return self.exact, self.low, self.high

    @property
    def radius(self) -> Array:
        """The largest distance from the exact number."""
        with np.errstate(invalid="ignore"):
            return np.asarray(
                np.where(self.low == self.high, 0.0, np.maximum(self.high - self.exact, self.exact - self.low))
            )

    @property
    def magnitude(self) -> Array:
        """The largest absolute value in each interval."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))

    def map(self, function: Callable[[Any], Any]) -> Bounded:
        """Move the numbers about: `function` is applied to the exact numbers and to both ends."""
        return Bounded(self.tape, *map(function, self.ends))

    def certain(self, what: str) -> Array:
        """The exact values, where rounding cannot change any. Raises NotFollowed, with `what`, where it can."""
        if not np.array_equal(self.low, self.high):
            raise NotFollowed(what, "rounding decides what is chosen: use np.where")
        return self.exact

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        function = UFUNCS.get(ufunc if method == "__call__" else (ufunc, method))
        name = getattr(ufunc, "__name__", repr(ufunc))
        if function is None or options.get("where", True) is not True:
            raise NotFollowed(f"np.{name}" + ("" if method == "__call__" else f".{method}"))
        options.pop("where", None)
        options.pop("dtype", None)
        self.tape.functions += 1
        bounded = [self.lift(x) for x in inputs] if method == "__call__" else [self.lift(inputs[0]), *inputs[1:]]
        with np.errstate(all="ignore"):
            result = function(*bounded, **options)
        return result if out is None else self.store(out[0], result)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        handler = FUNCTIONS.get(function)
        if handler is None or options.get("out") is not None or options.get("where", True) is not True:
            raise NotFollowed(f"np.{function.__name__}")
        options = {name: value for name, value in options.items() if name not in ("out", "dtype", "where")}
        self.tape.functions += 1
        with np.errstate(all="ignore"):
            return handler(self, *args, **options)

    def lift(self, x: Any) -> Bounded:
        """A number or an array that takes part in the computation, rounded to float32."""
        if isinstance(x, Bounded):
            return x
        values = np.asarray(x)
        if values.dtype.kind not in "biuf":
            raise NotFollowed(f"{type(x).__name__} {x!r}")
        if values.dtype.kind == "b":
            return Bounded(self.tape, values)
        values = values.astype(np.float64)
        with np.errstate(over="ignore"):
            off = np.where(values.astype(np.float32) == values, 0.0, EPS * np.abs(values) + FLUSHED)
        off = np.where(np.isfinite(values), off, 0.0)
        return Bounded(self.tape, values, values - off, values + off)

    @staticmethod
    def store(out: Any, result: Bounded) -> Bounded:
        """Write a result to `out`, as in x -= y."""
        if not isinstance(out, Bounded):
            raise NotFollowed("out= with a plain array", "allocate it with np.empty_like or np.zeros_like")
        out[...] = result
        return out

    def __getitem__(self, index: Any) -> Bounded:
        parts = index if isinstance(index, tuple) else (index,)
        known = tuple(part.certain("indexing") if isinstance(part, Bounded) else part for part in parts)
        return self.map(lambda x: x[known if isinstance(index, tuple) else known[0]])

    def __setitem__(self, index: Any, value: Any) -> None:
        # Arrays may be shared between exact, low and high, and with the argument that they came from.
        if self.low is self.exact or self.high is self.exact or not self.exact.flags.writeable:
            self.exact, self.low, self.high = (np.array(x) for x in self.ends)
        for mine, new in zip(self.ends, self.lift(value).ends, strict=True):
            mine[index] = new

    def __len__(self) -> int:
        return len(self.exact)

    def __iter__(self) -> Iterator[Bounded]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.certain("a condition of if or while"))

    def __float__(self) -> float:
        raise NotFollowed("float(...) or a function of math", "use NumPy's functions")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise NotFollowed(
            "conversion to a plain array, as by assigning to one", "allocate it with np.empty_like or np.zeros_like"
        )

    def __getattr__(self, name: str) -> Any:
        """A method of arrays: x.sum(...) is np.sum(x, ...)."""
        if name.startswith("_"):
            # What NumPy, copy and pickle look for.
            raise AttributeError(name)
        function = getattr(np, {"flatten": "ravel"}.get(name, name), None)
        if function not in FUNCTIONS:
            raise NotFollowed(f"ndarray.{name}")
        return lambda *args, **options: self.__array_function__(function, (), (self, *args), options)

    def astype(self, dtype: Any, **options: Any) -> Bounded:
        """Booleans and floats to floats; anything else is not followed."""
        if np.dtype(dtype).kind != "f":
            raise NotFollowed(f"ndarray.astype({np.dtype(dtype).name})")
        return self.map(lambda x: x.astype(np.float64))

    def reshape(self, *shape: Any, **options: Any) -> Bounded:
        """As of an array."""
        return self.map(lambda x: x.reshape(*shape, **options))

    def transpose(self, *axes: Any) -> Bounded:
        """As of an array."""
        return self.map(lambda x: x.transpose(*axes))


def rounded(tape: Tape, exact: Any, low: Any, high: Any, error: Any = EPS) -> Bounded:
    """A result whose rounding is off by at most `error` times its magnitude.

    Infinite exact results stay exact; other results that may leave float32's range may be anything.
    """
    size = np.maximum(np.abs(low), np.abs(high))
    return widened(tape, exact, low, high, np.where(size == 0, 0.0, error * size + FLUSHED))


def widened(tape: Tape, exact: Any, low: Any, high: Any, off: Any) -> Bounded:
    """A result that is off by at most `off` from the interval."""
    exact = np.asarray(exact, np.float64)
    low, high = low - off, high + off
    unsafe = ~(np.maximum(np.abs(low), np.abs(high)) <= SAFE)
    low, high = np.where(unsafe, -np.inf, low), np.where(unsafe, np.inf, high)
    infinite = np.isinf(exact)
    return Bounded(tape, exact, np.where(infinite, exact, low), np.where(infinite, exact, high))

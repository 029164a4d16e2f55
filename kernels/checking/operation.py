"""`Operation`: everything that is known about one, of this package (`operations`) or of your own (`examples`)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from ..runtime.variants import Variant
from .bounds import Expected, expected
from .default_bounds import DEFAULTS, Truth, exactly
from .drawing import Draw
from .formats import Format
from .letters import Drawn

Inputs = dict[str, Any]
# normal(*shape) draws normally distributed numbers.
Normal = Callable[..., Any]


@dataclass(frozen=True)
class Operation:
    """One operation, such as

        RMS_NORM = Operation(
            name="rms_norm",
            call="f(x, gamma, eps)",
            truth=lambda x, gamma, eps: x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * gamma,
            draw=drawn(x="N E", gamma="E", eps=(1e-5, 1e-12)),
        )
        check(my_rms_norm, RMS_NORM)

    call: how a function for it is called; the names are those of the inputs, in order.
    draw: draws inputs; `drawn` makes one from letters, anything else is called with hypothesis' `draw` and the format.
    name: what reports call it; needed unless it is a key of OPERATIONS.
    truth: the definition, a NumPy function that is called by names, with float64 arrays, and returns one.
    bound: the error that a good computation in float32 may have: "running" and "three-way" find it (`default_bounds`);
        a function (format, inputs...) returns it, one number for each result. Rounding to the dtype is added.
    expected: (format, inputs...) -> the exact result and its bound, in place of `truth` and `bound` (see `bounds`).
    results: the names of the results, if the function returns a tuple of several; `expected` then gives `several`.
    fixed: (normal) -> fixed random inputs of realistic sizes, for bounds on averages, with at least 4,096 results;
        `normal(*shape)` draws normally distributed numbers. By default those of `drawn`.
    crop: (inputs, index) -> the part of the inputs that the result at `index` depends on; None: all of them.
    kernel: this package's function for it.
    variants: target -> the kernel's compiled variants.
    examples: how many inputs `verify` draws for each dtype in Triton's interpreter.

    Raises ValueError for fields that are missing or do not agree.
    """

    call: str
    draw: Draw
    name: str = ""
    truth: Truth | None = None
    bound: str | Callable[..., Array] = "running"
    expected: Callable[..., Expected] | None = None
    results: tuple[str, ...] = ()
    fixed: Callable[[Normal], Inputs] | None = None
    crop: Callable[[Inputs, tuple[int, ...]], Inputs] | None = None
    kernel: Callable[..., Any] | None = None
    variants: Callable[[str], Iterator[Variant]] | None = None
    examples: int = 25

    def __post_init__(self) -> None:
        if not re.fullmatch(r"f\(\w+(, \w+)*\)", self.call):
            raise ValueError(f"call: expected it to look like 'f(x, gamma, eps)', got {self.call!r}")
        if (self.truth is None) == (self.expected is None):
            given = "neither" if self.truth is None else "both"
            raise ValueError(f"{self.name or self.call}: expected one of truth and expected, got {given}")
        if isinstance(self.bound, str) and self.bound not in DEFAULTS:
            raise ValueError(f"bound: expected a function or one of {', '.join(DEFAULTS)}, got {self.bound!r}")
        if isinstance(self.draw, Drawn) and list(self.draw.arguments) != self.arguments:
            raise ValueError(f"draw: expected the arguments of {self.call}, got {', '.join(self.draw.arguments)}")
        if self.results and self.expected is None:
            raise ValueError(f"results: expected none without `expected`, got {', '.join(self.results)}")
        if self.fixed is None and not isinstance(self.draw, Drawn):
            raise ValueError("fixed: expected a function of `normal`, as draw was not made by `drawn`; got None")
        if self.truth is not None:
            try:
                inspect.signature(self.truth).bind(**dict.fromkeys(self.arguments))
            except TypeError as error:
                raise ValueError(f"truth: expected the arguments of {self.call}: {error}") from None

    @property
    def arguments(self) -> list[str]:
        """The names of the inputs, in call order."""
        return self.call[2:-1].split(", ")

    def expect(self, format: Format, inputs: Mapping[str, Any]) -> Expected:
        """The exact result on these inputs, and the bound on the error of each number."""
        if self.expected is not None:
            found = self.expected(format, **inputs)
            names = tuple(part.name for part in found.parts)
            if names != self.results:
                raise ValueError(f"results: expected those of `expected`, {names}, got {self.results}")
            return found
        assert self.truth is not None
        if isinstance(self.bound, str):
            return DEFAULTS[self.bound](format, self.truth, dict(inputs))
        exact = exactly(self.truth, dict(inputs))
        return expected(format, exact, np.broadcast_to(self.bound(format, **inputs), exact.shape))

    def fixed_inputs(self, normal: Normal) -> Inputs:
        """The fixed random inputs, before rounding to the format."""
        if self.fixed is not None:
            return self.fixed(normal)
        assert isinstance(self.draw, Drawn)
        return self.draw.fixed(normal)

    def sized(self, sizes: Mapping[str, Any]) -> Operation:
        """The same operation with drawn sizes by letter, each an integer or several to choose from.

        Raises ValueError for unknown letters, and if inputs are not declared by letters.
        """
        if not isinstance(self.draw, Drawn):
            raise ValueError(
                f"sizes: expected an operation whose inputs are made by `drawn`, got {self.name}: use cases"
            )
        return replace(self, draw=self.draw.sized(**sizes))


def one_number(inputs: Inputs, index: tuple[int, ...]) -> Inputs:
    """For elementwise operations: the number at `index`, from arguments (rows, columns) and (columns,)."""
    row, column = (slice(i, i + 1) for i in index)
    return {name: value[row, column] if value.ndim == 2 else value[column] for name, value in inputs.items()}


def one_row(inputs: Inputs, index: tuple[int, ...]) -> Inputs:
    """For operations on rows: the row of `index`; arguments that all rows share stay whole."""
    row = slice(index[0], index[0] + 1)
    return {name: value[row] if np.ndim(value) == 2 else value for name, value in inputs.items()}


def one_token(inputs: Inputs, index: tuple[int, ...]) -> Inputs:
    """For embeddings: the ids of one token."""
    row = slice(index[0], index[0] + 1)
    return inputs | {name: inputs[name][row] for name in ("input_ids", "position_ids")}


# How an operation is cropped whose rows depend on none of the others.
BY_ROW = (one_row, one_number, one_token)


def one_head(inputs: Inputs, index: tuple[int, ...]) -> Inputs:
    """For attention of packed tokens: one head of all of them."""
    return inputs | {"qkv": inputs["qkv"][:, :, index[1] : index[1] + 1]}


def joined(*parts: Callable[[str], Iterator[Variant]]) -> Callable[[str], Iterator[Variant]]:
    """The variants of several pages."""
    return lambda target: chain.from_iterable(part(target) for part in parts)

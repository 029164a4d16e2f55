"""Reduces a failing input to a smaller, plainer one, using what hypothesis cannot know about the operations.

Elementwise operations fail at one number, normalisations in one row, attention in one head: the rest is cut off. Then
sequences, heads, tokens, columns and the head size are cut, from the end and from the start, as far as the function
still fails in the same way. Last, all numbers are rounded to the fewest bits that still fail, so that they are easy to
read and type. The number of calls is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .attention_inputs import RANGES, between, rebuilt, spans_of, with_tokens
from .drawing import HEAD_SIZES, Rows
from .letters import Drawn, letters_of
from .operation import Inputs
from .operations import Case
from .report import Failure

FEW_BITS = (1, 2, 3, 5, 8)
MOST_CALLS = 150
# The axes of arguments by letter, for operations whose `draw` does not tell; those of one letter are cut together.
# A digit stands for an axis that stays.
LETTERS: dict[str, dict[str, str]] = {
    "embed": {"input_ids": "T", "position_ids": "T", "word": "V E", "position": "P E", "gamma": "E", "beta": "E"},
    "embed_vjp": {
        "dy": "T E",
        "input_ids": "T",
        "position_ids": "T",
        "word": "V E",
        "position": "P E",
        "gamma": "E",
    },
    "linear_cross_entropy_vjp": {"hidden": "N E", "weight": "V E", "bias": "V", "labels": "N"},
    "attention_head": {"q": "S D", "k": "S D", "v": "S D"},
    "packed_attention": {"qkv": "T 3 H D"},
    "packed_attention_vjp": {"d_context": "T H D", "qkv": "T 3 H D"},
    "group_attention": {"qkv": "T 3 H D"},
    "group_attention_vjp": {"d_context": "T H D", "qkv": "T 3 H D"},
    "first_token_attention": {"q": "B H D", "kv": "T 2 H D"},
    "first_token_attention_vjp": {"d_context": "B H D", "q": "B H D", "kv": "T 2 H D"},
}


def reduce(failure: Failure, run: Callable[[Case], Any], head_size: int = HEAD_SIZES[0]) -> Failure:
    """The failure on the smallest candidate on which `run` also raises one; `failure` itself if there is none.

    `head_size`: the smallest to try in attention; Triton kernels need 16, NumPy functions 1.
    """
    # Averages need many numbers, and an array too large for memory is not one of NumPy's.
    virtual = any(hasattr(x, "shape") and not isinstance(x, np.ndarray) for x in failure.inputs.values())
    if virtual or (failure.verdict is not None and failure.verdict.index is None):
        return failure
    search = Search(failure, run, head_size)
    for _ in range(2):
        before = search.failure
        search.crop()
        search.cut_sequences()
        search.cut_groups()
        search.cut_labels()
        for letter in axes_of(search.case):
            search.cut(letter)
        if search.failure is before:
            break
    search.simplify()
    return search.failure


class Search:
    """The smallest `failure` so far, and the number of `calls` left to find a smaller one."""

    def __init__(self, failure: Failure, run: Callable[[Case], Any], head_size: int) -> None:
        self.failure, self.run, self.head_size, self.calls = failure, run, head_size, MOST_CALLS

    @property
    def case(self) -> Case:
        """The smallest failing case so far."""
        return self.failure.case

    def fails(self, inputs: Inputs) -> bool:
        """Whether the function fails on these inputs in the same way; if so, they are kept."""
        if self.calls <= 0:
            return False
        self.calls -= 1
        try:
            self.run(replace(self.case, inputs=inputs))
        except Failure as found:
            if _kind(found) == _kind(self.failure):
                self.failure = found
                return True
        except Exception:
            # The operation is not defined for such inputs: an id outside a table that was cut, say.
            return False
        return False

    def crop(self) -> None:
        """Keep the part of the input that the worst number depends on."""
        crop, verdict = self.case.operation.crop, self.failure.verdict
        if crop is not None and verdict is not None and verdict.index is not None:
            self.fails(crop(self.case.inputs, verdict.index))

    def cut(self, letter: str) -> None:
        """Shorten all axes of a letter."""
        axes, inputs = axes_of(self.case)[letter], self.case.inputs

        def part(start: int, end: int) -> bool:
            kept = {name: np.take(inputs[name], range(start, end), axis) for name, axis in axes}
            return self.fails(inputs | kept)

        name, axis = axes[0]
        if letter == "D" and "attention" in self.case.op:
            sizes = range(1, 16) if self.head_size == 1 else HEAD_SIZES
            if any(size < inputs[name].shape[axis] and part(0, size) for size in sizes):
                return
        else:
            shortest(inputs[name].shape[axis], part)

    def cut_sequences(self) -> None:
        """Leave out sequences, and shorten each that is left."""
        if "cu_seqlens" not in self.case.inputs:
            return
        self._keep([self._own()])
        count = len(spans_of(self.case.inputs))
        for i in reversed(range(count)):
            now = range(len(spans_of(self.case.inputs)))
            self._keep([j for j in now if j != i])
        for i in range(len(spans_of(self.case.inputs))):
            inputs, spans = self.case.inputs, spans_of(self.case.inputs)
            first, last = spans[i]

            def part(a: int, b: int, inputs: Any = inputs, spans: Any = spans, i: int = i, first: int = first) -> bool:
                cut = [*spans[:i], (first + a, first + b), *spans[i + 1 :]]
                return self.fails(rebuilt(inputs, range(len(spans)), cut))

            shortest(last - first, part)

    def _own(self) -> int:
        """The sequence of the worst number; the last one if there is no such number."""
        spans, verdict = spans_of(self.case.inputs), self.failure.verdict
        if verdict is None or verdict.index is None or self.case.operation.results:
            return len(spans) - 1
        at = verdict.index[0]
        if self.case.op == "first_token_attention":
            return at
        return next(i for i, (start, end) in enumerate(spans) if start <= at < end)

    def _keep(self, sequences: Sequence[int]) -> None:
        """Leave out all sequences but these."""
        spans = spans_of(self.case.inputs)
        if 0 < len(sequences) < len(spans):
            self.fails(rebuilt(self.case.inputs, sequences, [spans[i] for i in sequences]))

    def cut_groups(self) -> None:
        """Leave out groups, then the tokens of none, then those at the ends of each range."""
        if "groups" not in self.case.inputs:
            return
        for i in reversed(range(len(self.case.inputs["groups"]))):
            self.fails(self.case.inputs | {"groups": np.delete(self.case.inputs["groups"], i, axis=0)})
        count = len(self.case.inputs["groups"])
        kept = [between(self.case.inputs, i, *ends) for i in range(count) for ends in RANGES]
        self.fails(with_tokens(self.case.inputs, np.any(kept, axis=0)))
        for i, ends in product(range(count), RANGES):
            inputs = self.case.inputs
            inside = between(inputs, i, *ends)

            def part(a: int, b: int, inputs: Any = inputs, inside: Array = inside) -> bool:
                first = int(inside.argmax())
                kept = ~inside
                kept[first + a : first + b] = True
                return self.fails(with_tokens(inputs, kept))

            if inside.any() and not self.fails(with_tokens(inputs, ~inside)):
                shortest(int(inside.sum()), part)

    def cut_labels(self) -> None:
        """Let all labels be the first word, so that the others can be cut; missing ones stay."""
        if "labels" in self.case.inputs:
            self.fails(self.case.inputs | {"labels": np.minimum(self.case.inputs["labels"], 0)})

    def simplify(self) -> None:
        """Round all numbers to few significant bits."""
        self.calls = max(self.calls, len(FEW_BITS))
        inputs = self.case.inputs
        floats = {name: x for name, x in inputs.items() if getattr(x, "dtype", None) == np.float64}
        for bits in FEW_BITS:
            if self.fails(inputs | {name: few_bits(x, bits) for name, x in floats.items()}):
                return


def shortest(n: int, fails: Callable[[int, int], bool]) -> None:
    """Find short ranges of range(n) that fail: cut from the end, then from the start, as if longer ones always fail.

    Small sizes come first, because calls with them are cheap: 1, 2, 4, ..., then halving the interval that is left.
    """

    def least(most: int, fails: Callable[[int], bool]) -> int:
        low, high = 0, 1
        while high < most and not fails(high):
            low, high = high, 2 * high
        high = min(high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fails(middle) else (middle, high)
        return high

    end = least(n, lambda size: fails(0, size))
    least(end, lambda size: fails(end - size, end))


def axes_of(case: Case) -> dict[str, list[tuple[str, int]]]:
    """letter -> (argument, axis) for all axes that can be cut together, as they have the same size, above 1."""
    found: dict[str, list[tuple[str, int]]] = {}
    sizes: dict[str, set[int]] = {}
    for name, letters in _letters(case).items():
        shape = np.shape(case.inputs[name])
        for axis, letter in enumerate(letters if len(letters) == len(shape) else ()):
            found.setdefault(letter, []).append((name, axis))
            sizes.setdefault(letter, set()).add(shape[axis])
    # Tokens and sequences that cu_seqlens or groups count are cut together with them.
    kept = {"T", "B"} if {"cu_seqlens", "groups"} & set(case.inputs) else set()
    return {x: axes for x, axes in found.items() if not x.isdigit() and x not in kept and len(sizes[x]) == 1}


def _letters(case: Case) -> dict[str, list[str]]:
    draw = case.operation.draw
    if isinstance(draw, Drawn):
        return {name: letters_of(spec) for name, spec in draw.arguments.items()}
    if isinstance(draw, Rows):
        return {name: ["N", "E"][2 - count :] for name, count in draw.axes.items()}
    return {name: letters.split() for name, letters in LETTERS.get(case.op, {}).items()}


def _kind(failure: Failure) -> str:
    """What is wrong, without its numbers."""
    return "numbers" if failure.verdict is not None else re.sub(r"\d+", "#", failure.reason)


def few_bits(values: Array, bits: int) -> Array:  # (...) float64 -> (...) float64
    """The nearest numbers with `bits` significant bits."""
    mantissas, exponents = np.frexp(values)  # values = m · 2^exponent, 1/2 <= |m| < 1
    # Of an array without axes, ufuncs make a scalar.
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissas, bits)), exponents - bits))

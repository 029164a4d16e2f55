"""Inputs declared by letters: `drawn(x="N E", gamma="E", eps=(1e-5, 1e-12))` draws all three, with sizes that agree.

A letter is the name of a size. Each is drawn around blocks of 64 and 128 if it is the last axis of an argument, and
else from a few small ones (`drawing`), unless `sized` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .drawing import KINDS, MAGNITUDES, OFFSETS, ROWS, SIZES, numbers
from .formats import Format

# The sizes of fixed data, for letters without sizes of their own: last axes, other axes, and an axis that is alone.
FIXED_LAST, FIXED_OTHER, FIXED_ALONE = 768, 16, 8192


@dataclass(frozen=True)
class Booleans:
    """A mask: True with a probability that is drawn, too, so that whole rows are True or False now and then."""

    letters: str


@dataclass(frozen=True)
class Made:
    """An argument that a function makes: make(rng, **sizes), with the sizes of `letters`."""

    letters: str
    make: Callable[..., Any]


@dataclass(frozen=True)
class Drawn:
    """Draws the arguments of one call, in call order; see `drawn`."""

    arguments: Mapping[str, str | Booleans | Made | Sequence[float]]
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def letters(self) -> list[str]:
        """All letters, in the order of their first use."""
        return list(dict.fromkeys(letter for spec in self.arguments.values() for letter in letters_of(spec)))

    @property
    def last(self) -> set[str]:
        """The letters of last axes."""
        return {found[-1] for spec in self.arguments.values() if (found := letters_of(spec))}

    def sized(self, **sizes: Sequence[int] | int) -> Drawn:
        """The same with other sizes to choose from. Raises ValueError for an unknown letter or a size below 1."""
        chosen = {}
        for letter, found in sizes.items():
            if letter not in self.letters:
                raise ValueError(f"sizes: expected any of {', '.join(self.letters)}, got {letter!r}")
            chosen[letter] = tuple(found) if isinstance(found, (tuple, list, range)) else (found,)
            if not chosen[letter] or any(type(n) is not int or n < 1 for n in chosen[letter]):
                raise ValueError(f"sizes: {letter}: expected integers of at least 1, got {found!r}")
        return replace(self, sizes={**self.sizes, **chosen})

    def __call__(self, draw: Any, format: Format) -> dict[str, Any]:
        """Draw with hypothesis; floats are numbers of the format."""
        from hypothesis import strategies as st

        def pick(choices: Sequence[Any]) -> Any:
            return draw(st.sampled_from(choices))

        sizes = {x: pick(self.sizes.get(x) or (SIZES if x in self.last else ROWS)) for x in self.letters}
        inputs = {}
        for seed, (name, spec) in enumerate(self.arguments.items()):
            letters = letters_of(spec)
            shape = tuple(sizes[letter] for letter in letters)
            # Each argument has its own seed, so that no two are the same.
            number = draw(st.integers(0, 99)) * 16 + seed if letters else 0
            if isinstance(spec, str):
                offsets = OFFSETS if len(shape) > 1 else OFFSETS[:2]
                inputs[name] = numbers(format, shape, number, pick(MAGNITUDES), pick(offsets), pick(KINDS))
            else:
                rng = np.random.default_rng(number)
                share = pick((0.5, 0.9, 0.02, 1.0)) if isinstance(spec, Booleans) else 0.0
                made = _other(spec, shape, sizes, rng, share, pick)
                inputs[name] = format.round(made) if getattr(made, "dtype", None) == np.float64 else made
        return inputs

    def fixed(self, normal: Callable[..., Array]) -> dict[str, Any]:
        """Random inputs of realistic sizes: the largest of `sizes`, or FIXED_LAST, FIXED_OTHER and FIXED_ALONE."""
        alone = len(self.letters) == 1
        other = {x: FIXED_ALONE if alone else FIXED_LAST if x in self.last else FIXED_OTHER for x in self.letters}
        sizes = {letter: max(self.sizes.get(letter, (n,))) for letter, n in other.items()}
        inputs = {}
        for seed, (name, spec) in enumerate(self.arguments.items()):
            shape = tuple(sizes[letter] for letter in letters_of(spec))
            rng = np.random.default_rng(seed)
            inputs[name] = (
                normal(*shape) if isinstance(spec, str) else _other(spec, shape, sizes, rng, 0.75, lambda x: x[0])
            )
        return inputs


def drawn(**arguments: str | Booleans | Made | Sequence[float]) -> Drawn:
    """Inputs by name, in call order: letters ("N E") for floats, a tuple of numbers for a parameter that is one of
    them, `Booleans("N E")` for a mask, `Made("N", make)` for anything else, such as ids.

    Raises ValueError for a specification that is none of these.
    """
    for name, spec in arguments.items():
        empty = not letters_of(spec) if isinstance(spec, (str, Booleans)) else not isinstance(spec, Made) and not spec
        if empty or not isinstance(spec, (str, Booleans, Made, tuple, list)):
            raise ValueError(
                f"{name}: expected letters such as 'N E', a tuple of numbers, Booleans or Made, got {spec!r}"
            )
    return Drawn(arguments)


def letters_of(spec: Any) -> list[str]:
    """The letters of an argument's axes; none for a parameter."""
    text = spec if isinstance(spec, str) else getattr(spec, "letters", "")
    return str(text).split()


def _other(spec: Any, shape: tuple[int, ...], sizes: dict[str, int], rng: Any, share: float, pick: Any) -> Any:
    """An argument other than floats."""
    if isinstance(spec, Booleans):
        return rng.random(shape) < share
    if isinstance(spec, Made):
        return spec.make(rng, **{letter: sizes[letter] for letter in letters_of(spec)})
    return pick(spec)

"""Triton's interpreter with the programs of every launch in a random order.

The interpreter runs them in the order of their ids, and a GPU in any. A kernel whose programs do not depend on each
other gives the same bits in every order; one that adds to what another program wrote, with atomics say, does not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import interpreter
from .interpreter import upstream

Place = tuple[int, ...]


@contextmanager
def shuffled_grid(seed: int) -> Iterator[list[list[Place]]]:
    """Inside, launches in the interpreter run in an order that depends on `seed`; yields each launch's, as it begins.

    Raises RuntimeError without the interpreter.
    """
    interpreter.install()
    builder = upstream.interpreter_builder
    before = builder.__class__
    rng, launches = random.Random(seed), list[list[Place]]()
    left: Iterator[Place] = iter(())

    class Shuffled(before):  # type: ignore[misc, valid-type]
        def set_grid_dim(self, *sizes: int) -> None:
            nonlocal left
            super().set_grid_dim(*sizes)
            places = list(itertools.product(*map(range, sizes)))
            rng.shuffle(places)
            launches.append(places)
            left = iter(places)

        def set_grid_idx(self, *place: int) -> Any:
            super().set_grid_idx(*next(left))

    builder.__class__ = Shuffled
    try:
        yield launches
    finally:
        builder.__class__ = before

"""Runs the programs of Triton kernels in a random order, in the interpreter. Used by the notebooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ernie_m.kernels.runtime.shuffled_grid import shuffled_grid


def in_random_order(seed: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function; the programs of each kernel that it launches run in an order that depends on `seed`.

    The interpreter runs programs in the order of their ids, and a GPU in any. `shuffled_grid` announces other ids.
    """
    with shuffled_grid(seed):
        return function(*arguments)

"""CAMLM's rule as rectangles: an order of the tokens in which each range of queries has one range of keys."""

from __future__ import annotations

import numpy as np

from ..array import Array
from ..losses import IGNORE_INDEX
from .examples import Example


def arrange(example: Example) -> tuple[Array, Array]:  # -> (n,), (G, 5)
    """The order of the tokens, and the `groups` of `group_attention` for the example in that order.

    A pair becomes [X, M_y, Y, M_x], text X and Y and masks M of its sides. Raises ValueError where that is no
    rectangle, as in an example in which masks see each other: it needs the dense mask.
    """
    n = len(example.input_ids)
    if example.sees is None:
        return np.arange(n), np.array([[0, n, n, 0, n]])
    mask, second = example.labels != IGNORE_INDEX, example.sides == 1
    parts = [np.flatnonzero(part) for part in (~mask & ~second, mask & second, ~mask & second, mask & ~second)]
    order = np.concatenate(parts)
    x, x_end, y, _ = np.cumsum([len(part) for part in parts])
    groups = np.array([[0, x_end, x, 0, x], [x_end, n, y, x_end, y]])
    if not np.array_equal(dense(groups, n), example.sees[np.ix_(order, order)]):
        raise ValueError("example: expected text that sees its own side and masks that see the other and themselves")
    return order, groups


def dense(groups: Array, n: int) -> Array:  # (G, 5) -> (n, n)
    """What each row sees, as a matrix: True where the row may attend to the column."""
    sees = np.zeros((n, n), bool)
    for q0, q1, first, k0, k1 in groups.tolist():
        sees[q0:q1, k0:k1] = True
        sees[range(first, q1), range(first, q1)] = True
    return sees

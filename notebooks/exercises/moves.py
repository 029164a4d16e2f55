"""The exercises that only move numbers: their arguments for a drawn batch, and the expected result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ernie_m import reference
from ernie_m.reference.array import Array


def mask_of(lengths: Array, S: int) -> Array:
    """The mask from its definition, position by position."""
    return np.array([[s < length for s in range(S)] for length in lengths.tolist()], dtype=bool)


@st.composite
def batches(draw: Any) -> Array:
    """A (B, S) mask of ragged rows; some may be empty or full, but not all are empty."""
    S = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(0, S), min_size=1, max_size=4).filter(any))
    return mask_of(np.array(lengths), S)


def _counted(*shape: int) -> Array:
    """1, 2, 3, ...: all different, so that a misplaced number shows."""
    return np.arange(1, np.prod(shape, dtype=int) + 1, dtype=np.float32).reshape(shape)


def _mask_inputs(mask: Array, E: int) -> dict[str, Any]:
    return {"lengths": np.count_nonzero(mask, axis=1), "S": mask.shape[1]}


def _unpad_inputs(mask: Array, E: int) -> dict[str, Any]:
    return {"x": _counted(*mask.shape, E), "mask": mask}


def _pad_inputs(mask: Array, E: int) -> dict[str, Any]:
    return {"packed": _counted(int(np.count_nonzero(mask)), E), "mask": mask}


def _unpad(x: Array, mask: Array) -> Array:
    return reference.unpad(x, reference.token_indices(mask))


def _pad(packed: Array, mask: Array) -> Array:
    return reference.pad(packed, reference.token_indices(mask), *mask.shape)


# For each exercise: the arguments for a drawn batch, and the expected result for them.
MOVES: dict[str, tuple[Callable[[Array, int], dict[str, Any]], Callable[..., Array]]] = {
    "mask_from_lengths": (_mask_inputs, mask_of),
    "unpad": (_unpad_inputs, _unpad),
    "pad": (_pad_inputs, _pad),
}

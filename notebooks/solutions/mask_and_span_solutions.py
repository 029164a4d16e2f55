"""Solutions to `exercises/05_masks_and_spans`. Try the exercises first, then compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def leak_proof_mask(sides: Array, masked: Array) -> Array:  # (S,) x 2 -> (S, S)
    same = sides[:, None] == sides[None, :]
    text = ~masked[None, :]
    # Text has read nothing but its own side's text, however many layers there are. So what a mask reads from the other
    # side's text is the other side, and only that. Nobody else reads a mask: it has read the other side.
    sees = np.where(masked[:, None], ~same, same) & text
    return sees | np.eye(len(sides), dtype=bool)


def pair_spans(starts: Array, ends: Array, threshold: float) -> list[tuple[int, int, float]]:  # (n,) x 2 -> spans
    spans = []
    start = None
    for place in range(len(starts)):
        # A later start replaces an earlier one that no end has taken.
        if starts[place] > threshold:
            start = place
        if ends[place] > threshold:
            if start is not None:
                spans.append((start, place, float(starts[start] * ends[place])))
            # The next span begins after this end.
            start = None
    return spans

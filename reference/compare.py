"""Comparing two forward passes: the first entry where their traces differ, and by how much.

    with trace() as a:
        model(input_ids, attention_mask=mask)
    with trace_torch(module) as b:
        module(...)
    print(compare(a, b, mask, tolerance=1e-5))

A faulty port goes wrong at some layer; the first layer that differs is where to look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .array import Array
from .trace import Entry

MAPS = ("scores", "probs")  # (B, H, S, S): positions are the last two axes, not axis 1


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two traces. True if they agree.

    `name` is the first entry, in order of computation, with an error above `tolerance` (None if there is none); `index`
    is the position of its largest error, and `values` the two values there. `errors` has the error of every entry up to
    that one. `not_compared` lists the names that only one trace has.
    """

    name: str | None
    error: float
    tolerance: float
    index: tuple[int, ...] = ()
    values: tuple[float, float] = (0.0, 0.0)
    errors: Mapping[str, float] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.name is None

    def __str__(self) -> str:
        if self.name is None:
            return f"{len(self.errors)} entries agree, largest error {self.error:.2e} (tolerance {self.tolerance:.2e})"
        a, b = self.values
        return (
            f"the traces first differ at {self.name}: error {self.error:.2e} (tolerance {self.tolerance:.2e}), "
            f"{a!r} against {b!r} at {list(self.index)}; {len(self.errors) - 1} entries before it agree"
        )


def compare(a: Mapping[str, Entry], b: Mapping[str, Entry], mask: Any = None, tolerance: float = 1e-5) -> Comparison:
    """Compare two traces entry by entry, in the order of `a`, and stop at the first that differs.

    An entry's error is its largest difference, divided by the largest magnitude in `b` if that exceeds 1; a nan in
    either makes it infinite. Only real tokens are compared: those of the (B, S) `mask`, if one is passed, and of packed
    entries.

    Raises ValueError if the traces have no names in common.
    """
    names = [name for name in a if name in b]
    not_compared = tuple(name for name in [*a, *b] if (name in a) != (name in b))
    if not names:
        raise ValueError(f"traces: expected names in common, got {list(a)[:3]}... and {list(b)[:3]}...")
    errors: dict[str, float] = {}
    for name in names:
        x, y = a[name].padded(), b[name].padded()
        if x.shape != y.shape:
            errors[name] = np.inf
            return Comparison(name, np.inf, tolerance, x.shape, (np.nan, np.nan), errors, not_compared)
        valid = _valid(name, x.shape, a[name], b[name], mask)
        difference = np.where(valid, np.abs(np.subtract(x, y, dtype=np.float64)), 0.0)
        difference = np.where(np.isnan(difference), np.inf, difference)
        scale = max(1.0, float(np.abs(y, where=valid, out=np.zeros(y.shape, y.dtype)).max(initial=0.0)))
        errors[name] = float(difference.max(initial=0.0)) / scale
        if not errors[name] <= tolerance:
            index = tuple(int(i) for i in np.unravel_index(difference.argmax(), x.shape))
            return Comparison(name, errors[name], tolerance, index, (x[index], y[index]), errors, not_compared)
    return Comparison(None, max(errors.values()), tolerance, errors=errors, not_compared=not_compared)


def _valid(name: str, shape: tuple[int, ...], a: Entry, b: Entry, mask: Any) -> Array:
    """An array of shape `shape`, True at real tokens (in attention maps, at pairs of real tokens)."""
    masks = [entry.tokens.mask for entry in (a, b) if entry.tokens is not None]
    masks += [] if mask is None else [np.asarray(mask).astype(bool)]
    if not masks or len(shape) < 3:  # (B, E) and (B, C) have no positions
        return np.ones(shape, bool)
    tokens = np.logical_and.reduce(masks)  # (B, S)
    if name.rsplit(".", 1)[-1] in MAPS:
        return np.broadcast_to(tokens[:, None, :, None] & tokens[:, None, None, :], shape)
    return np.broadcast_to(tokens.reshape(*tokens.shape, *[1] * (len(shape) - 2)), shape)

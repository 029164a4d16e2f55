"""Arrays that lie in the middle of larger ones: what a kernel reads or writes past their ends is seen.

Around every argument lie NaNs: a kernel that reads them, and uses them, gives NaN. After the call they must be as they
were, and so must the argument. What the function takes with `empty` holds NaN too, so that a number which it forgets
to write is seen, and has the same guards around it. In Triton's interpreter a pointer out of range reads or writes
whatever lies there; the guards are what lies there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ernie_m.reference.array import Array

from ..runtime.dtypes import TORCH_DTYPES

# Numbers on either side, at least; a multiple of 16 bytes for every dtype, so that what follows stays aligned.
GUARD = 64


@dataclass(frozen=True)
class Guarded:
    """An array `inner` in the middle of a flat `buffer`, of either library, and what all of it held at first."""

    name: str
    buffer: Any
    inner: Any
    guard: int
    before: bytes

    @property
    def damage(self) -> str | None:
        """What has changed: "was changed", or where something was written outside; None if nothing has."""
        now = _bytes(self.buffer)
        if now == self.before:
            return None
        edge = self.guard * self.buffer.dtype.itemsize
        if now[:edge] != self.before[:edge]:
            return "something was written before it"
        return "was changed" if now[-edge:] == self.before[-edge:] else "something was written behind it"

    @property
    def outside_damage(self) -> str | None:
        """The same for an array that the function is free to write."""
        return None if self.damage == "was changed" else self.damage


def _bytes(buffer: Any) -> bytes:
    if isinstance(buffer, torch.Tensor):
        buffer = buffer.detach().cpu().view(torch.uint8).numpy()
    return bytes(buffer.tobytes())


def guarded(name: str, shape: tuple[int, ...], like: Any, fill: float) -> Guarded:
    """An array of that shape, with the library, dtype and device of `like`, filled with `fill`, guards included."""
    size = math.prod(shape)
    # A row more is read by an index that is off by one.
    guard = GUARD * math.ceil(max(GUARD, *shape[-1:]) / GUARD)
    if isinstance(like, torch.Tensor):
        buffer: Any = torch.full((size + 2 * guard,), fill, dtype=like.dtype, device=like.device)
        inner: Any = buffer[guard : guard + size].view(shape)
    else:
        buffer = np.full(size + 2 * guard, fill, like.dtype)
        inner = buffer[guard : guard + size].reshape(shape)
    return Guarded(name, buffer, inner, guard, b"")


def place(name: str, value: Any, arrays: str, dtype: str, device: str) -> Guarded:
    """A copy of an argument, with guards. Floats become `dtype`; integers keep theirs, and are guarded by zeros."""
    floating = value.dtype == np.float64
    if arrays == "torch":
        copy: Any = torch.from_numpy(np.ascontiguousarray(value)).to(device)
        copy = copy.to(TORCH_DTYPES[dtype]) if floating else copy
    else:
        copy = value.astype(dtype) if floating else value
    found = guarded(name, value.shape, copy, math.nan if floating else 0)
    found.inner[...] = copy
    return Guarded(name, found.buffer, found.inner, found.guard, _bytes(found.buffer))


def as_float64(result: Any) -> Array:
    """A result of either library, as NumPy's float64."""
    if isinstance(result, torch.Tensor):
        return np.asarray(result.detach().cpu().to(torch.float64).numpy())
    return np.asarray(result, np.float64)


@contextmanager
def poisoned(taken: list[Guarded]) -> Iterator[None]:
    """Within, what `empty`, `empty_like` and `new_empty` of torch and NumPy give holds NaN and lies between guards.

    All such arrays of floats are added to `taken`.
    """

    def replace(original: Any) -> Any:
        def empty(*arguments: Any, **options: Any) -> Any:
            plain = original(*arguments, **options)
            floats = plain.is_floating_point() if isinstance(plain, torch.Tensor) else plain.dtype.kind == "f"
            contiguous = plain.is_contiguous() if isinstance(plain, torch.Tensor) else plain.flags.c_contiguous
            if not floats or not contiguous or "out" in options or type(plain) not in (torch.Tensor, np.ndarray):
                return plain
            found = guarded("an array that it takes with empty", tuple(plain.shape), plain, math.nan)
            taken.append(Guarded(found.name, found.buffer, found.inner, found.guard, _bytes(found.buffer)))
            return found.inner

        return empty

    places = [(torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"), (np, "empty"), (np, "empty_like")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, original in originals:
        setattr(owner, name, replace(original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)

"""Arrays in the middle of larger ones, which show when a kernel reads or writes past their ends.

NaNs surround every argument of floats: a kernel that reads and uses them returns NaN. After the call, both they and
the argument must be unchanged. Arrays that the function allocates with `empty` have the same guards and are filled
with NaN, to expose a number that is never written. In Triton's interpreter, a pointer out of range reads or writes
whatever is there; the guards are what is there.
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

# At least this many numbers on each side: a multiple of 16 bytes in every dtype, so that the array stays aligned.
GUARD = 64
CHANGED = "it changed its argument"


@dataclass(frozen=True)
class Guarded:
    """A torch or NumPy array `inner` in the middle of a flat `buffer`, with the bytes of `buffer` before the call."""

    name: str
    buffer: Any
    inner: Any
    guard: int
    before: bytes

    @property
    def damage(self) -> str | None:
        """What the call damaged, in words that `name` completes; None if nothing changed."""
        now = _bytes(self.buffer)
        if now == self.before:
            return None
        edge = self.guard * self.buffer.dtype.itemsize
        if now[:edge] != self.before[:edge]:
            return "the kernel wrote before the start of"
        return CHANGED if now[-edge:] == self.before[-edge:] else "the kernel wrote past the end of"

    @property
    def outside_damage(self) -> str | None:
        """The same for an array that the function may write to."""
        return None if self.damage == CHANGED else self.damage


def _bytes(buffer: Any) -> bytes:
    if isinstance(buffer, torch.Tensor):
        buffer = buffer.detach().cpu().view(torch.uint8).numpy()
    return bytes(buffer.tobytes())


def guarded(name: str, shape: tuple[int, ...], like: Any, fill: float) -> Guarded:
    """An array of that shape, filled with `fill`, guards included; library, dtype and device are those of `like`."""
    size = math.prod(shape)
    # At least a row: an index that is off by one may read a whole row too far.
    guard = GUARD * math.ceil(max(GUARD, *shape[-1:]) / GUARD)
    if isinstance(like, torch.Tensor):
        buffer: Any = torch.full((size + 2 * guard,), fill, dtype=like.dtype, device=like.device)
        inner: Any = buffer[guard : guard + size].view(shape)
    else:
        buffer = np.full(size + 2 * guard, fill, like.dtype)
        inner = buffer[guard : guard + size].reshape(shape)
    return Guarded(name, buffer, inner, guard, b"")


def place(name: str, value: Any, arrays: str, dtype: str, device: str) -> Guarded:
    """A guarded copy of an argument. Floats become `dtype`; integers keep their dtype, and zeros guard them."""
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
    """A torch or NumPy result as a float64 array."""
    if isinstance(result, torch.Tensor):
        return np.asarray(result.detach().cpu().to(torch.float64).numpy())
    return np.asarray(result, np.float64)


@contextmanager
def poisoned(allocated: list[Guarded]) -> Iterator[None]:
    """Inside, torch's and NumPy's `empty`, `empty_like` and `new_empty` return guarded arrays filled with NaN.

    This applies to contiguous arrays of floats; they are added to `allocated`.
    """

    def replace(original: Any) -> Any:
        def empty(*arguments: Any, **options: Any) -> Any:
            plain = original(*arguments, **options)
            tensor = isinstance(plain, torch.Tensor)
            floats = plain.is_floating_point() if tensor else plain.dtype.kind == "f"
            contiguous = plain.is_contiguous() if tensor else plain.flags.c_contiguous
            if not floats or not contiguous or "out" in options or type(plain) not in (torch.Tensor, np.ndarray):
                return plain
            origin = f"an array from `{'torch' if tensor else 'np'}.empty`"
            found = guarded(origin, tuple(plain.shape), plain, math.nan)
            allocated.append(Guarded(found.name, found.buffer, found.inner, found.guard, _bytes(found.buffer)))
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

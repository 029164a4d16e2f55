"""Arrays in the middle of larger ones, which show when a kernel reads or writes past their ends.

NaNs surround every argument of floats: a kernel that reads and uses them returns NaN. After the call, both they and
the argument must be unchanged. Arrays that the function allocates with `empty` have the same guards and are filled
with NaN, to expose a number that is never written. In Triton's interpreter, a pointer out of range reads or writes
whatever is there; the guards are what is there, and beyond them `watching` stops it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ernie_m.reference.array import Array

from ..runtime.dtypes import TORCH_DTYPES

# At least this many numbers on each side: a multiple of 16 bytes in every dtype, so that the array stays aligned.
GUARD = 64
CHANGED = "it changed its argument"
# Larger arrays from `empty` are neither filled nor guarded.
MOST_POISONED = 2**26
CONTIGUOUS, SHIFTED = "contiguous", "offset by one"
# How arguments lie in memory. "offset by one" starts at an address that is no multiple of 16 bytes.
LAYOUTS = (SHIFTED, "rows apart", "every second number", "transposed")


@dataclass(frozen=True)
class Guarded:
    """A torch or NumPy array `inner` that lies in [start, stop) of a flat `buffer`, and `buffer`'s bytes before the
    call. Between the numbers of an array that is not contiguous lie guards too."""

    name: str
    buffer: Any
    inner: Any
    start: int
    stop: int
    before: bytes

    @property
    def damage(self) -> str | None:
        """What the call damaged, in words that `name` completes; None if nothing changed."""
        now = _bytes(self.buffer)
        if now == self.before:
            return None
        start, stop = (place * self.buffer.dtype.itemsize for place in (self.start, self.stop))
        if now[:start] != self.before[:start]:
            return "the kernel wrote before the start of"
        return CHANGED if now[stop:] == self.before[stop:] else "the kernel wrote past the end of"

    @property
    def outside_damage(self) -> str | None:
        """The same for an array that the function may write to."""
        return None if self.damage == CHANGED else self.damage

    def fill(self, values: Any) -> Guarded:
        """Write `values` into the array, at the same address, and remember the new bytes."""
        self.inner[...] = values
        return replace(self, before=_bytes(self.buffer))


def _bytes(buffer: Any) -> bytes:
    if isinstance(buffer, torch.Tensor):
        buffer = buffer.detach().cpu().view(torch.uint8).numpy()
    return bytes(buffer.tobytes())


def extent(array: Any) -> tuple[int, int]:
    """The addresses at which an array's numbers start and end."""
    if isinstance(array, torch.Tensor):
        reach = sum((n - 1) * step for n, step in zip(array.shape, array.stride(), strict=True))
        return array.data_ptr(), array.data_ptr() + (reach + 1 if array.numel() else 0) * array.element_size()
    reach = sum((n - 1) * step for n, step in zip(array.shape, array.strides, strict=True))
    return array.ctypes.data, array.ctypes.data + (reach + array.itemsize if array.size else 0)


def overlap(a: Any, b: Any) -> bool:
    """Whether the memory of two arrays may overlap."""
    (start, end), (first, last) = extent(a), extent(b)
    return start < last and first < end


def extent_of_storage(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses at which the memory of a tensor starts and ends."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def strides_of(shape: tuple[int, ...], layout: str) -> tuple[int, ...] | None:
    """How many numbers apart neighbours along each axis are; None if the layout is contiguous for that shape."""
    strides = [1] * len(shape)
    axes = list(range(len(shape)))
    order = axes if layout == "transposed" else axes[::-1]
    for inner, outer in pairwise(order):
        strides[outer] = strides[inner] * shape[inner] + (3 if layout == "rows apart" and inner == axes[-1] else 0)
    strides = [2 * step for step in strides] if layout == "every second number" else strides
    plain = strides_of(shape, CONTIGUOUS) if layout != CONTIGUOUS else None
    same = plain is not None and all(a == b or n == 1 for a, b, n in zip(strides, plain, shape, strict=True))
    return None if same and layout != SHIFTED else tuple(strides)


def guarded(name: str, shape: tuple[int, ...], like: Any, fill: float, layout: str = CONTIGUOUS) -> Guarded:
    """An array of that shape, filled with `fill`, guards included; library, dtype and device are those of `like`."""
    strides = strides_of(shape, layout) or strides_of(shape, CONTIGUOUS)
    assert strides is not None
    reach = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1 if math.prod(shape) else 0
    # At least a row: an index that is off by one may read a whole row too far.
    guard = GUARD * math.ceil(max((GUARD, *shape[-1:])) / GUARD)
    start = guard + (layout == SHIFTED)
    if isinstance(like, torch.Tensor):
        buffer: Any = torch.full((start + reach + guard,), fill, dtype=like.dtype, device=like.device)
        inner: Any = buffer.as_strided(shape, strides, start)
    else:
        buffer = np.full(start + reach + guard, fill, like.dtype)
        steps = tuple(step * like.dtype.itemsize for step in strides)
        inner = np.lib.stride_tricks.as_strided(buffer[start:], shape, steps)
    return Guarded(name, buffer, inner, start, start + reach, b"")


def converted(value: Any, arrays: str, dtype: str, device: str) -> Any:
    """An argument in the library, dtype and device that it is passed in: floats become `dtype`, integers stay."""
    floating = value.dtype == np.float64
    if arrays == "torch":
        copy: Any = torch.from_numpy(np.ascontiguousarray(value)).to(device)
        return copy.to(TORCH_DTYPES[dtype]) if floating else copy
    return value.astype(dtype) if floating else value


def place(name: str, value: Any, arrays: str, dtype: str, device: str, layout: str = CONTIGUOUS) -> Guarded:
    """A guarded copy of an argument. Floats become `dtype`; integers keep their dtype, and zeros guard them."""
    copy = converted(value, arrays, dtype, device)
    found = guarded(name, value.shape, copy, math.nan if value.dtype == np.float64 else 0, layout)
    return found.fill(copy)


def kind_of(result: Any, device: str) -> str:
    """What a function returned, in words: "Tensor" or "ndarray" if `as_float64` can read it."""
    # A subclass may hide numbers, as a masked array does, or have none, as a fake tensor.
    if type(result) not in (torch.Tensor, torch.nn.Parameter):
        return type(result).__name__
    if result.is_nested or result.layout != torch.strided:
        return f"a {'nested' if result.is_nested else str(result.layout).removeprefix('torch.').lstrip('_')} Tensor"
    if result.device.type != torch.device(device).type:
        return f"a Tensor on {result.device}"
    if result._is_zerotensor() or (result.numel() and extent(result)[1] > extent_of_storage(result)[1]):
        return "a Tensor without memory of its own"
    return "Tensor"


def as_float64(result: Any) -> Array:
    """A torch or NumPy result as a float64 array."""
    if isinstance(result, torch.Tensor):
        return np.asarray(result.detach().cpu().to(torch.float64).numpy())
    return np.asarray(result, np.float64)


def flat(result: Any) -> Array:
    """A result in float64; several are flat, one after the other."""
    if isinstance(result, tuple):
        return np.concatenate([as_float64(part).ravel() for part in result])
    return as_float64(result)


@contextmanager
def poisoned(allocated: list[Guarded]) -> Iterator[None]:
    """Inside, torch's and NumPy's `empty`, `empty_like` and `new_empty` return guarded arrays filled with NaN.

    This applies to contiguous arrays of floats; they are added to `allocated`.
    """

    def poisoning(original: Any) -> Any:
        def empty(*arguments: Any, **options: Any) -> Any:
            plain = original(*arguments, **options)
            tensor = isinstance(plain, torch.Tensor)
            floats = plain.is_floating_point() if tensor else plain.dtype.kind == "f"
            contiguous = plain.is_contiguous() if tensor else plain.flags.c_contiguous
            if not floats or not contiguous or "out" in options or type(plain) not in (torch.Tensor, np.ndarray):
                return plain
            if math.prod(plain.shape) > MOST_POISONED or (tensor and plain.device.type == "meta"):
                return plain
            origin = f"an array from `{'torch' if tensor else 'np'}.empty`"
            found = guarded(origin, tuple(plain.shape), plain, math.nan)
            allocated.append(found.fill(math.nan))
            return found.inner

        return empty

    places = [(torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"), (np, "empty"), (np, "empty_like")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, original in originals:
        setattr(owner, name, poisoning(original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)

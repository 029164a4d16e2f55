"""One weight as stored in a file, and how to load it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..array import Array, widen_bfloat16

FLOATS = ("float16", "bfloat16", "float32", "float64")
CHUNK = 1 << 18  # numbers checked at a time


def first_not_finite(x: Array) -> tuple[int, ...] | None:
    """Index of the first nan or infinity in `x`, or None. Works in chunks, so it needs little memory."""
    flat = x.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        finite = np.isfinite(flat[start : start + CHUNK])
        if not finite.all():
            return tuple(int(i) for i in np.unravel_index(start + int(finite.argmin()), x.shape))
    return None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint file. `dtype` is a name, such as "float32", "bfloat16" or "int64"."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: Array = field(repr=False)  # as stored; bfloat16 as uint16

    @classmethod
    def of(cls, name: str, array: Array, bfloat16: bool = False) -> StoredTensor:
        """From an array as stored; `bfloat16` says that uint16 values are bfloat16 bits."""
        dtype = "bfloat16" if bfloat16 and array.dtype.name == "uint16" else array.dtype.name
        return cls(name, dtype, array.shape, array)

    @property
    def native(self) -> str:
        """The dtype to load and compute in by default: its own, or float32 for half precision, which is exact."""
        return "float32" if self.dtype in ("float16", "bfloat16") else self.dtype

    def not_finite(self) -> int:
        """How many of the numbers are nan or infinity. Works in chunks, so it needs little memory."""
        if self.dtype not in FLOATS:
            return 0
        flat = self.bits.reshape(-1)
        chunks = (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
        numbers = map(widen_bfloat16, chunks) if self.dtype == "bfloat16" else chunks
        return sum(int(chunk.size - np.isfinite(chunk).sum()) for chunk in numbers)

    def load(self, dtype: Any = None, transposed: bool = False) -> Array:
        """The numbers as `dtype`, by default `native`; a view of the file if nothing has to be converted.

        Raises ValueError if the tensor is not floating-point, or if it holds nan, infinity, or a number too large for
        `dtype`.
        """
        if self.dtype not in FLOATS:
            raise ValueError(f"{self.name}: expected one of {', '.join(FLOATS)}, got {self.dtype}")
        wanted = np.dtype(dtype or self.native)
        bits = np.ascontiguousarray(self.bits.T) if transposed else self.bits
        exact = widen_bfloat16(bits) if self.dtype == "bfloat16" else bits
        with np.errstate(over="ignore", invalid="ignore"):  # the scan below also finds signalling nans
            found = exact.astype(wanted, order="C", copy=False)
        # Every matrix product would copy an unaligned array.
        found = found if found.flags.aligned and found.flags.c_contiguous else found.copy()
        where = first_not_finite(found)
        if where is not None:
            problem = "is too large for " + wanted.name if np.isfinite(exact[where]) else "is not a finite number"
            index = where[::-1] if transposed else where  # in the file, like the name
            raise ValueError(f"{self.name}: {exact[where]} at {index} {problem}")
        return found

"""The floating-point formats that kernels work in, as numbers: how finely they round, and where their range ends.

A format with p significant bits has the unit roundoff u = 2⁻ᵖ: rounding x to nearest is off by at most u |x| or, if x
is subnormal, by at most half the smallest positive number.

Values of every format are held in float64, which represents them exactly, so NumPy needs no bfloat16 type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ernie_m.reference.array import Array, round_to_bfloat16, widen_bfloat16


@dataclass(frozen=True)
class Format:
    """A binary format: its significant bits, and the exponents of its smallest normal and its largest number."""

    name: str
    bits: int
    lowest: int
    highest: int

    @property
    def u(self) -> float:
        """The unit roundoff: the largest relative error of rounding to nearest."""
        return 2.0**-self.bits

    @property
    def smallest(self) -> float:
        """The smallest positive number, which is also the spacing of the subnormal numbers."""
        return 2.0 ** (self.lowest - self.bits + 1)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return (2.0 - 2.0 ** (1 - self.bits)) * 2.0**self.highest

    @property
    def overflow(self) -> float:
        """Half a step above the largest number; from here on, rounding to nearest returns infinity."""
        return (2.0 - self.u) * 2.0**self.highest

    def round(self, values: Array) -> Array:  # (...) float64 -> (...) float64
        """The nearest numbers of the format, ties to even, in a single rounding."""
        values = np.asarray(values, np.float64)
        if self.name == "bfloat16":
            return widen_bfloat16(round_to_bfloat16(values)).astype(np.float64)
        with np.errstate(over="ignore"):
            return values.astype(self.name).astype(np.float64)


FORMATS = {
    "float32": Format("float32", 24, -126, 127),
    "float16": Format("float16", 11, -14, 15),
    "bfloat16": Format("bfloat16", 8, -126, 127),
}

"""The floating-point formats that kernels work in, as numbers: how finely they round, and where their range ends.

A format with p significant bits has a unit roundoff u = 2⁻ᵖ: rounding to nearest is off by at most u |x|, as long as
x is not so small that it is subnormal, where it is off by at most half the smallest positive number instead.

Values of any format are held in float64 here, which has all of them, so bfloat16 needs no type of its own in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ernie_m.reference.array import Array, round_to_bfloat16, widen_bfloat16


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: `bits` significant ones, the exponents of its smallest normal and largest."""

    name: str
    bits: int
    lowest: int
    highest: int

    @property
    def u(self) -> float:
        """Unit roundoff, the largest relative error of rounding to nearest."""
        return 2.0**-self.bits

    @property
    def smallest(self) -> float:
        """The smallest positive number, which is also the distance of all subnormal ones."""
        return 2.0 ** (self.lowest - self.bits + 1)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return (2.0 - 2.0 ** (1 - self.bits)) * 2.0**self.highest

    @property
    def overflow(self) -> float:
        """From here on, half a step above the largest number, rounding to nearest gives infinity."""
        return (2.0 - self.u) * 2.0**self.highest

    def round(self, values: Array) -> Array:  # (...) float64 -> (...) float64
        """The nearest numbers of the format, ties to even: one rounding, whatever the format."""
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

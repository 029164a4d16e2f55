"""bfloat16 as bit patterns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ernie_m.reference.array import round_to_bfloat16, widen_bfloat16


@pytest.mark.parametrize(
    ("number", "bits"),
    [
        (1.0, 0x3F80),
        (1.0 + 2.0**-8, 0x3F80),  # a tie goes to the even pattern: down
        (1.0 + 3 * 2.0**-8, 0x3F82),  # up
        (1.0 + 2.0**-8 + 2.0**-20, 0x3F81),
        (-0.0, 0x8000),
        (3.4e38, 0x7F80),  # more than half a step above the largest number: infinity
        (2.0**-133, 0x0001),  # the smallest subnormal
        (2.0**-134, 0x0000),
        (math.inf, 0x7F80),
    ],
)
def test_round_to_bfloat16_rounds_to_nearest_even(number: float, bits: int) -> None:
    assert round_to_bfloat16(np.array([number], dtype=np.float32)).tolist() == [bits]


def test_round_to_bfloat16_keeps_nan_whatever_its_bits() -> None:
    """Rounded as numbers, 0x7F800001 would become infinity and 0xFFFFFFFF would carry to zero."""
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], dtype=np.uint32).view(np.float32)
    for nearest in (True, False):
        assert np.isnan(widen_bfloat16(round_to_bfloat16(nans, nearest))).all()


def test_round_to_bfloat16_towards_zero_drops_the_lower_half() -> None:
    bits = np.array([0x3F810000, 0x3F818000, 0x3F81FFFF, 0xBF81FFFF], dtype=np.uint32)
    assert round_to_bfloat16(bits.view(np.float32), nearest=False).tolist() == [0x3F81, 0x3F81, 0x3F81, 0xBF81]

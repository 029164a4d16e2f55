"""Half precision, bit for bit in both directions, and values that are refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.array import round_to_bfloat16, widen_bfloat16
from ernie_m.reference.checkpoint.stored_tensor import CHUNK, StoredTensor, first_not_finite

ALL = np.arange(2**16, dtype=np.uint16)


def value(bits: int, fraction_bits: int = 7, bias: int = 127) -> Fraction:
    """The exact value of a finite bit pattern, from the definition of such formats; by default bfloat16."""
    exponent = (bits & 0x7FFF) >> fraction_bits
    fraction = Fraction(bits & (1 << fraction_bits) - 1, 1 << fraction_bits)
    size = fraction * 2 if exponent == 0 else 1 + fraction
    return (-1 if bits >> 15 else 1) * size * Fraction(2) ** (exponent - bias)


FINITE = ALL[(ALL >> 7 & 0xFF) != 0xFF]


def test_widen_bfloat16_of_every_pattern() -> None:
    wide = widen_bfloat16(ALL)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(wide), np.isin(ALL, FINITE))
    assert all(Fraction(float(wide[bits])) == value(bits) for bits in map(int, FINITE))
    # Equality ignores the sign of zero.
    np.testing.assert_array_equal(np.signbit(wide), ALL >> 15 == 1)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_load_of_every_finite_half_precision_number(dtype: str, order: str) -> None:
    """Exact as float32, in either byte order, and back to the same bits."""
    fraction_bits, bias = (10, 15) if dtype == "float16" else (7, 127)
    exponents = (1 << 15 - fraction_bits) - 1
    patterns = [int(x) for x in ALL if (int(x) >> fraction_bits & exponents) != exponents]
    wanted = [float(value(x, fraction_bits, bias)) for x in patterns]
    bits = np.array(patterns, np.uint16)
    bits = bits.view(np.float16) if dtype == "float16" else bits
    stored = StoredTensor.of("weight", bits.astype(bits.dtype.newbyteorder(order)), bfloat16=True)
    assert stored.dtype == dtype
    found = stored.load()
    assert found.dtype == np.float32 and found.dtype.isnative
    np.testing.assert_array_equal(found, wanted)
    back = round_to_bfloat16(found) if dtype == "bfloat16" else found.astype(np.float16)
    assert back.tobytes() == bits.tobytes()


@given(st.floats(width=64, allow_nan=False), st.sampled_from(["float16", "float32", "float64"]))
def test_round_to_bfloat16_nearest_ties_to_even(number: float, dtype: str) -> None:
    """Against exact fractions. Red for truncation, for ties rounded up, and if float64 is rounded to float32 first."""
    with np.errstate(over="ignore"):
        check_rounding(np.array([number]).astype(dtype))


@given(st.integers(0, FINITE.size // 2 - 2), st.integers(-3, 3), st.booleans(), st.sampled_from(["float32", "float64"]))
def test_round_to_bfloat16_near_ties(i: int, steps: int, negative: bool, dtype: Any) -> None:
    low, high = (float(widen_bfloat16(FINITE[[k]])[0]) for k in (i, i + 1))
    number = np.array([(low + high) / 2], dtype)
    for _ in range(abs(steps)):
        number = np.nextafter(number, np.array(np.inf if steps > 0 else 0, dtype), dtype=dtype)
    check_rounding(-number if negative else number)


def check_rounding(x: np.ndarray) -> None:
    bits = int(round_to_bfloat16(x)[0])
    assert bits >> 15 == np.signbit(x[0])
    size = bits & 0x7FFF
    largest = 0x7F7F
    # In IEEE 754, infinity begins half a unit above the largest number.
    limit = value(largest) + (value(largest) - value(largest - 1)) / 2
    exact = abs(Fraction(float(x[0]))) if np.isfinite(x[0]) else limit
    if exact >= limit:
        assert size == 0x7F80
        return
    error = abs(value(size) - exact)
    for other in (size - 1, size + 1):
        if 0 <= other <= largest:
            distance = abs(value(other) - exact)
            assert error < distance or (error == distance and size % 2 == 0)


@given(st.integers(0, 3 * CHUNK), st.sampled_from([np.nan, np.inf, -np.inf]), st.sampled_from(["<f4", "<f8", "<f2"]))
def test_load_reports_the_first_number_that_is_not_finite(where: int, bad: float, dtype: str) -> None:
    x = np.zeros((3, CHUNK + 1), dtype)
    x.reshape(-1)[where] = bad
    x[-1, -1] = np.nan
    index = divmod(where, CHUNK + 1)
    assert first_not_finite(x) == index
    message = rf"^layer\.weight: {bad} at \({index[0]}, {index[1]}\) is not a finite number$"
    with pytest.raises(ValueError, match=message):
        StoredTensor.of("layer.weight", x).load()
    # The index in the file, even if the model has the weight transposed.
    with pytest.raises(ValueError, match=rf"{bad} at \({index[0]}, {index[1]}\) is|nan at \(2, {CHUNK}\) is"):
        StoredTensor.of("layer.weight", x).load(transposed=True)


def test_load_of_a_transposed_weight_reports_the_index_in_the_file() -> None:
    x = np.zeros((2, 3), np.float32)
    x[1, 2] = np.inf
    with pytest.raises(ValueError, match=r"inf at \(1, 2\)"):
        StoredTensor.of("w", x).load(transposed=True)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF])
def test_load_of_bfloat16_reports_what_is_not_finite(bits: int) -> None:
    stored = StoredTensor.of("w", np.array([[0, bits]], np.uint16), bfloat16=True)
    for dtype in (None, np.float16, np.float64):
        with pytest.raises(ValueError, match=r"^w: -?(inf|nan) at \(0, 1\) is not a finite number$"):
            stored.load(dtype)


def test_load_refuses_numbers_that_the_dtype_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"^w: 1000000.0 at \(1,\) is too large for float16$"):
        StoredTensor.of("w", np.array([1.0, 1e6], np.float32)).load(np.float16)
    with pytest.raises(ValueError, match=r"^w: 1e\+300 at \(1,\) is too large for float32$"):
        StoredTensor.of("w", np.array([1.0, 1e300])).load(np.float32)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64"])
def test_load_with_dtype_rounds_once(stored: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((40, 30))
    bits = round_to_bfloat16(numbers) if stored == "bfloat16" else numbers.astype(stored)
    exact = widen_bfloat16(bits) if stored == "bfloat16" else bits
    found = StoredTensor.of("w", bits, bfloat16=True).load(dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, exact.astype(dtype))
    transposed = StoredTensor.of("w", bits, bfloat16=True).load(dtype, transposed=True)
    assert transposed.flags.c_contiguous
    np.testing.assert_array_equal(transposed, found.T)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool", "uint16"])
def test_load_refuses_other_dtypes(dtype: Any) -> None:
    with pytest.raises(ValueError, match=rf"^w: expected one of float16, bfloat16, float32, float64, got {dtype}$"):
        StoredTensor.of("w", np.zeros(3, dtype)).load()


def test_load_is_a_view_if_nothing_is_converted() -> None:
    """Red if everything is copied. Unaligned arrays are copied, because every matrix product would copy them."""
    raw = np.random.default_rng(0).standard_normal(7).astype(np.float32).tobytes()
    aligned = np.frombuffer(raw, np.float32)
    found = StoredTensor.of("w", aligned).load()
    assert np.shares_memory(found, aligned) and not found.flags.writeable
    unaligned = np.frombuffer(b"x" + raw, np.uint8)[1:].view(np.float32)
    assert not unaligned.flags.aligned
    found = StoredTensor.of("w", unaligned).load()
    assert found.flags.aligned and not np.shares_memory(found, unaligned)
    np.testing.assert_array_equal(found, aligned)


def test_load_of_0d_and_empty_arrays() -> None:
    assert StoredTensor.of("w", np.array(2.5, np.float16)).load().shape == ()
    assert StoredTensor.of("w", np.zeros((0, 3), np.float16)).load(transposed=True).shape == (3, 0)
    with pytest.raises(ValueError, match=r"^w: nan at \(\) is not"):
        StoredTensor.of("w", np.array(np.nan)).load()

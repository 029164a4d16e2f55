from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounding import LIBM, U64

from ernie_m.reference import attention, softmax


def test_softmax_literal() -> None:
    # log 5 = 1.6 may be off by 1.6 LIBM u, and so may the maximum; then exp, and at most 8 roundings.
    np.testing.assert_allclose(softmax(np.log([[1.0, 2.0, 5.0]])), [[0.125, 0.25, 0.625]], rtol=(5 * LIBM + 8) * U64)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.booleans())
def test_softmax_rows_sum_to_1(seed: int, scale: float, masked: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((3, 5, 33)) * scale
    mask = rng.random((3, 1, 33)) < 0.5 if masked else None
    total = softmax(scores, mask).sum(axis=-1)
    expected = np.ones((3, 5)) if mask is None else np.broadcast_to(mask.any(axis=-1), (3, 5))
    np.testing.assert_allclose(total, expected, rtol=(2 * 32 + 2) * U64)  # two sums of 33 numbers, and a division


@given(st.integers(0, 2**32 - 1), st.integers(-1000, 1000))
def test_softmax_shift_invariance(seed: int, shift: int) -> None:
    """Scores are multiples of 1/1024, so adding an integer is exact and the results are bitwise equal."""
    scores = np.random.default_rng(seed).integers(-5000, 5000, (4, 9)) / 1024
    np.testing.assert_array_equal(softmax(scores + shift), softmax(scores))


@given(st.integers(0, 2**32 - 1))
def test_softmax_ignores_masked_keys(seed: int) -> None:
    """Masked keys get exactly 0, even for scores of nan or inf; the other keys' sum is rounded in another order."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((4, 8))
    mask = np.array([True] * 5 + [False] * 3)
    poisoned = scores.copy()
    poisoned[:, 5:] = [np.nan, np.inf, 1e300]
    found = softmax(poisoned, mask)
    np.testing.assert_array_equal(found[:, 5:], 0)
    # Each has exp, a sum of five numbers, and a division.
    np.testing.assert_allclose(found[:, :5], softmax(scores[:, :5]), rtol=2 * (2 * LIBM + 4 + 1) * U64)


def test_softmax_row_without_keys_is_0() -> None:
    np.testing.assert_array_equal(softmax(np.ones((2, 3)), np.array([[False] * 3, [True] * 3])), [[0] * 3, [1 / 3] * 3])


@given(st.integers(0, 2**32 - 1))
def test_softmax_additive_mask_is_added(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, added = rng.standard_normal((2, 4, 9))
    np.testing.assert_array_equal(softmax(scores, added), softmax(scores + added))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax_keeps_dtype_and_argument(dtype: type) -> None:
    scores = np.array([[1.0, 2.0, 1000.0]], dtype)
    copy = scores.copy()
    for mask in (None, np.array([True, True, False]), np.zeros(3, dtype)):
        assert softmax(scores, mask).dtype == dtype
        np.testing.assert_array_equal(scores, copy)


@pytest.mark.parametrize("dtype", [int, np.uint8])
def test_a_mask_of_integers_is_refused(dtype: type) -> None:
    """Seen red: 0 and 1 were added to the scores, so that everything was attended to."""
    scores = np.zeros((1, 2, 2), np.float32)
    for call in (lambda mask: softmax(scores, mask), lambda mask: attention(scores, scores, scores, mask)):
        with pytest.raises(TypeError, match=r"^mask: expected booleans, or floating point .*, got u?int"):
            call(np.array([[1, 0], [1, 1]], dtype))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax_has_the_dtype_of_the_scores_whatever_the_masks(dtype: type) -> None:
    scores = np.array([1.0, 2.0, 3.0], dtype)
    for mask in (np.array([0.0, -1.0, -np.inf]), np.array([0, -1, -np.inf], np.float32), np.array([True, True, False])):
        found = softmax(scores, mask)
        assert found.dtype == dtype and found[2] == 0.0


@pytest.mark.parametrize(("dtype", "mask_dtype"), [(np.float16, np.float32), (np.float32, np.float64)])
def test_a_mask_of_a_wider_dtype_may_hold_numbers_too_large_for_the_scores(dtype: type, mask_dtype: type) -> None:
    """Of equal scores with one number added to all, each gets an equal share. Seen red: the mask rounded to -inf."""
    least = np.finfo(mask_dtype).min
    mask = np.array([[0, least, 0], [least, least, least]], mask_dtype)
    with np.errstate(over="raise", invalid="raise"):
        found = softmax(np.zeros((2, 3), dtype), mask)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, [[0.5, 0, 0.5], [1 / 3] * 3], rtol=np.finfo(dtype).eps)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounding import LIBM, U64

from ernie_m.reference import linear_cross_entropy, linear_cross_entropy_vjp
from ernie_m.reference.losses import (
    binary_cross_entropy,
    binary_cross_entropy_vjp,
    cross_entropy,
    cross_entropy_vjp,
    span_loss,
    span_loss_vjp,
    squared_error,
    squared_error_vjp,
)

# Three functions of the library, here and in the loss, and a few roundings; nothing cancels.
FEW = (6 * LIBM + 16) * U64


def test_losses_literal() -> None:
    """Probabilities 1/8, 2/8, 5/8; σ(log 3) = 3/4."""
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]])
    np.testing.assert_allclose(cross_entropy(logits, np.array([0, 2])), (np.log(8) + np.log(8 / 5)) / 2, rtol=FEW)
    two = binary_cross_entropy(np.log([3.0, 3.0]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(two, (np.log(4 / 3) + np.log(4)) / 2, rtol=FEW)
    assert squared_error(np.array([1.0, 5.0]), np.array([2.0, 2.0])) == 5.0


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7]))
def test_losses_ignore_uncounted_elements(seed: int, N: int) -> None:
    rng = np.random.default_rng(seed)
    logits, targets = rng.standard_normal((N, 4)), rng.random((N, 4))
    largest = 2 * np.abs(logits).max() + np.log(4)
    labels, counted = rng.integers(0, 4, N), rng.random(N) < 0.5
    counted[0] = True
    rows = np.broadcast_to(counted[:, None], (N, 4))
    # Means of up to 28 numbers that are not negative; before each, a few functions and roundings.
    bound = FEW + 2 * 28 * U64
    alone = cross_entropy(logits[counted], labels[counted])
    np.testing.assert_allclose(cross_entropy(logits, labels, counted), alone, rtol=0, atol=bound * largest)
    ignored = np.where(counted, labels, -100)
    # The same rows in the same order.
    np.testing.assert_array_equal(cross_entropy(logits, ignored), cross_entropy(logits, labels, counted))
    for loss in (binary_cross_entropy, squared_error):
        np.testing.assert_allclose(loss(logits, targets, rows), loss(logits[counted], targets[counted]), rtol=bound)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_are_nan_without_targets_and_finite_for_large_logits(dtype: type) -> None:
    logits = np.array([[1e4, -1e4]], dtype)
    nothing = np.array([False])
    assert np.isnan(cross_entropy(logits, np.array([-100])))
    assert np.isnan(squared_error(logits, logits, np.zeros((1, 2), bool)))
    assert np.isnan(cross_entropy(logits, np.array([0]), nothing))
    assert cross_entropy(logits, np.array([1])) == 2e4
    assert binary_cross_entropy(logits, np.array([[0, 1]], dtype)) == 1e4
    assert cross_entropy(logits, np.array([1])).dtype == dtype


def test_span_loss_clamps_negative_targets_and_ignores_invalid_ones() -> None:
    """Targets: -3 (counts as 0), 1, one on padding, and one past the end of the row."""
    logits = np.log([[1.0, 3.0, 4.0]] * 4)
    valid = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]], bool)
    expected = (np.log(8) + np.log(8 / 3)) / 2
    np.testing.assert_allclose(span_loss(logits, np.array([-3, 1, 2, 3]), valid), expected, rtol=FEW)
    assert np.isnan(span_loss(logits[:1], np.array([-1]), np.array([[0, 1, 1]], bool)))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7]), st.sampled_from([1.0, 300.0]))
def test_losses_and_gradients_in_float16_are_the_rounded_float32(seed: int, N: int, scale: float) -> None:
    """Seen red with either computed in float16."""
    rng = np.random.default_rng(seed)
    logits, numbers = (scale * rng.standard_normal((N, 4))).astype(np.float16), rng.random((N, 4)).astype(np.float16)
    labels, counted, weights = rng.integers(0, 4, N), np.ones(N, bool), rng.random(N).astype(np.float16)
    cases: list[tuple[Any, Any, tuple[Any, ...]]] = [
        (cross_entropy, cross_entropy_vjp, (labels, counted, weights)),
        (binary_cross_entropy, binary_cross_entropy_vjp, (numbers,)),
        (squared_error, squared_error_vjp, (numbers,)),
        (span_loss, span_loss_vjp, (labels, np.ones((N, 4), bool))),
    ]
    with np.errstate(over="ignore"):  # squares of 300 may be too large for float16
        for loss, vjp, targets in cases:
            found, slope = loss(logits, *targets), vjp(np.float16(0.5), logits, *targets)
            assert found.dtype == slope.dtype == np.float16
            wide = logits.astype(np.float32)
            np.testing.assert_array_equal(found, loss(wide, *targets).astype(np.float16))
            np.testing.assert_array_equal(slope, vjp(np.float16(0.5), wide, *targets).astype(np.float16))


def test_a_large_vocabulary_and_many_weights_do_not_overflow_float16() -> None:
    """ERNIE-M's has 250,002 words, and float16 ends at 65,504.

    Seen red with the exponentials, the losses or the weights added in float16: the loss was inf or nan, and the
    gradient 0, or without the part of the softmax.
    """
    logits, labels = np.zeros((9, 250_002), np.float16), np.arange(9)
    logits[:, :4] = 8.0
    for weights in (None, np.full(9, 8000.0, np.float16)):
        exact = cross_entropy(logits.astype(np.float64), labels, weights=weights)
        np.testing.assert_allclose(cross_entropy(logits, labels, weights=weights), exact, rtol=2.0**-11)
        slope = cross_entropy_vjp(np.float16(1.0), logits, labels, weights=weights)
        expected = cross_entropy_vjp(1.0, logits.astype(np.float64), labels, weights=weights)
        # One rounding to float16, and an eighth of it for the sum in float32.
        np.testing.assert_allclose(slope[:, :4], expected[:, :4], rtol=1.125 * 2.0**-11)


@pytest.mark.parametrize("label", [-1, -99, 7])
def test_a_label_that_is_no_word_is_an_error(label: int) -> None:
    """Seen red: -1 was the last word. The kernels' twin refuses it, too."""
    hidden, weight, bias, labels = np.ones((3, 2)), np.ones((7, 2)), np.zeros(7), np.array([0, -100, label])
    expected = rf"^labels: expected values in \[0, 7\) for a vocabulary of 7 words, got {label} at \[2\]$"
    with pytest.raises(ValueError, match=expected):
        linear_cross_entropy(hidden, weight, bias, labels)
    with pytest.raises(ValueError, match=expected):
        linear_cross_entropy_vjp(1.0, hidden, weight, bias, labels)

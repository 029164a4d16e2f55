from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounding import U64

from ernie_m.reference import (
    add_layer_norm,
    add_layer_norm_vjp,
    dropped_layer_norm,
    dropped_layer_norm_vjp,
    layer_norm,
    layer_norm_vjp,
)


def test_layer_norm_literal() -> None:
    """Mean 2, variance 2/3 (it would be 1 with E - 1)."""
    x = np.array([1.0, 2.0, 3.0])
    expected = np.array([-1.0, 0.0, 1.0]) / np.sqrt(2 / 3 + 0.5) * [1.0, 2.0, 3.0] + [0.0, 5.0, 7.0]
    found = layer_norm(x, np.array([1.0, 2.0, 3.0]), np.array([0.0, 5.0, 7.0]), 0.5)
    # Some 10 roundings in the function, 5 here.
    np.testing.assert_allclose(found, expected, rtol=15 * U64)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 7, 64, 127]),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e3),
)
def test_layer_norm_shift_and_scale_invariance(seed: int, E: int, shift: float, scale: float) -> None:
    """With ε = 0 and without the affine part, shifting or scaling the input does not change the output."""
    rng = np.random.default_rng(seed)
    x, ones, zeros = rng.standard_normal((3, E)), np.ones(E), np.zeros(E)
    plain = layer_norm(x, ones, zeros, 0.0)
    # Shifting rounds x; the error relative to its std is |shift| / std, in units of 2^-53.
    spread = x.std(axis=-1).min() * scale
    bound = 64 * 2.0**-53 * (1 + np.abs(shift) / spread + np.abs(x).max() / x.std(axis=-1).min()) * E**0.5
    np.testing.assert_allclose(layer_norm(x * scale + shift, ones, zeros, 0.0), plain, rtol=0, atol=bound)


@given(st.integers(0, 2**32 - 1))
def test_layer_norm_rows_have_mean_0_and_variance_1(seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((5, 33)) * 7 + 3
    y = layer_norm(x, np.ones(33), np.zeros(33), 0.0)
    # The mean is off by at most 33 u of the largest number; so is each centred number, the mean of y once more.
    off = 2 * 33 * U64 * np.abs(x).max() / x.std(axis=-1).min()
    assert (np.abs(y.mean(axis=-1)) <= off + 33 * U64 * np.abs(y).max()).all()
    # Two sums of 33 squares, and a few roundings; a shift of all centred numbers enters with its square alone.
    np.testing.assert_allclose(np.square(y).mean(axis=-1), 1, rtol=2 * 40 * U64)


def test_layer_norm_is_accurate_for_a_large_mean() -> None:
    """mean(x²) − mean(x)² would lose every digit here: 10^12 + 1 minus 10^12 in float32."""
    x = np.array([[1e6 - 1, 1e6 + 1]], np.float32)
    # Every step is exact.
    np.testing.assert_array_equal(layer_norm(x, np.ones(2, np.float32), np.zeros(2, np.float32), 0.0), [[-1, 1]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_layer_norm_keeps_dtype_and_arguments(dtype: type) -> None:
    rng = np.random.default_rng(0)
    args = [rng.standard_normal(shape).astype(dtype) for shape in ((4, 9), (9,), (9,))]
    copies = [a.copy() for a in args]
    assert layer_norm(*args, 1e-5).dtype == dtype
    for a, copy in zip(args, copies, strict=True):
        np.testing.assert_array_equal(a, copy)


def test_layer_norm_float16_does_not_overflow() -> None:
    """300² exceeds float16's largest number, 65504; the statistics are computed in float32."""
    x = np.array([[-300.0, 300.0]], np.float16)
    np.testing.assert_array_equal(layer_norm(x, np.ones(2, np.float16), np.zeros(2, np.float16), 1e-5), [[-1, 1]])


@given(st.integers(0, 2**32 - 1))
def test_add_layer_norm_is_layer_norm_of_the_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, residual = rng.standard_normal((2, 4, 9))
    bias, gamma, beta = rng.standard_normal((3, 9))
    expected = layer_norm(x + bias + residual, gamma, beta, 1e-5)
    np.testing.assert_array_equal(add_layer_norm(x, bias, residual, gamma, beta, 1e-5), expected)


ROWS, VECTOR = np.zeros((4, 9)), np.zeros(9)
NORMS = {
    layer_norm: {"x": ROWS, "gamma": VECTOR, "beta": VECTOR},
    layer_norm_vjp: {"dy": ROWS, "x": ROWS, "gamma": VECTOR},
    add_layer_norm: {"x": ROWS, "bias": VECTOR, "residual": ROWS, "gamma": VECTOR, "beta": VECTOR},
    add_layer_norm_vjp: {"dy": ROWS, "x": ROWS, "bias": VECTOR, "residual": ROWS, "gamma": VECTOR},
    dropped_layer_norm: {"x": ROWS, "bias": VECTOR, "residual": ROWS, "gamma": VECTOR, "beta": VECTOR},
    dropped_layer_norm_vjp: {"dy": ROWS, "x": ROWS, "bias": VECTOR, "residual": ROWS, "gamma": VECTOR},
}


@given(st.sampled_from(list(NORMS)), st.data(), st.sampled_from([(), (1,), (1, 9), (4, 1), (9, 4), (3, 4, 9)]))
def test_what_numpy_would_broadcast_is_refused(function: Callable[..., Any], data: st.DataObject, shape: Any) -> None:
    """Seen red: γ of shape (1,), a residual of one row, and integers were taken."""
    arguments = dict(NORMS[function])
    more = {"p": 0.5, "seed": 3} if "dropped" in function.__name__ else {}
    name = data.draw(st.sampled_from([name for name in arguments if name != "x"]))
    with pytest.raises(ValueError, match=f"^{name}: expected shape "):
        function(**{**arguments, name: np.zeros(shape)}, eps=1e-5, **more)
    with pytest.raises(TypeError, match=r"^x: expected float16, float32 or float64, got int"):
        function(**{**arguments, "x": np.zeros((4, 9), int)}, eps=1e-5, **more)

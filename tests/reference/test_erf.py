"""erf and the normal tail against mpmath and `math.erf`; the coefficients against the fit that produced them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounding import LIBM

from ernie_m.reference.erf import PIECE, RATIO, TAIL_END, erf, gaussian, normal_tail, polynomial

DTYPES = (np.float16, np.float32, np.float64)
UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}

# From |x| = 1.1 on, where u is a unit in the last place of erf, 2Φ <= 0.12 is off by (LIBM + 3 + 10) u = 21 u at most:
# with the last rounding 3 units. Below, the series calls no library and is within 2 everywhere. `math.erf` adds 1.
ULPS = 4


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    with mp.workdps(40):
        yield


def true_tail(a: float) -> Any:
    return mp.erfc(mp.mpf(a) / mp.sqrt(2)) / 2


def fit(degree: int, k: int, top: float) -> tuple[list[Any], list[Any]]:
    """Fit P/Q = M, with P of `degree` and Q of `degree` + 1, at the Chebyshev points of (a - k)/(a + k), a in [0, top].

    Coefficients are highest power first, and Q's first is 1. P(a) - M(a)·Q(a) = 0 is linear in them.
    """
    count = 2 * degree + 2
    end = (mp.mpf(top) - k) / (mp.mpf(top) + k)
    rows, right = mp.matrix(count, count), mp.matrix(count, 1)
    for i in range(count):
        s = (mp.cos(mp.pi * (2 * i + 1) / (2 * count)) + 1) / 2 * (end + 1) - 1
        a = k * (1 + s) / (1 - s)
        value = true_tail(a) * mp.exp(a * a / 2)
        for j in range(degree + 1):
            rows[i, j] = a ** (degree - j)
            rows[i, degree + 1 + j] = -value * a ** (degree - j)
        right[i] = value * a ** (degree + 1)
    solution = list(mp.lu_solve(rows, right))
    return solution[: degree + 1], [mp.mpf(1), *solution[degree + 1 :]]


@pytest.mark.parametrize(
    ("dtype", "degree", "k", "top", "error"), [(np.float32, 4, 3, 14.5, 7.4e-9), (np.float64, 10, 4, 39, 1.8e-18)]
)
def test_normal_tail_coefficients_match_the_fit(dtype: Any, degree: int, k: int, top: float, error: float) -> None:
    with mp.workdps(60):
        numerator, denominator = fit(degree, k, top)
        assert RATIO[np.dtype(dtype)] == (tuple(map(float, numerator)), tuple(map(float, denominator)))
        assert min(numerator + denominator) > 0
        for a in (mp.mpf(top) * i / 400 for i in range(401)):
            m = true_tail(a) * mp.exp(a * a / 2)
            assert abs(polynomial(numerator, a) / polynomial(denominator, a) / m - 1) <= error


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_tail_relative_error(dtype: Any) -> None:
    a = np.concatenate([np.linspace(0, 12.9, 1500), np.geomspace(1e-6, 12.9, 500), np.linspace(13, 37.5, 1000)])
    a = a[a < (13 if dtype == np.float32 else 38)].astype(dtype)
    truth = [true_tail(float(v)) for v in a]
    error = [float(abs(mp.mpf(float(y)) / t - 1)) for y, t in zip(normal_tail(a), truth, strict=True)]
    own = LIBM + 3 + (a.astype(np.float64) ** 2 / 2 if dtype == np.float32 else 0)  # of `gaussian`
    excess = np.array(error) / UNIT[dtype] - own
    worst = int(excess.argmax())
    assert excess[worst] <= 10, (a[worst], error[worst] / UNIT[dtype])


def test_gaussian_float64_relative_error() -> None:
    a = np.random.default_rng(0).uniform(0, 37.5, 3000)
    error = [
        float(abs(mp.mpf(float(y)) / mp.exp(-(mp.mpf(float(v)) ** 2) / 2) - 1))
        for y, v in zip(gaussian(a), a, strict=True)
    ]
    assert max(error) <= (LIBM + 3) * 2.0**-53


def test_normal_tail_special_values() -> None:
    for dtype in (np.float32, np.float64):
        tail = normal_tail(np.array([0.0, TAIL_END, np.nan], dtype))
        assert tail[0] == 0.5 and tail[1] == 0 and np.isnan(tail[2])


def float64_truth(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size)


def test_erf_float64_is_within_4_ulp_of_math_erf() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            np.geomspace(5e-324, 1e-3, 20_000),
            np.linspace(0, 6.5, 200_001),
            rng.uniform(0.9, 1.3, 200_000),
            np.geomspace(1e-3, 1e308, 50_000),
        ]
    )
    truth = float64_truth(x)
    assert np.max(np.abs(erf(x) - truth) / np.spacing(truth)) <= ULPS


@given(st.floats(allow_nan=False))
def test_erf_any_float64(x: float) -> None:
    assert abs(erf(np.array([x]))[0] - math.erf(x)) <= ULPS * np.spacing(abs(math.erf(x)))


def test_erf_float32_is_rounded_once() -> None:
    x = np.arange(0, 0x7F800001, 257, dtype=np.uint32).view(np.float32)  # every 257th float32 from 0 to inf
    truth = float64_truth(x)
    assert np.max(np.abs(erf(x) - truth) / np.spacing(truth.astype(np.float32))) <= 0.51


def test_erf_float16_is_rounded_once_everywhere() -> None:
    x = np.arange(0, 0x7C01, dtype=np.uint16).view(np.float16)
    truth = float64_truth(x)
    assert np.max(np.abs(erf(x) - truth) / np.spacing(truth.astype(np.float16)).astype(np.float64)) <= 0.51


def test_erf_is_odd() -> None:
    for dtype in DTYPES:
        x = np.random.default_rng(0).normal(0, 2, 5000).astype(dtype)
        assert np.array_equal(erf(-x), -erf(x))


def test_erf_special_values() -> None:
    for dtype in DTYPES:
        y = erf(np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype))
        assert y[:4].tolist() == [0, 0, 1, -1] and np.isnan(y[4])
        assert np.signbit(y[:2]).tolist() == [False, True]
    assert erf(np.array(0.5)) == pytest.approx(0.5204998778130465, rel=2 * ULPS * 2.0**-53, abs=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 5)])
def test_erf_keeps_dtype_shape_and_argument(dtype: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    before = x.copy()
    y = erf(x)
    assert isinstance(y, np.ndarray) and y.dtype == x.dtype and y.shape == shape and y is not x
    assert np.array_equal(x, before)


def test_erf_does_not_depend_on_pieces_or_strides() -> None:
    """Bitwise equal to one element at a time."""
    x = np.random.default_rng(0).normal(size=(2, PIECE + 7)).astype(np.float32)
    y = erf(x.T).T
    for i, j in [(0, 0), (0, PIECE - 1), (0, PIECE), (1, 0), (1, PIECE + 6)]:
        assert abs(y[i, j] - erf(x[i, j])) <= np.spacing(abs(y[i, j]))
    assert (np.abs(y - erf(x)) <= np.spacing(np.abs(y))).all()


@pytest.mark.parametrize("x", [np.arange(3), np.array([True]), np.array([1j]), np.array(["1"])])
def test_erf_rejects_other_dtypes(x: Any) -> None:
    with pytest.raises(TypeError, match=f"x: expected float16, float32 or float64, got {x.dtype}"):
        erf(x)

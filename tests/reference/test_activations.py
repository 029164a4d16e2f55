"""Every activation against its formula in mpmath, over the whole range of each dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounding import LIBM

from ernie_m.reference.activations import ACTIVATIONS, activation, sigmoid, silu, softplus
from ernie_m.reference.gelu import gelu

DTYPES = (np.float16, np.float32, np.float64)
UNIT = {np.float16: 2.0**-11, np.float32: 2.0**-24, np.float64: 2.0**-53}


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    with mp.workdps(40):
        yield


def true_sigmoid(x: Any) -> Any:
    return 1 / (1 + mp.exp(-x))


def true_tanh_gelu(x: Any, scale: Any) -> Any:
    return x / 2 * (1 + mp.tanh(scale * (x + mp.mpf("0.044715") * x**3)))


def true_gelu(x: Any) -> Any:
    return x / 2 * mp.erfc(-x / mp.sqrt(2))


def true_gelu_new(x: Any) -> Any:
    return true_tanh_gelu(x, mp.sqrt(2 / mp.pi))


TRUTH: dict[str, Callable[[Any], Any]] = {
    "gelu": true_gelu,
    "gelu_10": lambda x: min(max(true_gelu(x), -10), 10),
    "gelu_accurate": true_gelu_new,
    "gelu_fast": lambda x: true_tanh_gelu(x, mp.mpf("0.7978845608")),
    "gelu_new": true_gelu_new,
    "gelu_python": true_gelu,
    "gelu_pytorch_tanh": true_gelu_new,
    "laplace": lambda x: (1 + mp.erf((x - mp.mpf("0.707107")) / (mp.mpf("0.282095") * mp.sqrt(2)))) / 2,
    "leaky_relu": lambda x: max(x, x / 100),
    "linear": lambda x: x,
    "mish": lambda x: x * mp.tanh(mp.log1p(mp.exp(x))),
    "quick_gelu": lambda x: x * true_sigmoid(mp.mpf("1.702") * x),
    "relu": lambda x: max(x, 0),
    "relu2": lambda x: max(x, 0) ** 2,
    "relu6": lambda x: min(max(x, 0), 6),
    "sigmoid": true_sigmoid,
    "silu": lambda x: x * true_sigmoid(x),
    "swish": lambda x: x * true_sigmoid(x),
    "tanh": mp.tanh,
}


def test_activation_names_are_the_values_of_hidden_act() -> None:
    assert sorted(ACTIVATIONS) == sorted(TRUTH)
    assert all(activation(name) is function for name, function in ACTIVATIONS.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_matches_its_formula(name: str, dtype: Any) -> None:
    """Within 8 u times the largest of 1, |x| and |f(x)|: a few roundings, slopes of at most 1.5 (except relu2)."""
    grid = [
        0.0,
        1e-7,
        1e-3,
        0.1,
        0.5,
        0.75,
        1.0,
        1.7,
        2.5,
        3.0,
        5.0,
        5.9,
        6.1,
        8.0,
        9.9,
        10.1,
        20.0,
        60.0,
        90.0,
        150.0,
        1e3,
        1e4,
    ]
    x = np.array([sign * v for v in grid for sign in (1, -1)], dtype)
    for value, got in zip(x, activation(name)(x), strict=True):
        truth = float(TRUTH[name](mp.mpf(float(value))))
        if truth > float(np.finfo(dtype).max):
            assert got == np.inf
        else:
            bound = 8 * UNIT[dtype] * max(1.0, abs(float(value)), abs(truth))
            assert abs(float(got) - truth) <= bound, (value, got, truth)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sigmoid", "silu", "mish", "softplus"])
def test_activation_keeps_its_relative_accuracy(name: str, dtype: Any) -> None:
    """At most 3 library functions and 4 roundings. A tail computed as 1 - (nearly 1) would be off by its own size."""
    function = softplus if name == "softplus" else ACTIVATIONS[name]
    truth = {**TRUTH, "softplus": lambda x: mp.log1p(mp.exp(x))}[name]
    x = np.linspace(-80, 80, 1001).astype(dtype)
    for value, got in zip(x[x != 0], function(x[x != 0]), strict=True):
        with mp.workdps(60):
            assert abs(mp.mpf(float(got)) / truth(mp.mpf(float(value))) - 1) <= (3 * LIBM + 4) * UNIT[dtype], value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_at_the_ends_of_the_range(name: str, dtype: Any) -> None:
    """Returns the limits, without a warning (the test run turns warnings into errors)."""
    largest = float(np.finfo(dtype).max)
    at_end = {"gelu_10": 10.0, "relu6": 6.0, "relu2": np.inf} | dict.fromkeys(("sigmoid", "tanh", "laplace"), 1.0)
    at_start = {"tanh": -1.0, "linear": -np.inf, "leaky_relu": -np.inf}
    y = activation(name)(np.array([largest, np.inf, -largest, -np.inf, np.nan], dtype))
    assert y[0] == at_end.get(name, largest) and y[1] == at_end.get(name, np.inf)
    assert y[3] == at_start.get(name, 0)
    slope = {"linear": 1.0, "leaky_relu": 0.01}.get(name)
    assert y[2] == pytest.approx(-slope * largest, rel=UNIT[dtype] * 2) if slope else y[2] == at_start.get(name, 0)
    assert np.isnan(y[4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,), (2, 3, 5)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_keeps_dtype_shape_and_argument(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    x = np.random.default_rng(0).normal(0, 3, shape).astype(dtype)
    before = x.copy()
    y = activation(name)(x)
    assert isinstance(y, np.ndarray) and y.dtype == x.dtype and y.shape == shape
    y[...] = 7
    assert np.array_equal(x, before)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_in_float16_is_the_rounded_float32(name: str) -> None:
    x = np.arange(0, 0x10000, dtype=np.uint16).view(np.float16)
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore"):
        expected = activation(name)(x.astype(np.float32)).astype(np.float16)
    assert np.array_equal(activation(name)(x), expected)


@given(st.floats(-1e6, 1e6))
def test_sigmoid_of_x_and_minus_x_sum_to_one(x: float) -> None:
    a = np.array([x])
    assert abs(sigmoid(a) + sigmoid(-a) - 1)[0] <= 4 * UNIT[np.float64]


@given(st.floats(-1e6, 1e6))
def test_softplus_of_x_minus_softplus_of_minus_x_is_x(x: float) -> None:
    a = np.array([x])
    assert abs(softplus(a) - softplus(-a) - a)[0] <= 4 * UNIT[np.float64] * max(1, abs(x))


def test_activation_passes_a_callable_through() -> None:
    def own(x: Any) -> Any:
        return x

    assert activation(own) is own
    assert activation("gelu") is gelu and activation("swish") is silu


@pytest.mark.parametrize("name", ["gleu", "", "GELU"])
def test_activation_unknown_name_lists_the_valid_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"one of gelu, gelu_10, .*, tanh, got {name!r}"):
        activation(name)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_rejects_integers(name: str) -> None:
    with pytest.raises(TypeError, match="x: expected float16, float32 or float64, got int64"):
        activation(name)(np.arange(3, dtype=np.int64))

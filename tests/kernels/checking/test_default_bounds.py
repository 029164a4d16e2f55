"""Default bounds: float32 stays within them, they are not much wider than derived ones, and what they cannot follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_m import reference
from ernie_m.kernels.checking import bounds
from ernie_m.kernels.checking.default_bounds import Tape, running, running_bound, three_way
from ernie_m.kernels.checking.drawing import KINDS, MAGNITUDES, numbers
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.intervals import Bounded, NotFollowed

FLOAT32 = FORMATS["float32"]

# Steps of a computation: of x, (N, E), and y, (N, E), to another array of that shape.
STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / (np.abs(y) + 0.5),
    "reciprocal": lambda x, y: np.reciprocal(1.5 + np.square(x)),
    "negative": lambda x, y: -x,
    "a constant": lambda x, y: 0.1 * x + 1 / 3,
    "square": lambda x, y: x**2,
    "the same twice": lambda x, y: x * x,
    "power": lambda x, y: (np.abs(x) + 0.1) ** -0.7,
    "cube": lambda x, y: x**3,
    "sqrt": lambda x, y: np.sqrt(np.abs(x)),
    "exp": lambda x, y: np.exp(np.clip(x, -20.0, 20.0)),
    "exp2": lambda x, y: np.exp2(np.minimum(x, 20.0)),
    "log": lambda x, y: np.log(np.abs(x) + 0.25),
    "log1p": lambda x, y: np.log1p(np.abs(x)),
    "tanh": lambda x, y: np.tanh(x),
    "sin and cos": lambda x, y: np.sin(np.tanh(x)) + np.cos(np.tanh(y)),
    "maximum": lambda x, y: np.maximum(x, y),
    "where": lambda x, y: np.where(x > y, x, 0.0),
    "where not": lambda x, y: np.where(~((x <= y) | (y == 0)), y, x),
    "mean": lambda x, y: x - x.mean(axis=-1, keepdims=True),
    "sum": lambda x, y: x + np.sum(y, axis=0),
    "var": lambda x, y: x / np.sqrt(np.var(x, axis=-1, keepdims=True) + 1e-2),
    "std": lambda x, y: x + y.std(axis=-1, keepdims=True),
    "max and min": lambda x, y: x - np.max(x, axis=-1, keepdims=True) + y.min(),
    "cumsum": lambda x, y: np.cumsum(x, axis=-1),
    "matmul": lambda x, y: x @ y.T @ x,
    "einsum": lambda x, y: np.einsum("ne,me->nm", x, y) @ y,
    "halves": lambda x, y: np.concatenate([x[:, 1::2], y[:, ::2]], axis=1),
    "stack": lambda x, y: np.stack([x, y], axis=1).sum(axis=1),
    "split": lambda x, y: np.concatenate(np.split(x, 2, axis=-1)[::-1], axis=-1),
    "moves": lambda x, y: np.swapaxes(x.reshape(2, -1, x.shape[1]), 0, 1).transpose(1, 0, 2).reshape(x.shape),
    "in place": lambda x, y: _in_place(x, y),
}


def _in_place(x: Any, y: Any) -> Any:
    out = np.empty_like(x)
    out[:, ::2], out[:, 1::2] = x[:, 1::2], y[:, ::2]
    out -= y
    np.tanh(out, out=out)
    return out


def assert_inside(steps: list[str], x: np.ndarray, y: np.ndarray) -> Bounded:
    """float32 stays within the intervals, which hold the exact numbers too."""

    def program(x: Any, y: Any) -> Any:
        for step in steps:
            x = STEPS[step](x, y)
        return x

    with np.errstate(all="ignore"):
        got = program(x.astype(np.float32), y.astype(np.float32)).astype(np.float64)
        exact = program(x, y)
    found = running(program, Tape(FLOAT32.u), {"x": x, "y": y})
    np.testing.assert_array_equal(found.exact, exact)
    inside = (found.low <= got) & (got <= found.high) | (np.isnan(got) & np.isinf(found.radius))
    assert inside.all(), (steps, got[~inside], found.low[~inside], found.high[~inside])
    assert ((found.low <= exact) & (exact <= found.high)).all()
    return found


@pytest.mark.parametrize("step", STEPS)
def test_every_step_is_followed_within_a_narrow_bound(step: str) -> None:
    """On numbers around 1; without the rounding of a step, its test fails."""
    rng = np.random.default_rng(0)
    x, y = (FLOAT32.round(rng.standard_normal((64, 64))) for _ in range(2))
    found = assert_inside([step], x, y)
    assert found.radius.max() <= 1e-3 * max(1.0, np.abs(found.exact).max())


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.sampled_from(list(STEPS)), min_size=2, max_size=5),
    shape=st.tuples(st.sampled_from((2, 6)), st.sampled_from((2, 8, 130))),
    magnitude=st.sampled_from(MAGNITUDES),
    offset=st.sampled_from((0.0, 30.0)),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 999),
)
def test_float32_stays_within_the_running_bound(
    steps: list[str], shape: tuple[int, int], magnitude: float, offset: float, kind: str, seed: int
) -> None:
    """For programs of random steps, on the numbers that checks draw."""
    x, y = (numbers(FLOAT32, shape, seed + i, magnitude, offset, kind) for i in range(2))
    assert_inside(steps, x, y)


def layer_norm(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * gamma + beta


def softmax(scores: Any) -> Any:
    weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def attention(q: Any, k: Any, v: Any) -> Any:
    return softmax(q @ k.T / math.sqrt(q.shape[-1])) @ v


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_running_bound_is_close_to_the_derived_one(name: str, offset: float) -> None:
    rng, format = np.random.default_rng(1), FORMATS[name]
    x, gamma, beta = (format.round(z) for z in (rng.standard_normal((8, 768)) + offset, *rng.standard_normal((2, 768))))
    inputs = {"x": x, "gamma": gamma, "beta": beta, "eps": 1e-5}
    found, derived = running_bound(format, layer_norm, inputs), bounds.layer_norm(format, **inputs)
    np.testing.assert_array_less(found.limit, 5 * derived.limit)
    found, derived = running_bound(format, softmax, {"scores": x}), bounds.softmax(format, x)
    np.testing.assert_array_less(found.limit, 5 * derived.limit)
    assert (found.terms, found.roundings) == (768, 1)


def test_a_computed_factor_of_a_product_may_be_rounded_to_the_format() -> None:
    """As in attention, whose tensor cores take probabilities in half precision."""
    format, rng = FORMATS["bfloat16"], np.random.default_rng(2)
    q, k, v = (format.round(z) for z in rng.standard_normal((3, 65, 64)))
    found = running_bound(format, attention, {"q": q, "k": k, "v": v})
    rounded = format.round(format.round(reference.softmax(q @ k.T / 8)) @ v)
    assert (np.abs(rounded - found.exact) <= found.limit).all()
    assert found.roundings == 2
    assert (np.abs(rounded * 1.05 - found.exact) > found.limit).any()


@pytest.mark.parametrize(("yes", "no"), [(5.0, 7.0), (7.0, 5.0)])
@pytest.mark.parametrize("compare", [np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal])
def test_where_rounding_decides_both_choices_are_right(compare: Any, yes: float, no: float) -> None:
    """The exact product is a little more than 1; in float32 it is 1."""
    x = FLOAT32.round(np.full(3, 1 / 3))

    def step(x: Any, y: Any) -> Any:
        return np.where(compare(x * 3.0, y), yes, no)

    found = running(step, Tape(FLOAT32.u), {"x": x, "y": np.array([1.0, 0.9, 1.1])})
    assert (found.low[0], found.high[0]) == (5.0, 7.0)
    compared = running(lambda x, y: compare(x * 3.0, y), Tape(FLOAT32.u), {"x": x, "y": np.ones(3)})
    assert not compared.low.any() and compared.high.all()
    sure = [yes if compare(1.0, y) else no for y in (0.9, 1.1)]
    assert found.low[1:].tolist() == found.high[1:].tolist() == sure


@pytest.mark.parametrize("function", [np.sin, np.cos, np.tanh, np.exp, np.floor, np.square, np.abs, np.negative])
@pytest.mark.parametrize(("low", "high"), [(0.9, 1.3), (-0.2, 0.1), (-2.1, -1.4)])
def test_results_hold_those_of_both_ends(function: Any, low: float, high: float) -> None:
    ends = np.array([low]), np.array([high])
    found = function(Bounded(Tape(FLOAT32.u), np.array([(low + high) / 2]), *ends))
    for x in np.linspace(low, high, 9):
        assert found.low[0] <= function(x) <= found.high[0]


@pytest.mark.parametrize("step", ["matmul", "einsum", "multiply", "square"])
def test_products_that_float32_flushes_to_zero_are_inside(step: str) -> None:
    assert_inside([step], np.full((4, 4), 1e-25), np.full((4, 4), 3e-25))


def test_the_bound_is_infinite_where_float32_overflows_and_where_a_divisor_may_be_zero() -> None:
    big = running_bound(FLOAT32, lambda x: np.exp(x), {"x": np.array([80.0, 100.0])})
    assert np.isfinite(big.limit[0]) and np.isinf(big.limit[1])
    zero = running_bound(FLOAT32, lambda x: 1.0 / (x * 3.0 - 1.0), {"x": FLOAT32.round(np.array([1 / 3, 0.5]))})
    assert np.isinf(zero.limit[0]) and np.isfinite(zero.limit[1])


def test_infinite_numbers_that_an_operation_defines_are_exact() -> None:
    def masked(x: Any, mask: Any) -> Any:
        return softmax(np.where(mask, x, -np.inf))

    inputs = {"x": np.array([[1.0, 2.0, 3.0]]), "mask": np.array([[True, False, True]])}
    found = running_bound(FLOAT32, masked, inputs)
    assert found.exact[0, 1] == 0.0 and found.limit[0, 1] <= 2 * bounds.FLUSHED


def _assigns(x: Any) -> Any:
    out = np.zeros(x.shape)
    out[...] = x * 2.0
    return out


@pytest.mark.parametrize(
    ("truth", "named"),
    [
        (lambda x: np.sort(x), r"np\.sort: "),
        (lambda x: np.linalg.norm(x, axis=-1), r"np\.norm: "),
        (lambda x: np.arcsinh(x), r"np\.arcsinh: "),
        (lambda x: np.multiply.reduce(x), r"np\.multiply\.reduce: "),
        (lambda x: np.add(x, 1.0, where=x > 0), r"np\.add: "),
        (lambda x: np.sum(x, where=x > 0), r"np\.sum: "),
        (lambda x: x.argsort(), r"ndarray\.argsort: "),
        (lambda x: x.astype(np.int64), r"ndarray\.astype\(int64\): "),
        (lambda x: x * math.exp(x[0, 0]), r"float\(\.\.\.\) or a function of math: .* use NumPy's functions"),
        (lambda x: x if x.sum() * 0.1 > 0.5 * x.sum() * 0.2 else -x, r"a condition of if or while: "),
        (lambda x: x[x * 3.0 > 1.0], r"indexing: .* use np\.where"),
        (lambda x: np.einsum("ij,ij,ij->i", x, x, x), r"np\.einsum\('ij,ij,ij->i'\) of 3 arrays"),
        (lambda x: np.power(x, 0.3), r"np\.power of numbers that may be negative"),
        (lambda x: np.where(x, x, 0.0), r"np\.where with a condition of float64"),
        (lambda x: np.add(x, 1.0, out=np.zeros(x.shape)), r"out= with a plain array: .* np\.empty_like"),
        (_assigns, r"conversion to a plain array, as by assigning to one: .* np\.empty_like"),
        (lambda x: np.asarray(x) * 2.0, r"conversion to a plain array"),
        (lambda x: x + 1j, r"complex 1j: "),
    ],
)
def test_what_cannot_be_followed_is_named(truth: Callable[[Any], Any], named: str) -> None:
    with pytest.raises(NotFollowed, match=named):
        running(truth, Tape(FLOAT32.u), {"x": FLOAT32.round(np.array([[-1 / 3, 1 / 3], [0.1, 2.0]]))})


@pytest.mark.parametrize(
    ("truth", "got"),
    [(lambda x: x.astype(np.float32), "float32"), (lambda x: 1.0, "float"), (lambda x: [x], "list")],
)
@pytest.mark.parametrize("bound", [running_bound, three_way])
def test_a_definition_that_returns_something_else_is_refused(truth: Any, got: str, bound: Any) -> None:
    with pytest.raises(TypeError, match=f"truth: expected it to return a float64 array .*, got {got}"):
        bound(FLOAT32, truth, {"x": np.ones(3)})


@pytest.mark.parametrize("bound", [running_bound, three_way])
def test_a_definition_may_change_its_arguments(bound: Any) -> None:
    def doubled(x: Any) -> Any:
        x *= 2.0
        return x

    x = np.arange(4.0)
    assert bound(FLOAT32, doubled, {"x": x}).exact.tolist() == [0.0, 2.0, 4.0, 6.0]
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", FORMATS)
def test_the_three_way_rule_allows_what_plain_arithmetic_loses(name: str) -> None:
    """Twice the error of a run whose every result is rounded; a fault of a few of those errors is seen."""
    format, rng = FORMATS[name], np.random.default_rng(3)
    x, gamma, beta = (format.round(z) for z in (rng.standard_normal((8, 768)) + 1, *rng.standard_normal((2, 768))))
    inputs = {"x": x, "gamma": gamma, "beta": beta, "eps": 1e-5}
    found = three_way(format, layer_norm, inputs)
    with np.errstate(all="raise"):
        wide = {k: v.astype(np.float32) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
        good = format.round(layer_norm(**wide).astype(np.float64))
    assert (np.abs(good - found.exact) <= found.limit).all()
    assert found.limit.max() < 400 * format.u * np.abs(found.exact).max()
    assert (np.abs(good * (1 + 800 * format.u) - found.exact) > found.limit).any()


def test_the_three_way_rule_is_twice_the_error_of_plain_arithmetic() -> None:
    """In bfloat16, 1.5 + 256 rounds to 258."""
    found = three_way(FORMATS["bfloat16"], lambda x: (x + 256.0) - 256.0, {"x": np.array([1.5, 2.0])})
    assert found.exact.tolist() == [1.5, 2.0]
    assert found.limit.min() >= 1.0 and found.limit.max() <= 1.02

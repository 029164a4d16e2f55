"""What rounding explains, for each kind of entry, against the formulas of the module's docstring."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ernie_m.reference.rounding import FORMATS, Error, Judge, over, rms
from ernie_m.reference.trace import Entry

B, S, H, D = 2, 5, 3, 8
E = H * D
LAYER = "encoder.layers.0."
INNER = f"{LAYER}self_attn.self_attn."
SHAPES = {
    "embeddings.layer_norm": (B, S, E),
    **{f"{INNER}{name}": (B, S, E) for name in ("q_proj", "k_proj", "v_proj", "context")},
    **{f"{INNER}{name}": (B, H, S, S) for name in ("scores", "probs")},
    **{f"{LAYER}{name}": (B, S, E) for name in ("self_attn.out_proj", "norm1", "linear2")},
    **{f"{LAYER}{name}": (B, S, 2 * E) for name in ("linear1", "activation")},
}
U, EPS, SMALLEST = 2.0**-11, 2.0**-24, 2.0**-25  # float16, and float32 for partial sums


def judge(*fused: str, values: dict[str, np.ndarray] | None = None) -> Judge:
    """A reference and a float16 trace with errors of 1 %, in which the entries `fused` are missing."""
    rng = np.random.default_rng(0)
    a, b = {}, {}
    for name, shape in SHAPES.items():
        x = (values or {}).get(name, rng.standard_normal(shape) * rng.uniform(0.5, 3))
        y = x + 0.01 * rng.standard_normal(x.shape)
        a[name] = Entry(name, x)
        if name not in fused:
            b[name] = Entry(name, y, None, "float16")
    return Judge(a, b, None, ())


def size(found: Judge, name: str) -> float:
    return rms(found.a[name].value)


def error(found: Judge, name: str) -> float:
    return rms(found.a[name].value - found.b[name].value)


def own(size: float, terms: float = 0, roundings: int = 1) -> float:
    return 0.42 * size * (U * math.sqrt(roundings) + EPS * math.sqrt(terms / 2)) + SMALLEST


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "float64"])
def test_formats_are_the_unit_roundoff_and_half_the_smallest_number(dtype: str) -> None:
    u, smallest = FORMATS[dtype]
    if dtype == "bfloat16":
        assert (u, smallest) == (2.0**-8, 2.0**-126 * 2.0**-7 / 2)
    else:
        found = np.finfo(dtype)
        assert (u, smallest) == (float(found.eps) / 2, float(found.smallest_subnormal) / 2)


def test_over_of_zeros_and_nan() -> None:
    assert over(0.0, 0.0) == 0 and over(3.0, 2.0) == 1.5
    assert over(1.0, 0.0) == over(math.inf, 1.0) == over(math.nan, 1.0) == over(math.inf, math.inf) == math.inf


def test_largest_is_relative_to_numbers_above_1() -> None:
    x, y = np.array([[10.0, 20.0]]), np.array([[10.0, 25.0]])
    assert Judge({"a": Entry("a", x)}, {"a": Entry("a", y)}, None, ()).largest("a") == (0.2, (0, 1), (20.0, 25.0))
    found = Judge({"a": Entry("a", x / 100)}, {"a": Entry("a", y / 100)}, None, ()).largest("a")
    assert found[0] == pytest.approx(0.05) and found[1] == (0, 1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_largest_of_what_is_not_finite_is_infinite(wrong: float) -> None:
    pair = [{"a": Entry("a", np.array([[1.0, x]]))} for x in (2.0, wrong)]
    for a, b in (pair, pair[::-1]):
        assert Judge(a, b, None, ()).largest("a")[:2] == (np.inf, (0, 1))


def test_measured_is_the_rms_and_the_scale_of_the_error() -> None:
    x = np.array([[3.0, -4.0]])
    found = Judge({"a": Entry("a", x)}, {"a": Entry("a", 1.5 * x)}, None, ()).measured("a")
    assert found == pytest.approx((0.5 * math.sqrt(12.5), math.sqrt(12.5), 0.5))


def test_explained_of_a_linear_map_amplifies_errors_as_it_does_its_input() -> None:
    found = judge()
    for name, source, width in (
        (f"{INNER}q_proj", "embeddings.layer_norm", E),
        (f"{LAYER}linear1", f"{LAYER}norm1", E),
        (f"{LAYER}linear2", f"{LAYER}activation", 2 * E),
    ):
        gain = size(found, name) / size(found, source)
        expected = gain * error(found, source) + own(size(found, name), width, 2)
        assert found.explained(name).error == pytest.approx(expected, rel=1e-12), name


def test_explained_of_few_numbers_amplifies_as_the_largest_gain_before() -> None:
    """And by 1 if there was none."""
    rng = np.random.default_rng(1)
    values = {"ernie_m.pooler.dense": rng.standard_normal((2, 8)), "classifier": 1e-3 * rng.standard_normal((2, 3))}
    values["ernie_m.pooler.activation"] = np.tanh(values["ernie_m.pooler.dense"])
    a = {name: Entry(name, x) for name, x in values.items()}
    b = {name: Entry(name, x + 0.01, None, "float16") for name, x in values.items()}
    pooled = size(Judge(a, b, None, ()), "ernie_m.pooler.activation")
    for before, gain in ((0.0, 1.0), (3.0, 3.0)):
        found = Judge(a, b, None, ())
        found.gain = before
        expected = gain * error(found, "ernie_m.pooler.activation") + own(gain * pooled, 8, 2)
        assert found.explained("classifier").error == pytest.approx(expected, rel=1e-12)
        assert found.gain == max(before, size(found, "classifier") / pooled)


def test_explained_of_an_activation_follows_its_slope() -> None:
    for factor in (0.1, 5.0):
        x = np.random.default_rng(1).standard_normal((B, S, 2 * E))
        found = judge(values={f"{LAYER}linear1": x, f"{LAYER}activation": factor * x})
        expected = error(found, f"{LAYER}linear1") * max(1.13, 2 * factor) + own(factor * rms(x), 64)
        assert found.explained(f"{LAYER}activation").error == pytest.approx(expected, rel=1e-12)


def test_explained_of_scores() -> None:
    found = judge()
    q, k, scores = f"{INNER}q_proj", f"{INNER}k_proj", f"{INNER}scores"
    parts = error(found, q) * size(found, k), error(found, k) * size(found, q)
    reach = max(size(found, scores), size(found, q) * size(found, k))
    assert found.explained(scores).error == pytest.approx(math.hypot(*parts) + own(reach, D), rel=1e-12)


def test_explained_of_probabilities_is_the_derivative_of_softmax() -> None:
    found = judge()
    p = found.a[f"{INNER}probs"].value
    d = found.a[f"{INNER}scores"].value - found.b[f"{INNER}scores"].value
    jacobian = p[..., :, None] * (np.eye(S) - p[..., None, :])  # dp_i / ds_j
    expected = rms((jacobian @ d[..., None])[..., 0]) + own(rms(p), 64)
    assert found.explained(f"{INNER}probs").error == pytest.approx(expected, rel=1e-12)


def test_explained_of_probabilities_without_scores_is_their_largest_relative_error() -> None:
    found = judge(f"{INNER}scores")
    scores = found.explained(f"{INNER}scores").error
    p = size(found, f"{INNER}probs")
    assert found.explained(f"{INNER}probs").error == pytest.approx(math.sqrt(2) * scores * p + own(p, 64), rel=1e-12)


def test_explained_of_the_context() -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(S), (B, H, S))
    found = judge(values={f"{INNER}probs": p})
    probs, v, context = f"{INNER}probs", f"{INNER}v_proj", f"{INNER}context"
    reach = max(size(found, context), min(1.0, math.sqrt(S) * rms(p)) * size(found, v))
    parts = error(found, v), math.sqrt(S) * error(found, probs) * size(found, v)
    assert found.explained(context).error == pytest.approx(math.hypot(*parts) + own(reach, S, 2), rel=1e-12)


def test_explained_of_layer_norm_divides_by_the_spread_of_the_sum() -> None:
    found = judge()
    x, y, norm = "embeddings.layer_norm", f"{LAYER}self_attn.out_proj", f"{LAYER}norm1"
    z = found.a[x].value + found.a[y].value
    rows = np.sqrt(np.square(found.a[norm].value).mean(axis=-1)) / z.std(axis=-1)
    inputs = math.hypot(error(found, x), error(found, y)) + own(rms(z), 1)
    expected = rms(rows) * inputs + own(size(found, norm), 64, 2)
    assert found.explained(norm).error == pytest.approx(expected, rel=1e-12)


def test_explained_takes_what_a_forced_trace_was_given_as_right() -> None:
    found, name = judge(), f"{INNER}q_proj"
    forced = Judge(found.a, found.b, None, ("embeddings.layer_norm",))
    given = size(found, "embeddings.layer_norm")
    gain = size(found, name) / given
    assert forced.explained(name).error == pytest.approx(gain * own(given) + own(size(found, name), E, 2), rel=1e-12)
    assert forced.explained(name).scale == U


def test_ratio_allows_four_times_what_is_explained() -> None:
    """Of N numbers 2/√N more, and for their common scale what rounding and the inputs' scales explain."""
    found, name = judge(), f"{LAYER}linear1"
    explained, N = found.explained(name), B * S * 2 * E
    allowed = 4 * (1 + 2 / math.sqrt(N)) * explained.error
    assert found.ratio(name, Error(0.7 * allowed, explained.size, 0.0)) == pytest.approx(0.7, rel=1e-12)
    typical = explained.error / (explained.size * math.sqrt(2 * E))
    scale = 4 * typical + 8 * EPS + 2 * explained.scale
    assert found.ratio(name, Error(0.0, explained.size, 0.6 * scale)) == pytest.approx(0.6, rel=1e-12)
    probs = f"{INNER}probs"  # random errors of attention do not cancel
    assert found.ratio(probs, Error(0.0, size(found, probs), 1e3)) == 0

"""The bounds are valid: the best possible results pass. And they are tight: worse results do not."""

from __future__ import annotations

import numpy as np
import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_m import kernels, reference
from ernie_m.kernels.checking import attention_bounds, attention_gradient_bounds, bounds, loss_gradient_bounds
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.operations import OPERATIONS, Case, cases, fixed_case
from ernie_m.kernels.checking.verdicts import MOST_FEW, componentwise, judge
from ernie_m.kernels.runtime.dtypes import TORCH_DTYPES

BOTH = [(op, dtype) for op in OPERATIONS for dtype in FORMATS]
# A new seed each time, except in continuous integration.
SEED = 0 if settings.default.derandomize else int(np.random.default_rng().integers(2**31))
BFLOAT16, FLOAT32 = FORMATS["bfloat16"], FORMATS["float32"]


@pytest.mark.parametrize("dtype", FORMATS)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-160, 160))
def test_round_equals_torch(dtype: str, seed: int, exponent: int) -> None:
    """Including ties: half of the numbers lie on a grid twice as fine as the format's."""
    format = FORMATS[dtype]
    x = np.random.default_rng(seed).uniform(-2, 2, 64)
    x[::2] = np.rint(x[::2] * 2.0**format.bits) / 2.0**format.bits
    x = np.ldexp(x, exponent)
    # torch converts float64 to half precision via float32, which rounds twice.
    x = x if dtype == "float32" else np.float64(x.astype(np.float32)) if np.all(np.abs(x) < 3e38) else np.zeros(1)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(format.round(x), torch.from_numpy(x).to(TORCH_DTYPES[dtype]).double().numpy())


@pytest.mark.parametrize("dtype", FORMATS)
def test_formats_equal_torch(dtype: str) -> None:
    ours, theirs = FORMATS[dtype], torch.finfo(TORCH_DTYPES[dtype])
    assert (ours.largest, 2 * ours.u) == (theirs.max, theirs.eps)
    assert ours.smallest == theirs.smallest_normal * theirs.eps
    assert np.isinf(ours.round(np.array([ours.overflow])))
    assert ours.round(np.array([np.nextafter(ours.overflow, 0)])) == ours.largest


@pytest.mark.parametrize(("op", "dtype"), BOTH)
def test_the_correctly_rounded_result_passes_on_drawn_inputs(op: str, dtype: str) -> None:
    @settings(max_examples=25)
    @given(case=cases(op, dtype))
    def passes(case: Case) -> None:
        expected = case.expected
        assert componentwise(FORMATS[dtype].round(expected.exact), expected).holds

    passes()


@pytest.mark.parametrize(("op", "dtype"), BOTH)
def test_the_correctly_rounded_result_passes_all_bounds_on_fixed_data(op: str, dtype: str) -> None:
    for seed in range(3):
        expected = fixed_case(op, dtype, seed).expected
        assert expected.exact.size > MOST_FEW
        assert all(verdict.holds for verdict in judge(FORMATS[dtype].round(expected.exact), expected, True))


@pytest.mark.parametrize(("op", "dtype"), BOTH)
def test_plain_float32_rounded_once_passes(op: str, dtype: str) -> None:
    """For attention, with probabilities kept in float32 and with rounded ones."""
    functions = [planted.KERNELS[op]]
    if "attention" in op:
        functions.append(lambda *inputs: planted.KERNELS[op](*inputs, rounded_probs=False))
    for function in functions:
        assert check(function, op, dtypes=[dtype], examples=12, seed=SEED)


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_error_of_three_roundings_fails(op: str) -> None:
    """Every number moved away from 0 by 3 u, which no good computation does."""
    expected = fixed_case(op, "bfloat16").expected
    moved = expected.exact * (1 + 3 * BFLOAT16.u)
    assert {verdict.bound for verdict in judge(moved, expected, True) if not verdict.holds} >= {"rms", "signed_mean"}
    if "attention" not in op:
        assert not componentwise(moved, expected).holds


def test_gelu_bounds_hold_for_every_bfloat16() -> None:
    """All finite numbers of the format, including the largest and the subnormal ones."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).double().numpy()
    every = every[np.isfinite(every)]
    expected = bounds.gelu(BFLOAT16, every)
    assert np.isfinite(expected.limit).all()
    assert componentwise(BFLOAT16.round(expected.exact), expected).holds


def test_infinity_is_right_where_the_exact_result_rounds_to_it() -> None:
    format = FORMATS["float16"]
    expected = bounds.bias_gelu(format, np.array([[60000.0, -60000.0]]), np.array([60000.0, -60000.0]))
    assert componentwise(np.array([[np.inf, 0.0]]), expected).holds
    for wrong in (65504.0, -np.inf, np.nan):
        assert not componentwise(np.array([[wrong, 0.0]]), expected).holds
    # Far off in either direction, as a gradient of three nearly equal numbers may be.
    wide = bounds.Expected(format, np.array([-900.0]), np.array([1e5]))
    assert all(componentwise(np.array([x]), wide).holds for x in (np.inf, -np.inf))
    assert not componentwise(np.array([np.inf]), bounds.Expected(format, np.array([-900.0]), np.array([66000.0]))).holds
    small = bounds.gelu(format, np.array([60000.0]))
    assert not componentwise(np.array([np.inf]), small).holds


@pytest.mark.parametrize("ratio", [30.0, 300.0, 3000.0])
def test_layer_norm_with_a_large_mean_may_lose_digits_but_no_more(ratio: float) -> None:
    """Two float32 passes are within the bound; mean(x²) - mean(x)² is not, even of exact means that are rounded once.

    Without the mean, the bound is tighter.
    """
    rng = np.random.default_rng(0)
    case = Case(
        "layer_norm",
        "float32",
        {
            "x": FLOAT32.round(rng.standard_normal((64, 768)) + ratio),
            "gamma": FLOAT32.round(rng.standard_normal(768)),
            "beta": FLOAT32.round(rng.standard_normal(768)),
            "eps": 1e-5,
        },
    )
    x, gamma, beta = (torch.from_numpy(case.inputs[name]).float() for name in ("x", "gamma", "beta"))
    got = planted.layer_norm(x, gamma, beta, 1e-5).double().numpy()
    assert componentwise(got, case.expected).holds
    wide = case.inputs["x"]
    mean, square = (FLOAT32.round(z.mean(-1, keepdims=True)) for z in (wide, np.square(wide)))
    one_pass = (wide - mean) / np.sqrt(np.maximum(square - mean * mean, 0) + 1e-5)
    one_pass = one_pass * case.inputs["gamma"] + case.inputs["beta"]
    assert not componentwise(one_pass, case.expected).holds
    near = bounds.layer_norm(FLOAT32, case.inputs["x"] - ratio, gamma.double().numpy(), beta.double().numpy(), 1e-5)
    assert (near.limit < case.expected.limit).all()


def test_add_layer_norm_keeps_the_error_of_terms_that_cancel() -> None:
    """In x + bias, x takes up float32's digits; then the residual cancels x."""
    rng = np.random.default_rng(0)
    x, bias = FLOAT32.round(rng.standard_normal((8, 64)) * 1e4), FLOAT32.round(rng.standard_normal(64))
    gamma, beta = FLOAT32.round(rng.standard_normal((2, 64)))
    expected = bounds.add_layer_norm(FLOAT32, x, bias, -x, gamma, beta, 1e-5)
    wide = [torch.from_numpy(array).float() for array in (x, bias, gamma, beta)]
    z = (wide[0] + wide[1]) - wide[0]
    got = planted.layer_norm(z, wide[2], wide[3], 1e-5).double().numpy()
    assert np.abs(got - expected.exact).max() > 100 * FLOAT32.u
    assert componentwise(got, expected).holds
    # The worst case: all numbers move outwards, which raises the variance, except the outermost, which moves inwards.
    z = np.broadcast_to(bias, x.shape)
    outwards = np.sign(z - z.mean(-1, keepdims=True))
    outwards[:, np.abs(bias - bias.mean()).argmax()] *= -1
    worst = z + outwards * 2 * bounds.EPS * (2 * np.abs(x) + np.abs(bias))
    assert componentwise(reference.layer_norm(worst, gamma, beta, 1e-5), expected).holds


@pytest.mark.parametrize("ratio", [0.0, 30.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_worst_good_layer_norm_in_float32_passes(ratio: float, sign: float) -> None:
    """In float64: every addition of the longest chain is off by ε in the same direction, and 1/√ by 4 ε."""
    rng = np.random.default_rng(1)
    x = FLOAT32.round(rng.standard_normal((8, 768)) + ratio)
    gamma, beta = FLOAT32.round(rng.standard_normal((2, 768)))
    expected = bounds.layer_norm(FLOAT32, x, gamma, beta, 1e-5)
    off = sign * bounds.chain(768) * bounds.EPS
    centred = x - (x.mean(-1, keepdims=True) + off * np.abs(x).mean(-1, keepdims=True))
    variance = np.square(centred).mean(-1, keepdims=True) * (1 - off)
    got = centred / np.sqrt(variance + 1e-5) * (1 + sign * 4 * bounds.EPS) * gamma + beta
    worst = componentwise(got, expected)
    assert worst.holds and worst.ratio > 0.5
    # Twice that error is too much.
    further = expected.exact + 2 * (got - expected.exact)
    assert not componentwise(further, expected).holds


def test_softmax_may_sum_in_one_long_chain() -> None:
    """4,096 probabilities added one by one: the error is more than a few roundings, which the S ε term allows."""
    scores = np.full((1, 4096), FLOAT32.round(np.array(-2.3)))
    scores[0, 0] = 0.0
    e = np.exp(scores).astype(np.float32)
    got = (e / np.cumsum(e, -1, dtype=np.float32)[:, -1:]).astype(np.float64)
    expected = bounds.softmax(FLOAT32, scores)
    assert (np.abs(got - expected.exact) / expected.exact).max() > 30 * FLOAT32.u
    assert componentwise(got, expected).holds


def test_probabilities_too_small_for_float16_may_be_lost() -> None:
    """e⁻¹⁸ rounds to 0 in float16, but times a value of 30,000 it is most of the result."""
    format = FORMATS["float16"]
    q, k, v = np.zeros((1, 16)), np.zeros((2, 16)), np.zeros((2, 16))
    q[0, 0], k[1, 0], v[1] = 4.0, -18.0, 30000.0
    expected = attention_bounds.attention_head(format, q, k, v)
    tensors = [torch.from_numpy(array).to(torch.float16) for array in (q, k, v)]
    got = planted.attention_head(*tensors).double().numpy()
    assert (got == 0).all() and (expected.exact > 4e-4).all()
    assert componentwise(got, expected).holds


def test_a_gradient_of_scores_past_the_range_of_float16_has_no_bound() -> None:
    """dP is 10⁶ where keys are 10⁻³: dS, rounded to float16, is infinite, and dq, which is not, depends on it.

    Keys or values alone of that size keep their bounds.
    """
    rng, format = np.random.default_rng(0), FORMATS["float16"]
    dy, q, k, v = (format.round(size * rng.standard_normal((2, 128))) for size in (1e3, 1.0, 1e-3, 1e3))
    for size, bounded in ((1.0, False), (1e-4, True)):
        given = format.round(size * dy)[:, None], np.stack([q, k, v], 1)[:, :, None], np.array([0, 2])
        found = attention_gradient_bounds.packed_attention_vjp(format, *given)
        assert np.abs(found.exact[:, 0]).max() < format.largest
        assert np.isfinite(found.limit[:, :2]).all() == bounded and np.isfinite(found.limit[:, 2]).all()
        tensors = [torch.from_numpy(x).to(torch.float16) for x in given[:2]]
        got = planted.KERNELS["packed_attention_vjp"](*tensors, torch.from_numpy(given[2])).double().numpy()
        assert np.isfinite(got).all() == bounded and componentwise(got, found).holds


@pytest.mark.parametrize(("size", "d_loss"), [(1.0, 1.0), (300.0, 1.0), (1.0, 65504.0)])
def test_logits_past_the_range_of_float16_have_no_bound(size: float, d_loss: float) -> None:
    """90,000, in the first row: it has no bound, and the table has none. The last row has no label."""
    format, labels = FORMATS["float16"], np.array([1, 0, -100])
    hidden, bias = np.array([[size, 0.0], [0.0, 1.0], [1e3, 1e3]]), np.zeros(2)
    weight = np.array([[size, 0.5], [0.0, 1.0]])
    found = loss_gradient_bounds.linear_cross_entropy_vjp(format, np.asarray(d_loss), hidden, weight, bias, labels)
    d_hidden, *others = (np.isfinite(part.limit) for _, _, part in found.each())
    bounded = size < 300
    assert d_hidden.tolist() == [[bounded] * 2, [True] * 2, [True] * 2] and all((x == bounded).all() for x in others)
    tensors = [torch.from_numpy(x).to(torch.float16) for x in (np.asarray(d_loss), hidden, weight, bias)]
    with np.errstate(all="ignore"):
        got = kernels.linear_cross_entropy_vjp(*tensors, torch.from_numpy(labels))
    flat = np.concatenate([x.double().numpy().ravel() for x in got])
    assert np.isfinite(flat).all() == bounded and componentwise(flat, found).holds


def test_attention_with_large_scores_may_lose_digits_but_no_more() -> None:
    """Scores in the hundreds: float32 attention is inevitably off by more than 1e-6, and within the bound."""
    rng = np.random.default_rng(0)
    q, k, v = (FLOAT32.round(rng.standard_normal((100, 64)) * size) for size in (9.0, 9.0, 1.0))
    expected = attention_bounds.attention_head(FLOAT32, q, k, v)
    assert np.abs(q @ k.T / 8).max() > 300
    got = planted.attention_head(*(torch.from_numpy(x).float() for x in (q, k, v))).double().numpy()
    # Rounding the scores to float32, with all else exact, costs more than 1e-6.
    rounded = reference.softmax(FLOAT32.round(q @ k.T / 8)) @ v
    assert np.abs(rounded - expected.exact).max() > 1e-6
    assert componentwise(got, expected).holds
    # Scores that are 1 % too large are not within it.
    wrong = planted.attention_head(*(torch.from_numpy(x).float() for x in (q, k, v)), scale=1.01).double().numpy()
    assert not componentwise(wrong, expected).holds


def test_exact_equals_the_reference() -> None:
    case = fixed_case("packed_attention", "float16")
    expected = reference.packed_attention(case.inputs["qkv"], case.inputs["cu_seqlens"])
    np.testing.assert_array_equal(case.expected.exact, expected)


def test_judge_rejects_averages_of_few_numbers() -> None:
    with pytest.raises(ValueError, match=r"expected at least 4096 numbers"):
        judge(np.ones(10), bounds.gelu(FLOAT32, np.ones(10)), statistical=True)

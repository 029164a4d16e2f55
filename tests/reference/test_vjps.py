"""Every operation's `_vjp`: central differences on random directions, the adjoint identity, and algebra.

Cotangents are random: with all ones, a mean subtracted twice would not show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from derivatives import check_gradients, dot
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rounding import U64

import ernie_m.reference as ernie
from ernie_m.reference.activations import ACTIVATIONS, elementwise
from ernie_m.reference.attention import attention_by_sequence, attention_by_sequence_vjp
from ernie_m.reference.embedding import embed_vectors, embed_vectors_vjp, sum_by_row
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
from ernie_m.reference.parameters import Linear
from ernie_m.reference.slopes import SLOPES

Arrays = list[np.ndarray]
EPS = 1e-5
SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.lists(st.sampled_from([0, 1, 2, 7, 33]), min_size=1, max_size=4)


def differentiate(
    function: Callable[..., np.ndarray], vjp: Callable[..., Any], at: Arrays, seed: int, rtol: float = 1e-6
) -> None:
    """Check `vjp(dy, *at)` against central differences of <function, dy>, and that no argument is changed."""
    dy = np.random.default_rng(seed).standard_normal(np.shape(function(*at)))
    kept = [x.copy() for x in (dy, *at)]
    found = vjp(dy, *at)
    gradients = found if isinstance(found, tuple) else (found,)
    for before, after in zip(kept, (dy, *at), strict=True):
        np.testing.assert_array_equal(before, after)
    check_gradients(lambda xs: dot([function(*xs)], [dy]), at, gradients, seed + 1, rtol=rtol)


def normal(seed: int, *shapes: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def ends_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


@given(SEEDS, st.sampled_from([(1,), (2, 3), (0,), (70,)]), st.integers(1, 9), st.integers(1, 9))
def test_linear_vjp_is_the_derivative(seed: int, leading: tuple[int, ...], inputs: int, outputs: int) -> None:
    def vjp(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Any:
        dx, p = ernie.linear_vjp(dy, x, Linear(weight, bias))
        return dx, p.weight, p.bias

    at = normal(seed, (*leading, inputs), (outputs, inputs), (outputs,))
    differentiate(lambda x, w, b: ernie.linear(x, Linear(w, b)), vjp, at, seed)


@given(SEEDS, st.sampled_from([None, "boolean", "added"]), st.sampled_from([1, 2, 7, 33]))
def test_softmax_vjp_is_the_derivative(seed: int, kind: str | None, S: int) -> None:
    rng = np.random.default_rng(seed)
    masks = {"boolean": rng.random((3, S)) < 0.7, "added": rng.standard_normal((1, S))}
    mask = None if kind is None else masks[kind]
    differentiate(
        lambda x: ernie.softmax(x, mask), lambda dy, x: ernie.softmax_vjp(dy, x, mask), normal(seed, (3, S)), seed
    )


@given(SEEDS, st.sampled_from([2, 7, 24]), st.floats(0.1, 10.0))
def test_layer_norm_vjp_is_the_derivative(seed: int, E: int, width: float) -> None:
    """Seen red without the mean, without the term of the variance, and with dγ from x instead of n."""
    x, gamma, beta = normal(seed, (2, 3, E), (E,), (E,))
    differentiate(
        lambda x, gamma, beta: ernie.layer_norm(x, gamma, beta, EPS),
        lambda dy, x, gamma, beta: ernie.layer_norm_vjp(dy, x, gamma, EPS),
        [x * width, gamma, beta],
        seed,
        rtol=1e-5,  # two numbers that happen to be close: the variance changes fast, and with it the truncation error
    )


@given(SEEDS)
def test_add_layer_norm_vjp_is_the_derivative(seed: int) -> None:
    differentiate(
        lambda *xs: ernie.add_layer_norm(*xs, EPS),
        lambda dy, x, bias, residual, gamma, beta: ernie.add_layer_norm_vjp(dy, x, bias, residual, gamma, EPS),
        normal(seed, (4, 7), (7,), (4, 7), (7,), (7,)),
        seed,
    )


@given(SEEDS)
def test_dropped_layer_norm_vjp_is_the_derivative(seed: int) -> None:
    """Seen red: dx not dropped, the residual's gradient dropped, the bias's of the sum."""
    more = (EPS, 0.4, seed, np.array([5, 0, 9, 2]))
    differentiate(
        lambda *xs: ernie.dropped_layer_norm(*xs, *more),
        lambda dy, x, bias, residual, gamma, beta: ernie.dropped_layer_norm_vjp(dy, x, bias, residual, gamma, *more),
        normal(seed, (4, 7), (7,), (4, 7), (7,), (7,)),
        seed,
    )


@given(SEEDS)
def test_bias_gelu_vjp_is_the_derivative(seed: int) -> None:
    differentiate(ernie.bias_gelu, ernie.bias_gelu_vjp, normal(seed, (4, 7), (7,)), seed)


# Where an activation has a kink; differences are taken nowhere near.
KINKS = {"relu": (0.0,), "relu2": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,), "gelu_10": (10.0,)}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@given(seed=SEEDS, width=st.sampled_from([0.5, 3.0, 8.0]))
@settings(max_examples=20)
def test_activation_vjp_is_the_derivative(name: str, seed: int, width: float) -> None:
    (x,) = normal(seed, (40,))
    x = x * width
    for kink in KINKS.get(name, ()):
        x = np.where(np.abs(x - kink) < 0.01, kink + 0.02, x)
    differentiate(ernie.activation(name), ernie.activation_vjp(name), [x], seed)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_activation_vjp_has_limits_everywhere(name: str, dtype: type) -> None:
    """At infinities and the largest numbers the slope is its limit, without a warning; nan stays nan."""
    top = np.finfo(dtype).max
    x = np.array([-np.inf, -top, -1e4, 1e4, top, np.inf, np.nan], dtype)
    with np.errstate(all="raise", under="ignore"):
        slope = ernie.activation_vjp(name)(np.ones_like(x), x) if name != "relu2" else None
    if slope is not None:
        assert slope.dtype == dtype
        assert np.isin(slope[:-1], [0, 1, dtype(0.01)]).all(), slope
        assert np.isnan(slope[-1]) == (name != "linear")


def test_activation_vjp_knows_every_activation_and_refuses_others() -> None:
    assert SLOPES.keys() == ACTIVATIONS.keys()
    assert ernie.activation_vjp(ernie.gelu)(np.ones(1), np.zeros(1)) == 0.5

    @elementwise
    def own(x: np.ndarray) -> np.ndarray:
        return x

    with pytest.raises(ValueError, match="known derivative"):
        ernie.activation_vjp(own)
    with pytest.raises(ValueError, match=r"expected one of gelu.*got 'gell'"):
        ernie.activation_vjp("gell")


@given(SEEDS, LENGTHS, st.booleans(), st.sampled_from([None, 0.3]))
@settings(max_examples=40)
def test_attention_vjp_is_the_derivative(seed: int, lengths: list[int], masked: bool, p: float | None) -> None:
    """With head masks and dropout. Seen red without the sum in softmax's vjp, and with the scale applied twice."""
    T, H, D = sum(lengths), 3, 4
    ends, rng = ends_of(lengths), np.random.default_rng(seed)
    head_mask = rng.standard_normal(H) if masked else None
    kept = rng.random((H, T, T)) < 0.7

    def drop(probs: np.ndarray, rows: slice, heads: slice) -> np.ndarray:
        return np.where(kept[heads, rows, rows], probs / 0.7, 0.0)

    options = (ends, head_mask, None if p is None else drop)
    differentiate(
        lambda *qkv: attention_by_sequence(*qkv, *options),
        lambda dy, *qkv: attention_by_sequence_vjp(dy, *qkv, *options),
        normal(seed, *[(T, H, D)] * 3),
        seed,
    )


@given(SEEDS, st.sampled_from(["boolean", "added"]))
def test_padded_attention_vjp_is_the_derivative(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((2, 1, 7, 7)) < 0.6 if kind == "boolean" else rng.standard_normal((2, 1, 1, 7))
    differentiate(
        lambda *qkv: ernie.attention(*qkv, mask)[0],
        lambda dy, *qkv: ernie.attention_vjp(dy, *qkv, mask),
        normal(seed, *[(2, 3, 7, 4)] * 3),
        seed,
    )


@given(SEEDS, LENGTHS)
@settings(max_examples=40)
def test_packed_and_first_token_attention_vjps_are_derivatives(seed: int, lengths: list[int]) -> None:
    T, B, H, D, ends = sum(lengths), len(lengths), 2, 4, ends_of(lengths)
    qkv, q, kv = normal(seed, (T, 3, H, D), (B, H, D), (T, 2, H, D))
    differentiate(
        lambda x: ernie.packed_attention(x, ends), lambda dy, x: ernie.packed_attention_vjp(dy, x, ends), [qkv], seed
    )
    differentiate(
        lambda q, kv: ernie.first_token_attention(q, kv, ends),
        lambda dy, q, kv: ernie.first_token_attention_vjp(dy, q, kv, ends),
        [q, kv],
        seed,
    )


@given(SEEDS, st.sampled_from([(0,), (1,), (5,), (2, 9)]))
def test_embed_vjp_is_the_derivative(seed: int, shape: tuple[int, ...]) -> None:
    """Seen red with positions that forget the offset of 2, and with repeated ids that overwrite one another."""
    rng = np.random.default_rng(seed)
    ids, positions = rng.integers(0, 4, shape), rng.integers(0, 3, shape)
    word, position, gamma, beta, vectors = normal(seed, (4, 6), (5, 6), (6,), (6,), (*shape, 6))
    differentiate(
        lambda *xs: ernie.embed(ids, positions, *xs, EPS),
        lambda dy, word, position, gamma, beta: ernie.embed_vjp(dy, ids, positions, word, position, gamma, EPS),
        [word, position, gamma, beta],
        seed,
    )
    differentiate(
        lambda vectors, *xs: embed_vectors(vectors, positions, *xs, EPS),
        lambda dy, vectors, position, gamma, beta: embed_vectors_vjp(dy, vectors, positions, position, gamma, EPS),
        [vectors, position, gamma, beta],
        seed,
    )


@given(SEEDS, st.booleans())
def test_loss_vjps_are_derivatives(seed: int, all_count: bool) -> None:
    """Targets that are ignored, out of the row and at padding included. Seen red with `counted` ignored."""
    rng = np.random.default_rng(seed)
    B, C = 5, 4
    logits, other = normal(seed, (B, C), (B, C))
    labels = np.where(rng.random(B) < 0.3, -100, rng.integers(0, C, B))
    counted = None if all_count else rng.random(B) < 0.7
    valid = np.arange(C) < rng.integers(0, C + 1, (B, 1))
    spans, flags = rng.integers(-1, C + 2, B), rng.random((B, C))
    chosen = None if all_count else rng.random((B, C)) < 0.7
    own = labels != -100 if counted is None else counted & (labels != -100)
    d_loss = rng.standard_normal(())
    cases: list[tuple[Any, Any, np.ndarray, Any]] = [
        (cross_entropy, cross_entropy_vjp, logits, (labels, counted)),
        (binary_cross_entropy, binary_cross_entropy_vjp, logits, (flags, chosen)),
        (squared_error, squared_error_vjp, logits, (other, chosen)),
        (span_loss, span_loss_vjp, np.where(valid, logits, np.finfo(float).min / 4), (spans, valid)),
    ]
    for loss, vjp, x, targets in cases:
        gradient = vjp(d_loss, x, *targets)
        if np.isnan(loss(x, *targets)):
            np.testing.assert_array_equal(gradient, np.zeros_like(x))
        else:
            check_gradients(lambda xs: float(d_loss * loss(xs[0], *targets)), [x], [gradient], seed)  # noqa: B023
    assert not cross_entropy_vjp(d_loss, logits, labels, counted)[~own].any()


@given(SEEDS, st.floats(0.0, 1.0))
def test_dropout_is_its_own_vjp(seed: int, p: float) -> None:
    """<dropout(v), w> = <v, dropout(w)>, to rounding: the adjoint identity of a linear map."""
    v, w = normal(seed, (6, 9), (6, 9))
    a, b = ernie.dropout(v, p, seed), ernie.dropout(w, p, seed)
    np.testing.assert_allclose(
        dot([a], [w]), dot([v], [b]), rtol=0, atol=60 * U64 * float(np.abs(a * w).sum() + 1e-300)
    )


@given(SEEDS)
def test_adjoint_identity_of_what_is_linear(seed: int) -> None:
    """<f(v), w> = <v, f_vjp(w)>: linear maps in x, attention in the values, LayerNorm in γ and β."""
    x, w, weight, bias = normal(seed, (5, 4), (5, 3), (3, 4), (3,))
    p = Linear(weight, np.zeros_like(bias))
    lhs, rhs = dot([ernie.linear(x, p)], [w]), dot([x], [ernie.linear_vjp(w, x, p)[0]])
    bound = 2 * (4 + 3 + 15) * U64
    np.testing.assert_allclose(lhs, rhs, rtol=0, atol=bound * float((np.abs(x) @ np.abs(weight).T * np.abs(w)).sum()))
    q, k, v, dy = normal(seed, *[(2, 7, 4)] * 4)
    context, probs = ernie.attention(q, k, v)
    _, _, dv = ernie.attention_vjp(dy, q, k, v)
    size = float((probs @ np.abs(v) * np.abs(dy)).sum())
    np.testing.assert_allclose(dot([context], [dy]), dot([v], [dv]), rtol=0, atol=2 * (7 + 7 + 56) * U64 * size)


@given(SEEDS, st.sampled_from([2, 7, 33]))
def test_gradients_of_what_is_invariant_are_zero_to_rounding(seed: int, S: int) -> None:
    """A shift of a row's scores, a shift of a LayerNorm's row, and a constant added to all of a query's keys."""
    scores, dy = normal(seed, (3, S), (3, S))
    ds = ernie.softmax_vjp(dy, scores)
    assert np.abs(ds.sum(axis=-1)).max() <= 8 * S * U64 * np.abs(dy).max()
    x, gamma, dy = normal(seed, (3, S), (S,), (3, S))
    dx, _, _ = ernie.layer_norm_vjp(dy, x, gamma, EPS)
    s = np.sqrt(x.var(axis=-1) + EPS)
    # Where a row's numbers are nearly equal, their mean's rounding is many times u of their spread.
    size = S * np.abs(dy * gamma).max(axis=-1) / s * (1 + np.abs(x).max(axis=-1) / s)
    assert (np.abs(dx.sum(axis=-1)) <= 16 * S * U64 * size).all()
    q, k, v, dy = normal(seed, *[(2, S, 4)] * 4)
    _, dk, _ = ernie.attention_vjp(dy, q, k, v)
    # A key bias adds the same to all scores of a query.
    size = np.abs(dy).max() * np.abs(v).max() * np.abs(q).max() * 4 * S
    assert np.abs(dk.sum(axis=-2)).max() <= 32 * S * U64 * size


@given(SEEDS, st.sampled_from([0.02, 0.1, 1.0]))
def test_layer_norm_is_invariant_to_scale_only_up_to_eps(seed: int, width: float) -> None:
    """<dx, x> = <dy, γ n> ε / (var + ε): 0 if ε were; 2.4 % of <dy, γ n> at a standard deviation of 0.02."""
    x, gamma, dy = normal(seed, (24,), (24,), (24,))
    x = (x - x.mean()) / x.std() * width
    dx, _, _ = ernie.layer_norm_vjp(dy, x, gamma, EPS)
    n = x / math.sqrt(width**2 + EPS)
    share = EPS / (width**2 + EPS)
    if width == 0.02:
        assert 0.024 < share < 0.025
    size = float(np.abs(dy * gamma * n).sum())
    np.testing.assert_allclose(float(dx @ x), float((dy * gamma * n).sum()) * share, rtol=0, atol=500 * U64 * size)


VJPS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda a: ernie.linear_vjp(a(3, 2), a(3, 4), Linear(a(2, 4), a(2))),
    "softmax": lambda a: ernie.softmax_vjp(a(3, 4), a(3, 4)),
    "layer_norm": lambda a: ernie.layer_norm_vjp(a(3, 4), a(3, 4), a(4), EPS),
    "add_layer_norm": lambda a: ernie.add_layer_norm_vjp(a(3, 4), a(3, 4), a(4), a(3, 4), a(4), EPS),
    "dropped_layer_norm": lambda a: ernie.dropped_layer_norm_vjp(a(3, 4), a(3, 4), a(4), a(3, 4), a(4), EPS, 0.5, 1),
    "bias_gelu": lambda a: ernie.bias_gelu_vjp(a(3, 4), a(3, 4), a(4)),
    "attention": lambda a: ernie.attention_vjp(a(2, 3, 4), a(2, 3, 4), a(2, 3, 4), a(2, 3, 4)),
    "packed_attention": lambda a: ernie.packed_attention_vjp(a(3, 2, 4), a(3, 3, 2, 4), np.array([0, 1, 3])),
    "first_token_attention": lambda a: ernie.first_token_attention_vjp(
        a(2, 2, 4), a(2, 2, 4), a(3, 2, 2, 4), np.array([0, 1, 3])
    ),
    "embed": lambda a: ernie.embed_vjp(a(3, 4), np.array([0, 1, 1]), np.array([0, 1, 2]), a(5, 4), a(5, 4), a(4), EPS),
    "dropout": lambda a: ernie.dropout_vjp(a(3, 4), 0.5, 1),
    "cross_entropy": lambda a: cross_entropy_vjp(a(), a(3, 4), np.array([0, 1, -100])),
    "binary": lambda a: binary_cross_entropy_vjp(a(), a(3, 4), a(3, 4)),
    "squared_error": lambda a: squared_error_vjp(a(), a(3, 4), a(3, 4)),
    "span_loss": lambda a: span_loss_vjp(a(), a(2, 4), np.array([0, 9]), np.ones((2, 4), bool)),
    **{name: lambda a, name=name: ernie.activation_vjp(name)(a(3, 4), a(3, 4)) for name in ACTIVATIONS},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", sorted(VJPS))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vjps_keep_the_dtype(name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return np.asarray(rng.standard_normal(shape), dtype)

    def leaves(found: Any) -> Arrays:
        if isinstance(found, Linear):
            return [found.weight, found.bias]
        return [leaf for part in found for leaf in leaves(part)] if isinstance(found, tuple) else [found]

    for leaf in leaves(VJPS[name](array)):
        assert leaf.dtype == dtype
        assert np.isfinite(leaf).all()


@given(SEEDS)
def test_half_precision_sums_in_float32(seed: int) -> None:
    """4,096 rows: summed in float16, a gradient stops growing at 2,048. Seen red with sums in the input's dtype."""
    rng = np.random.default_rng(seed)
    dy = (1 + rng.random((4096, 3))).astype(np.float16) * np.float16(0.5)
    x, weight = rng.standard_normal((4096, 3)).astype(np.float16), np.ones((3, 3), np.float16)
    exact = dy.astype(np.float64).sum(axis=0)
    assume((exact < 6e4).all())
    _, linear = ernie.linear_vjp(dy, x, Linear(weight, weight[0]))
    table = sum_by_row(dy, np.zeros(4096, int), weight)
    for found in (ernie.layer_norm_vjp(dy, x, weight[0], EPS)[2], linear.bias, table[0]):
        np.testing.assert_allclose(found, exact, rtol=2 * 2.0**-11)

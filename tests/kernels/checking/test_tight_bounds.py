"""The bounds are tight: in float32, one number that is off by 20 to 40 ε of what it is made of is refused.

What a number is made of is its condition: the argument of GELU, the terms of a sum, the scores of a softmax. Sizes are
small, where a good computation makes few roundings; that the bounds let good computations pass is tested in
test_bounds.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_m import reference
from ernie_m.kernels.checking.attention_bounds import group_rows
from ernie_m.kernels.checking.bounds import EPS
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.operations import OPERATIONS, Case
from ernie_m.kernels.checking.verdicts import componentwise
from ernie_m.reference.array import Array

Inputs = dict[str, Any]
ROWS, COLUMNS, KEYS, D = 5, 2, 7, 16
ENDS = np.array([0, KEYS - 2, KEYS], np.int32)
# Rows 0 to 2 see 4 and 5, of which 2 itself too; 3 sees itself; the last is in no group.
GROUPS = np.array([[0, 3, 2, 4, 6], [3, 4, 3, 0, 0]], np.int32)

DROPOUT: dict[str, Any] = {"p": 0.3, "seed": 2, "tokens": np.arange(ROWS)}


@dataclass(frozen=True)
class Condition:
    """How inputs are drawn, and what the numbers of the result are made of."""

    draw: Callable[[Callable[..., Array]], Inputs]
    size: Callable[..., Array]


def centred(normal: Callable[..., Array]) -> Array:
    """Rows a, −a with a >= 1: their mean is 0, and ε_LN does not matter."""
    a = 1 + np.abs(normal(ROWS, 1))
    return np.concatenate([a, -a], -1)


def affine(normal: Callable[..., Array]) -> Inputs:
    return {"gamma": normal(COLUMNS), "beta": normal(COLUMNS), "eps": 1e-5}


def terms(gamma: Array, beta: Array, additions: int) -> Array:
    """Of ±1 · γ + β, where ±1 comes from so many additions."""
    return np.broadcast_to((1 + additions) * np.abs(gamma) + np.abs(beta), (ROWS, COLUMNS))


def added(normal: Callable[..., Array]) -> Inputs:
    zeros = {"bias": np.zeros(COLUMNS), "residual": np.zeros((ROWS, COLUMNS))}
    return {"x": centred(normal), **zeros, **affine(normal)}


def embedded(normal: Callable[..., Array]) -> Inputs:
    ids = np.arange(ROWS)
    tables = {"word": centred(normal), "position": np.zeros((3, COLUMNS))}
    return {"input_ids": ids, "position_ids": ids * 0, **tables, **affine(normal)}


def head(q: Array, k: Array, v: Array, sees: Any = None) -> Array:
    """Σ p (1 + A) (|v| + |result|): one rounding of each product, and an error of each score of D ε |q|·|k|/√D."""
    probs = reference.softmax(q @ k.T / np.sqrt(D), sees)
    w = probs * (1 + D * (np.abs(q) @ np.abs(k).T) / np.sqrt(D))
    return np.asarray(w @ np.abs(v) + w.sum(-1, keepdims=True) * np.abs(probs @ v))


def heads(q: Array, kv: Array, cu_seqlens: Array) -> Array:
    """The same, one sequence after the other. (N, H, D), (S, 2, H, D) -> (N, H, D)"""
    own = [slice(*ends) for ends in pairwise(cu_seqlens)]
    rows = own if len(q) == len(kv) else [slice(b, b + 1) for b in range(len(own))]
    found = [
        np.stack([head(q[n, h], kv[keys, 0, h], kv[keys, 1, h]) for h in range(q.shape[1])], 1)
        for n, keys in zip(rows, own, strict=True)
    ]
    return np.concatenate(found)


def head_gradients(dy: Array, q: Array, k: Array, v: Array, sees: Any = None) -> tuple[Array, Array, Array]:
    """Of dq, dk and dv: as in `head`, with errors of D ε |dO||v| for each number of dP, and those of δ."""
    root = np.sqrt(D)
    probs = reference.softmax(q @ k.T / root, sees)
    w = probs * (1 + D * (np.abs(q) @ np.abs(k).T) / root)
    d_probs, products = dy @ v.T, D * (np.abs(dy) @ np.abs(v).T)
    delta = np.abs((probs * d_probs).sum(-1, keepdims=True))
    terms = w * (np.abs(d_probs) + delta) + probs * products
    terms = terms + probs * (w * np.abs(d_probs) + probs * products).sum(-1, keepdims=True)
    return terms @ np.abs(k) / root, terms.T @ np.abs(q) / root, w.T @ np.abs(dy)


def packed_terms(d_context: Array, qkv: Array, cu_seqlens: Array) -> Array:
    found = np.zeros_like(qkv)
    for start, end in pairwise(cu_seqlens):
        for h in range(qkv.shape[2]):
            rows = d_context[start:end, h], *qkv[start:end, :, h].swapaxes(0, 1)
            found[start:end, :, h] = np.stack(head_gradients(*rows), 1)
    return found


def between_terms(groups: Array, qkv: Array, d_context: Array | None = None) -> Array:
    """The same for attention between ranges: of the context, or of its gradient."""
    found = np.zeros_like(qkv[:, 0] if d_context is None else qkv)
    for rows, keys, sees in group_rows(groups):
        for h in range(qkv.shape[2]):
            q, k, v = qkv[rows, 0, h], qkv[keys, 1, h], qkv[keys, 2, h]
            if d_context is None:
                found[rows, h] = head(q, k, v, sees)
            else:
                parts = head_gradients(d_context[rows, h], q, k, v, sees)
                found[rows, 0, h], found[keys, 1, h], found[keys, 2, h] = parts
    return found


def first_terms(d_context: Array, q: Array, kv: Array, cu_seqlens: Array) -> Array:
    dq, dkv = np.zeros_like(q), np.zeros_like(kv)
    for b, (start, end) in enumerate(pairwise(cu_seqlens)):
        for h in range(q.shape[1]):
            own, *others = head_gradients(d_context[b, None, h], q[b, None, h], *kv[start:end, :, h].swapaxes(0, 1))
            dq[b, h], dkv[start:end, :, h] = own[0], np.stack(others, 1)
    return np.concatenate([dq.ravel(), dkv.ravel()])


def sums(dy: Array, g: Array, n: Array, s: Array, additions: Any) -> tuple[Array, Array, Array]:
    """Of LayerNorm's gradients: the terms of dx, and those of γ's and β's; n = ±1 comes from so many additions."""
    mean = np.abs(g).mean(-1, keepdims=True)
    dx = (np.abs(g) + mean + 2 * (1 + additions) * np.abs(n) * mean) / s
    return dx, ((1 + additions) * np.abs(dy * n)).sum(0), np.abs(dy).sum(0)


def norm_terms(dy: Array, x: Array, bias: Array, residual: Array, gamma: Array, eps: float) -> Array:
    s = np.sqrt(x.var(-1, keepdims=True) + eps)
    dx, dgamma, dbeta = sums(dy, dy * gamma, x / s, s, 2)
    return np.concatenate([dx.ravel(), dx.sum(0), dx.ravel(), dgamma, dbeta])


def dropping(normal: Callable[..., Array]) -> Inputs:
    """The sum of what dropout keeps and of the residual is `centred`."""
    x, bias = normal(ROWS, COLUMNS), normal(COLUMNS)
    residual = centred(normal) - reference.dropout(x + bias, **DROPOUT)
    return {"x": x, "bias": bias, "residual": residual, "gamma": normal(COLUMNS), "eps": 1e-5, **DROPOUT}


def dropped_terms(dy: Array, x: Array, bias: Array, residual: Array, gamma: Array, eps: float, **more: Any) -> Array:
    """As `norm_terms`, with additions in units of the sum: of x and the bias, and of what is kept and the residual."""
    kept = reference.dropout(x + bias, **more)
    z = kept + residual
    s = np.sqrt(z.var(-1, keepdims=True) + eps)
    additions = (np.abs(kept) + np.abs(z)) / s
    additions = (additions + additions.mean(-1, keepdims=True)) / 2
    dv, dgamma, dbeta = sums(dy, dy * gamma, z / s, s, additions)
    dx = reference.dropout(dv, **more)
    return np.concatenate([dx.ravel(), dx.sum(0), dv.ravel(), dgamma, dbeta])


def table_terms(
    dy: Array, input_ids: Array, position_ids: Array, word: Array, position: Array, gamma: Array, eps: float
) -> Array:
    s = np.sqrt(word.var(-1, keepdims=True) + eps)
    dx, dgamma, dbeta = sums(dy, dy * gamma, word / s, s, 1)
    # Every id once, and one position for all of them, in row 2.
    places = np.stack([0 * dx[0], 0 * dx[0], dx.sum(0)])
    return np.concatenate([dx.ravel(), places.ravel(), dgamma, dbeta])


def loss_terms(d_loss: Array, hidden: Array, weight: Array, bias: Array, labels: Array) -> Array:
    """Σ |dz| and what p is made of, A for each logit, times the other factor of each product."""
    own = labels >= 0
    h, w = np.abs(hidden[own]), np.abs(weight)
    p = reference.softmax(hidden[own] @ weight.T + bias)
    y = np.arange(len(weight)) == labels[own, None]
    off = p * (2 + h @ w.T + np.abs(bias))
    dz = (np.abs(p - y) + off + p * off.sum(-1, keepdims=True)) * np.abs(d_loss) / own.sum()
    d_hidden = np.zeros_like(hidden)
    d_hidden[own] = dz @ w
    return np.concatenate([d_hidden.ravel(), (dz.T @ h).ravel(), dz.sum(0)])


def without_beta(inputs: Inputs) -> Inputs:
    return {name: value for name, value in inputs.items() if name != "beta"}


CONDITIONS = {
    "gelu": Condition(lambda normal: {"x": 3 * normal(ROWS, 9)}, lambda x: np.abs(x)),
    "bias_gelu": Condition(
        lambda normal: {"x": 3 * normal(ROWS, 9), "bias": normal(9)}, lambda x, bias: np.abs(x + bias)
    ),
    "softmax": Condition(
        lambda normal: {"scores": normal(ROWS, 2)},
        lambda scores: reference.softmax(scores) * (1 + np.ptp(scores, -1, keepdims=True)),
    ),
    "layer_norm": Condition(
        lambda normal: {"x": centred(normal), **affine(normal)}, lambda x, gamma, beta, eps: terms(gamma, beta, 0)
    ),
    "add_layer_norm": Condition(added, lambda x, bias, residual, gamma, beta, eps: terms(gamma, beta, 2)),
    "embed": Condition(
        embedded, lambda input_ids, position_ids, word, position, gamma, beta, eps: terms(gamma, beta, 1)
    ),
    "dropout_vjp": Condition(
        lambda normal: {"dy": normal(ROWS, 9), **DROPOUT},
        lambda dy, p, seed, tokens: np.abs(reference.dropout(dy, p, seed, tokens)),
    ),
    "bias_gelu_vjp": Condition(
        lambda normal: {"dy": normal(ROWS, 9), "x": 3 * normal(ROWS, 9), "bias": normal(9)},
        lambda dy, x, bias: np.concatenate([np.abs(dy).ravel(), np.abs(dy).sum(0)]),
    ),
    "add_layer_norm_vjp": Condition(
        lambda normal: {"dy": normal(ROWS, COLUMNS), **without_beta(added(normal))}, norm_terms
    ),
    "dropped_layer_norm_vjp": Condition(
        lambda normal: {"dy": normal(ROWS, COLUMNS), **dropping(normal)}, dropped_terms
    ),
    "embed_vjp": Condition(lambda normal: {"dy": normal(ROWS, COLUMNS), **without_beta(embedded(normal))}, table_terms),
    "attention_head": Condition(
        lambda normal: {"q": normal(ROWS, D), "k": normal(KEYS, D), "v": normal(KEYS, D)}, head
    ),
    # Its softmax is exact, so that the rest of the bound is on its own.
    "attention_head of one key": Condition(
        lambda normal: {"q": normal(ROWS, D), "k": normal(1, D), "v": normal(1, D)},
        lambda q, k, v: np.broadcast_to(2 * np.abs(v), (ROWS, D)),
    ),
    "packed_attention": Condition(
        lambda normal: {"qkv": normal(KEYS, 3, 2, D), "cu_seqlens": ENDS},
        lambda qkv, cu_seqlens: heads(qkv[:, 0], qkv[:, 1:], cu_seqlens),
    ),
    "first_token_attention": Condition(
        lambda normal: {"q": normal(2, 2, D), "kv": normal(KEYS, 2, 2, D), "cu_seqlens": ENDS},
        heads,
    ),
    "packed_attention_vjp": Condition(
        lambda normal: {"d_context": normal(KEYS, 2, D), "qkv": normal(KEYS, 3, 2, D), "cu_seqlens": ENDS},
        packed_terms,
    ),
    "group_attention": Condition(
        lambda normal: {"qkv": normal(KEYS, 3, 2, D), "groups": GROUPS},
        lambda qkv, groups: between_terms(groups, qkv=qkv),
    ),
    "group_attention_vjp": Condition(
        lambda normal: {"d_context": normal(KEYS, 2, D), "qkv": normal(KEYS, 3, 2, D), "groups": GROUPS},
        lambda d_context, qkv, groups: between_terms(groups, qkv, d_context),
    ),
    "linear_cross_entropy_vjp": Condition(
        lambda normal: {
            "d_loss": np.asarray(3.0),
            "hidden": normal(ROWS, COLUMNS),
            "weight": normal(KEYS, COLUMNS),
            "bias": normal(KEYS),
            "labels": np.array([2, -100, KEYS - 1, 0, 2]),
        },
        loss_terms,
    ),
    "first_token_attention_vjp": Condition(
        lambda normal: {
            "d_context": normal(2, 2, D),
            "q": normal(2, 2, D),
            "kv": normal(KEYS, 2, 2, D),
            "cu_seqlens": ENDS,
        },
        first_terms,
    ),
}


def test_every_operation_has_a_condition() -> None:
    assert {name.partition(" ")[0] for name in CONDITIONS} == OPERATIONS.keys()


@pytest.mark.parametrize("name", CONDITIONS)
@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), factor=st.floats(20, 40), sign=st.sampled_from([-1, 1]))
def test_one_number_that_is_off_by_twenty_roundings_is_refused(
    name: str, data: Any, seed: int, factor: float, sign: int
) -> None:
    """Seen red: each constant of the bounds three to ten times as large."""
    rng, format = np.random.default_rng(seed), FORMATS["float32"]
    inputs = CONDITIONS[name].draw(lambda *shape: format.round(rng.standard_normal(shape)))
    expected = Case(name.partition(" ")[0], "float32", inputs).expected
    size = CONDITIONS[name].size(**inputs)
    assert size.shape == expected.exact.shape
    # A number that is made of nothing is exactly 0.
    made = np.flatnonzero(size)
    index = np.unravel_index(made[data.draw(st.integers(0, made.size - 1), label="index")], size.shape)
    got = expected.exact.copy()
    assert componentwise(got, expected).holds
    got[index] += sign * factor * EPS * size[index]
    assert not componentwise(got, expected).holds

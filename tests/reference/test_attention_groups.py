"""Attention between ranges against attention under a dense mask, for the arrangement of CAMLM and for drawn ranges.

Seen red: without the row's own score; with it for rows before `first`; keys of the queries' range; a side's masks in
the wrong place of the order.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from derivatives import check_gradients
from hypothesis import given
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference.attention_groups import group_attention, group_attention_vjp
from ernie_m.reference.objectives import Example, Vocabulary, arrange, btmlm_placeholders, camlm, dense, mmlm, tlm

VOCABULARY = Vocabulary(size=50, mask=49)
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=3)
OPTIONS = st.fixed_dictionaries(
    {
        "masks": st.sampled_from(["in_place", "appended"]),
        "masked_sides": st.sampled_from(["both", "one"]),
        "ratio": st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    }
)


def examples(sizes: list[tuple[int, int]], seed: int, options: dict[str, Any]) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        camlm(rng.integers(4, 49, a), rng.integers(4, 49, b), VOCABULARY, rng, see_own_masks=False, **options)
        for a, b in sizes
    ]


def batch_groups(found: list[Example]) -> np.ndarray:  # -> (G, 5)
    """The groups of examples one after the other."""
    starts = itertools.accumulate([0, *(len(e.input_ids) for e in found[:-1])])
    return np.concatenate([arrange(e)[1] + start for e, start in zip(found, starts, strict=True)])


def under_mask(qkv: np.ndarray, sees: np.ndarray) -> np.ndarray:
    """Attention with a dense mask; 0 for rows that see nothing."""
    q, k, v = qkv.transpose(1, 2, 0, 3)
    return np.asarray(ernie.attention(q, k, v, sees)[0].swapaxes(0, 1) * sees.any(axis=1)[:, None, None])


@given(SIZES, SEEDS, OPTIONS)
def test_groups_compute_camlm(sizes: list[tuple[int, int]], seed: int, options: dict[str, Any]) -> None:
    """What is computed in the arranged order is what the dense mask of the example says in its own."""
    found = examples(sizes, seed, options)
    groups = batch_groups(found)
    qkv = np.random.default_rng(seed).standard_normal((sum(len(e.input_ids) for e in found), 3, 2, 4))
    context = group_attention(qkv, groups)
    start = 0
    for e in found:
        order, n = arrange(e)[0], len(e.input_ids)
        assert sorted(order.tolist()) == list(range(n))
        own = np.empty((n, 3, 2, 4))
        own[order] = qkv[start : start + n]
        assert e.sees is not None
        np.testing.assert_allclose(context[start : start + n], under_mask(own, e.sees)[order], rtol=0, atol=1e-13)
        start += n


@given(SIZES, SEEDS, OPTIONS)
def test_the_order_is_text_then_masks_of_the_other_side(
    sizes: list[tuple[int, int]], seed: int, options: dict[str, Any]
) -> None:
    """[X, M_y, Y, M_x]. The masked tokens of a side follow each other, so a head can slice them."""
    for e in examples(sizes, seed, options):
        order, groups = arrange(e)
        masked, second = (e.labels != -100)[order], (e.sides == 1)[order]
        assert (np.diff(2 * (second ^ masked) + masked) >= 0).all()
        ranges = [range(first, q1) for _, q1, first, _, _ in groups.tolist()]
        assert sorted(itertools.chain(*ranges)) == np.flatnonzero(masked).tolist()


@st.composite
def drawn(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """qkv, and groups in which some rows are in no group and some see nothing."""
    cuts = sorted(draw(st.lists(st.integers(0, 14), min_size=6, max_size=6)))
    a, b, c, d, e, f = cuts
    # Queries a to b see keys c to d; queries b to c see e to f; rows that see themselves are no keys.
    groups = np.array([[a, b, draw(st.integers(a, b)), c, d], [b, c, draw(st.integers(b, c)), e, f]])
    rng = np.random.default_rng(draw(SEEDS))
    return rng.standard_normal((15, 3, 2, 4)), groups


@given(drawn())
def test_drawn_groups_equal_a_dense_mask(case: tuple[np.ndarray, np.ndarray]) -> None:
    qkv, groups = case
    expected = under_mask(qkv, dense(groups, len(qkv)))
    np.testing.assert_allclose(group_attention(qkv, groups), expected, rtol=0, atol=1e-13)


@given(drawn())
def test_the_vjp_is_the_derivative(case: tuple[np.ndarray, np.ndarray]) -> None:
    qkv, groups = case
    dy = np.random.default_rng(0).standard_normal(qkv[:, 0].shape)
    check_gradients(
        lambda at: float((group_attention(at[0], groups) * dy).sum()),
        [qkv],
        [group_attention_vjp(dy, qkv, groups)],
        seed=0,
    )


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), SEEDS)
def test_packed_attention_is_a_special_case(lengths: list[int], seed: int) -> None:
    ends = np.cumsum([0, *lengths])
    rng = np.random.default_rng(seed)
    qkv, dy = rng.standard_normal((ends[-1], 3, 2, 4)), rng.standard_normal((ends[-1], 2, 4))
    groups = np.stack([ends[:-1], ends[1:], ends[1:], ends[:-1], ends[1:]], axis=1)
    expected = ernie.packed_attention(qkv, ends), ernie.packed_attention_vjp(dy, qkv, ends)
    np.testing.assert_allclose(group_attention(qkv, groups), expected[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(group_attention_vjp(dy, qkv, groups), expected[1], rtol=0, atol=1e-13)


def test_what_is_no_rectangle_is_refused() -> None:
    rng = np.random.default_rng(0)
    words = np.arange(4, 12)
    for e in (
        camlm(words, words, VOCABULARY, rng, see_own_masks=True, ratio=0.5),
        btmlm_placeholders(words, VOCABULARY, 2),
    ):
        with pytest.raises(ValueError, match="example: expected text that sees its own side"):
            arrange(e)
    for e in (mmlm(words, VOCABULARY, rng), tlm(words, words, VOCABULARY, rng)):
        order, groups = arrange(e)
        assert dense(groups, len(order)).all()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 3, 3, 0, 6]], r"groups: expected 0 <= q0 <= .* got \[0, 3, 3, 0, 6\] in row 0"),
        ([[0, 3, 4, 0, 3]], r"groups: expected 0 <= q0 <= first <= q1 <= 5"),
        ([[0, 3, 3, 0, 2], [2, 5, 5, 2, 5]], "each row to be a query at most once, got row 2 twice"),
        ([[0, 3, 3, 0, 3], [3, 5, 5, 2, 5]], "each row to be a key at most once, got row 2 twice"),
        ([[0, 3, 2, 0, 3]], "each row to be a key at most once, got row 2 twice"),
        ([[0, 3, 3, 0]], r"groups: expected shape \(G, 5\), got \(1, 4\)"),
        ([[0.0, 3, 3, 0, 3]], "groups: expected integers, got float64"),
    ],
)
def test_wrong_groups_get_one_clear_error(groups: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        group_attention(np.zeros((5, 3, 1, 4)), groups)


def test_wrong_qkv_gets_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"qkv: expected shape \(T, 3, H, D\), got \(5, 2, 1, 4\)"):
        group_attention(np.zeros((5, 2, 1, 4)), np.zeros((0, 5), int))

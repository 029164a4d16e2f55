"""Retrieval: closed forms, and what must not change it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.training.retrieval import accuracies, centred, found_first


def test_a_hand_made_case() -> None:
    """Row 0 finds its own, row 1 finds row 2's, row 2 ties. Seen red: ties counted as found."""
    a, b = np.eye(3), np.array([[1.0, 0, 0], [0, 0.1, 0.9], [0, 0.5, 0.9]])
    assert found_first(a, b).tolist() == [True, False, False]


@given(st.integers(0, 10**6), st.integers(2, 30), st.floats(0.0, 3.0))
def test_equal_texts_are_found_whatever_is_added_to_a_language(seed: int, N: int, size: float) -> None:
    """Centring removes what all vectors of a language share. Seen red: one mean for both; no centring."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, 8))
    moved = {"en": x + 10 * size * rng.normal(size=8), "de": 3.0 * x + size * rng.normal(size=8)}
    assert accuracies(moved) == {"de-en": 1.0}


@given(st.integers(0, 10**6))
def test_chance(seed: int) -> None:
    """Unrelated vectors are found about once in N: less than ten times of 200 texts, in either direction."""
    rng = np.random.default_rng(seed)
    (found,) = accuracies({"a": rng.normal(size=(200, 8)), "b": rng.normal(size=(200, 8))}).values()
    assert found < 0.05


def test_pairs_and_means() -> None:
    """Only pairs with the hub; `centred` with a given mean."""
    x = np.random.default_rng(0).normal(size=(4, 3))
    vectors = {"de": x, "en": x, "ru": x}
    assert list(accuracies(vectors, "en")) == ["de-en", "en-ru"] and len(accuracies(vectors)) == 3
    np.testing.assert_allclose(centred(x, x.mean(axis=0)), centred(x))
    assert not np.isnan(centred(np.zeros((2, 3)))).any()

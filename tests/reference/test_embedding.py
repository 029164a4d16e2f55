from __future__ import annotations

import numpy as np
import pytest

from ernie_m.reference import embed, trace
from ernie_m.reference.embedding import embed_vectors

WORD = np.array([[1.0, 2.0], [3.0, 5.0], [0.0, 4.0]])
POSITION = np.array([[9.0, 9.0], [8.0, 8.0], [0.0, 1.0], [2.0, 0.0]])


def test_embed_literal() -> None:
    """Position 0 is row 2 of the table, position 1 is row 3. Two numbers normalise to -1 and 1, or to 0 if equal."""
    ids, positions = np.array([[0, 2], [1, 0]]), np.array([[0, 1], [1, 0]])
    gamma, beta = np.array([1.0, 10.0]), np.array([0.0, 0.5])
    sums = np.array([[[1, 3], [2, 4]], [[5, 5], [1, 3]]], float)
    signs = np.sign(sums - sums.mean(axis=-1, keepdims=True))
    found = embed(ids, positions, WORD, POSITION, gamma, beta, 0.0 + 1e-30)
    # Every step is exact: the sums, their means and deviations are whole numbers.
    np.testing.assert_array_equal(found, signs * gamma + beta)
    packed = embed(ids.ravel(), positions.ravel(), WORD, POSITION, gamma, beta, 1e-30)
    np.testing.assert_array_equal(packed, found.reshape(-1, 2))
    np.testing.assert_array_equal(embed_vectors(WORD[ids], positions, POSITION, gamma, beta, 1e-30), found)


@pytest.mark.parametrize(
    ("ids", "positions", "message"),
    [
        ([0, 3], [0, 0], r"input_ids: expected values in \[0, 3\) for a vocabulary of 3 rows, got 3 at \[1\]"),
        ([-1, 0], [0, 0], r"input_ids: .* got -1 at \[0\]"),
        (
            [0, 0],
            [0, 2],
            r"position_ids: expected values in \[0, 2\) for a position table .*, got 2 at \[1\]",
        ),
        ([0, 0], [-2, 0], r"position_ids: .* got -2 at \[0\]"),
    ],
)
def test_embed_rejects_values_out_of_range(ids: list[int], positions: list[int], message: str) -> None:
    """NumPy would read the last row for id -1, and the first row for position -2."""
    with pytest.raises(ValueError, match=message):
        embed(np.array(ids), np.array(positions), WORD, POSITION, np.ones(2), np.zeros(2), 1e-5)


def test_embed_does_not_change_its_arguments() -> None:
    """transformers adds the offset of 2 to the caller's array in place."""
    ids, positions = np.array([0, 1]), np.array([0, 1])
    embed(ids, positions, WORD, POSITION, np.ones(2), np.zeros(2), 1e-5)
    np.testing.assert_array_equal(positions, [0, 1])
    np.testing.assert_array_equal(ids, [0, 1])


def test_embed_records_its_terms() -> None:
    ids, positions = np.array([0, 2]), np.array([1, 0])
    with trace() as t:
        found = embed(ids, positions, WORD, POSITION, np.ones(2), np.zeros(2), 1e-5)
    assert list(t) == ["word_embeddings", "position_embeddings", "layer_norm"]
    np.testing.assert_array_equal(t["word_embeddings"].value, WORD[ids])
    np.testing.assert_array_equal(t["position_embeddings"].value, POSITION[positions + 2])
    np.testing.assert_array_equal(t["layer_norm"].value, found)

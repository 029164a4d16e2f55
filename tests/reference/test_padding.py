from __future__ import annotations

import numpy as np
import pytest
from helpers import masks
from hypothesis import given

from ernie_m.reference import cu_seqlens, pad, token_indices, unpad
from ernie_m.reference.padding import check_cu_seqlens


def test_padding_literal() -> None:
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]])
    np.testing.assert_array_equal(token_indices(mask), [0, 1, 2, 9, 11])
    np.testing.assert_array_equal(cu_seqlens(mask), [0, 3, 3, 5])
    assert cu_seqlens(mask).dtype == np.int32


@given(masks())
def test_unpad_pad_round_trip(mask: np.ndarray) -> None:
    B, S = mask.shape
    x = np.random.default_rng(0).standard_normal((B, S, 3))
    indices = token_indices(mask)
    packed = unpad(x, indices)
    assert packed.shape == (mask.sum(), 3)
    padded = pad(packed, indices, B, S)
    np.testing.assert_array_equal(padded, x * mask[..., None])
    np.testing.assert_array_equal(unpad(padded, indices), packed)


@given(masks())
def test_cu_seqlens_bound_each_rows_tokens(mask: np.ndarray) -> None:
    x = np.arange(mask.size).reshape(mask.shape)
    packed, bounds = unpad(x, token_indices(mask)), cu_seqlens(mask)
    for b, row in enumerate(x):
        np.testing.assert_array_equal(packed[bounds[b] : bounds[b + 1]], row[mask[b] == 1])


@pytest.mark.parametrize("wrong", [[1, 5], [0, 4], [0, 6, 5], [0, 3, 2, 5], [[0, 5]], [0.0, 5.0], []])
def test_check_cu_seqlens_rejects_bad_offsets(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match=r"cu_seqlens: expected"):
        check_cu_seqlens(np.array(wrong), 5)
    check_cu_seqlens(np.array([0, 0, 5, 5]), 5)

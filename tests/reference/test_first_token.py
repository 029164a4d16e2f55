"""First-token attention: the first rows of packed attention."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounding import LIBM, U64, attention_bound

from ernie_m.reference import first_token_attention, packed_attention


def test_first_token_attention_on_a_worked_example() -> None:
    # Scores ln 3 and 0: the context is 3/4 of the first value and 1/4 of the second.
    q = np.array([[[2.0, 0.0, 0.0, 0.0]]])
    kv = np.zeros((2, 2, 1, 4))
    kv[0, 0, 0, 0] = np.log(3)
    kv[:, 1, 0, 0] = 8.0, 16.0
    context = first_token_attention(q, kv, np.array([0, 2], np.int32))
    np.testing.assert_allclose(context[0, 0], [10.0, 0.0, 0.0, 0.0], rtol=(2 * LIBM + 8) * U64)


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), H=st.integers(1, 3), seed=st.integers(0, 99))
def test_first_token_attention_equals_the_first_rows_of_packed_attention(lengths: list[int], H: int, seed: int) -> None:
    """Seen red: the last row's query instead of the first's; a neighbour's keys."""
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    qkv = np.random.default_rng(seed).standard_normal((cu[-1], 3, H, 4))
    full = packed_attention(qkv, cu)
    first = [start if start < end else None for start, end in pairwise(cu.tolist())]
    q = np.array([np.zeros((H, 4)) if i is None else qkv[i, 0] for i in first])
    context = first_token_attention(q, qkv[:, 1:], cu)
    bound = attention_bound(*qkv.transpose(1, 2, 0, 3))
    for b, i in enumerate(first):
        np.testing.assert_allclose(context[b], 0.0 if i is None else full[i], rtol=0, atol=bound)


def test_first_token_attention_rejects_bad_shapes_and_offsets() -> None:
    q, kv, cu = np.zeros((1, 2, 4)), np.zeros((3, 2, 2, 4)), np.array([0, 3], np.int32)
    with pytest.raises(ValueError, match=r"kv: expected shape \(T, 2, H, D\), got \(3, 2, 4\)"):
        first_token_attention(q, kv[:, :, 0], cu)
    with pytest.raises(ValueError, match=r"q: expected shape \(B, H, D\) = \(1, 2, 4\), got \(2, 2, 4\)"):
        first_token_attention(np.zeros((2, 2, 4)), kv, cu)
    with pytest.raises(ValueError, match="cu_seqlens: expected non-decreasing values from 0 to T = 3"):
        first_token_attention(q, kv, np.array([0, 4], np.int32))

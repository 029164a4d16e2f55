from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from helpers import masks
from hypothesis import given
from hypothesis import strategies as st
from rounding import LIBM, U64, attention_bound

from ernie_m.reference import attention, cu_seqlens, packed_attention, token_indices, unpad

# `ernie_m.reference.attention` is the function.
attention_module = import_module("ernie_m.reference.attention")


def test_attention_by_hand() -> None:
    """Two tokens, one head of size 4, scores q·k/2; the second query scores log 3 higher on its own key."""
    q = np.array([[[1.0, 0, 0, 0], [0, 1, 0, 0]]])
    k = np.array([[[0.0, 0, 0, 0], [0, 2 * np.log(3), 0, 0]]])
    v = np.array([[[4.0, 0, 0, 0], [0, 8, 0, 0]]])
    context, probs = attention(q, k, v)
    # log and exp, and at most 8 roundings of what is between and behind them.
    np.testing.assert_allclose(probs, [[[0.5, 0.5], [0.25, 0.75]]], rtol=(2 * LIBM + 8) * U64)
    np.testing.assert_allclose(context, [[[2, 4, 0, 0], [1, 6, 0, 0]]], rtol=(2 * LIBM + 8) * U64)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 33]))
def test_attention_of_equal_keys_is_the_mean_of_values(seed: int, S: int) -> None:
    rng = np.random.default_rng(seed)
    q, v = rng.standard_normal((2, 2, 3, S, 5))
    k = np.broadcast_to(rng.standard_normal((2, 3, 1, 5)), v.shape)
    context, probs = attention(q, k, v)
    mean = np.broadcast_to(v.mean(axis=2, keepdims=True), v.shape)
    # The probabilities are the context of values of 1.
    np.testing.assert_allclose(probs, 1 / S, rtol=0, atol=attention_bound(q, k, np.ones(1)) / S)
    np.testing.assert_allclose(context, mean, rtol=0, atol=attention_bound(q, k, v))


@given(st.integers(0, 2**32 - 1))
def test_attention_is_equivariant_to_a_permutation_of_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, 2, 9, 4))
    order = rng.permutation(9)
    permuted = attention(q[:, order], k[:, order], v[:, order])[0]
    expected = attention(q, k, v)[0][:, order]
    np.testing.assert_allclose(permuted, expected, rtol=0, atol=attention_bound(q, k, v))


def test_attention_head_mask_scales_heads() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 9, 4))
    plain, _ = attention(q, k, v)
    masked, probs = attention(q, k, v, head_mask=np.array([0.0, 2.0]))
    np.testing.assert_array_equal(masked[0], 0)
    np.testing.assert_array_equal(probs[0], 0)
    # The same products, of numbers twice as large: multiplying by 2 is exact.
    np.testing.assert_array_equal(masked[1], 2 * plain[1])


@given(masks(), st.integers(1, 3), st.sampled_from([1, 4, 5]), st.integers(0, 2**32 - 1))
def test_packed_attention_equals_padded(mask: np.ndarray, H: int, D: int, seed: int) -> None:
    """Rows of every length, including empty ones; padding holds random numbers, which must not leak."""
    B, S = mask.shape
    qkv = np.random.default_rng(seed).standard_normal((B, S, 3, H, D))
    indices = token_indices(mask)
    packed = packed_attention(unpad(qkv, indices), cu_seqlens(mask))
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    padded, _ = attention(q, k, v, mask[:, None, None, :].astype(bool))
    expected = unpad(padded.swapaxes(1, 2), indices)
    np.testing.assert_allclose(packed, expected, rtol=0, atol=attention_bound(q, k, v))


def test_packed_attention_rejects_bad_shapes_and_offsets() -> None:
    with pytest.raises(ValueError, match=r"qkv: expected shape \(T, 3, H, D\), got \(5, 2, 1, 4\)"):
        packed_attention(np.zeros((5, 2, 1, 4)), np.array([0, 5]))
    with pytest.raises(ValueError, match=r"cu_seqlens: expected non-decreasing values from 0 to T = 5, got \[0, 6\]"):
        packed_attention(np.zeros((5, 3, 1, 4)), np.array([0, 6]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_attention_keeps_dtype_and_arguments(dtype: type) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 9, 4)).astype(dtype)
    copies = q.copy(), k.copy(), v.copy()
    context, probs = attention(q, k, v)
    assert context.dtype == probs.dtype == dtype
    for a, copy in zip((q, k, v), copies, strict=True):
        np.testing.assert_array_equal(a, copy)
    packed = packed_attention(np.stack([q, k, v]).transpose(2, 0, 1, 3), np.array([0, 4, 9]))
    assert packed.dtype == dtype


@pytest.mark.parametrize("most", [1, 60, 2**18])
def test_packed_attention_does_not_depend_on_how_many_heads_are_computed_at_once(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, two or all of four."""
    rng = np.random.default_rng(0)
    qkv, cu = rng.standard_normal((12, 3, 4, 8)), np.array([0, 5, 5, 12])
    expected = packed_attention(qkv, cu)
    monkeypatch.setattr(attention_module, "MOST_SCORES", most)
    np.testing.assert_array_equal(packed_attention(qkv, cu), expected)

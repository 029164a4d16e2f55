"""Padding: exactly the arrays that the reference returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import masks
from hypothesis import given
from hypothesis import strategies as st

import ernie_m.reference as reference
from ernie_m.kernels import padding


def test_padding_on_a_worked_example() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    indices = padding.token_indices(mask)
    assert indices.tolist() == [0, 1, 2, 4, 5]
    assert padding.cu_seqlens(mask).tolist() == [0, 3, 5]
    packed = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert padding.pad(packed, indices, 2, 4).tolist() == [[1.0, 2.0, 3.0, 0.0], [4.0, 5.0, 0.0, 0.0]]


@given(mask=masks(), boolean=st.booleans(), trailing=st.sampled_from([(), (3,), (2, 3)]))
def test_padding_equals_the_reference(mask: np.ndarray, boolean: bool, trailing: tuple[int, ...]) -> None:
    if boolean:
        mask = mask.astype(bool)
    B, S = mask.shape
    x = np.random.default_rng(0).standard_normal((B, S, *trailing))
    indices, cu = padding.token_indices(torch.from_numpy(mask)), padding.cu_seqlens(torch.from_numpy(mask))
    assert cu.dtype == torch.int32
    np.testing.assert_array_equal(indices, reference.token_indices(mask))
    np.testing.assert_array_equal(cu, reference.cu_seqlens(mask))
    packed = padding.unpad(torch.from_numpy(x), indices)
    np.testing.assert_array_equal(packed, reference.unpad(x, indices.numpy()))
    np.testing.assert_array_equal(
        padding.pad(packed, indices, B, S), reference.pad(packed.numpy(), indices.numpy(), B, S)
    )


def test_sequence_of_tokens_skips_empty_sequences() -> None:
    """Seen red: the token at a boundary assigned to the sequence before it (`right=False`)."""
    cu = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    assert padding.sequence_of_tokens(cu, 5).tolist() == [0, 0, 0, 2, 2]
    assert padding.sequence_of_tokens(cu, 6).tolist() == [0, 0, 0, 2, 2, 2]


def test_gradients_flow_through_unpad_and_pad() -> None:
    indices = torch.tensor([0, 2, 3])
    x = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: padding.pad(padding.unpad(x, indices), indices, 2, 2), (x,))


@pytest.mark.parametrize("values", [[1, 5], [0, 4], [0, 6, 5], []])
def test_check_cu_seqlens_names_the_argument(values: list[int]) -> None:
    with pytest.raises(ValueError, match=r"cu_seqlens: expected"):
        padding.check_cu_seqlens(torch.tensor(values, dtype=torch.int32), 5, values=True)


@pytest.mark.parametrize("bad", [-1, 6, 2**40])
def test_indices_outside_the_rectangle_are_an_error(bad: int) -> None:
    """On a CPU. Seen red: torch's IndexError; a negative index, counted from the end."""
    indices, message = torch.tensor([0, bad]), rf"indices: expected values in \[0, 6\) .* got {bad} at \[1\]"
    with pytest.raises(ValueError, match=message):
        padding.unpad(torch.zeros(2, 3, 4), indices)
    with pytest.raises(ValueError, match=message):
        padding.pad(torch.zeros(2, 4), indices, 2, 3)


def test_pad_needs_one_index_for_each_token() -> None:
    with pytest.raises(ValueError, match=r"packed: expected shape \(T, \.\.\.\) with T = 2, got \(3, 4\)"):
        padding.pad(torch.zeros(3, 4), torch.tensor([0, 1]), 2, 3)


def test_pad_names_the_argument_on_another_device() -> None:
    indices = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="indices: expected a tensor on meta like packed, got one on cpu"):
        padding.pad(torch.ones(2, 3, device="meta"), indices, 2, 3)


def test_sequence_of_tokens_is_on_the_device_of_its_argument() -> None:
    assert padding.sequence_of_tokens(torch.tensor([0, 2, 2, 5], dtype=torch.int32), 5).tolist() == [0, 0, 2, 2, 2]
    cu_seqlens = torch.zeros(4, dtype=torch.int32, device="meta")
    assert padding.sequence_of_tokens(cu_seqlens, 5).device.type == "meta"

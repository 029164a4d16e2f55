"""What a call returns: columns as items and attributes, rows with padding on either side, arrays.

Seen red: padding of `sequence_ids` always on the right; ragged rows turned into an object array.
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from tokenizer_texts import MODEL, VOCABULARY

from ernie_m.tokenizer import BatchEncoding, ErnieMTokenizer
from ernie_m.tokenizer.batch_encoding import to_tensors


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tensors", [None, "np"])
def test_sequence_and_word_ids_account_for_padding(side: str, tensors: str | None) -> None:
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY, padding_side=side)
    batch = tokenizer(["a", "The ships"], ["b", "a"], padding=True, return_tensors=tensors, return_offsets_mapping=True)
    padding, row = [None], [None, 0, None, None, 1, None]
    assert batch.sequence_ids(0) == (row + padding if side == "right" else padding + row)
    words = [None, 0, None, None, 0, None]
    assert batch.word_ids(0) == (words + padding if side == "right" else padding + words)
    assert batch.word_ids(1) == batch.word_ids(-1) == [None, 0, 1, None, None, 0, None]
    with pytest.raises(IndexError, match="batch_index: expected less than 2, got 2"):
        batch.word_ids(2)


def test_a_single_row_is_row_0() -> None:
    row = ErnieMTokenizer(MODEL, VOCABULARY)("a b", return_offsets_mapping=True)
    assert row.word_ids() == row.word_ids(0) == [None, 0, 1, None]


def test_columns_are_attributes_and_survive_copies() -> None:
    batch = ErnieMTokenizer(MODEL, VOCABULARY)(["a"])
    for again in (batch, copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert isinstance(again, BatchEncoding) and again.input_ids == again["input_ids"] == [[0, 39, 2]]
        assert again.sequence_ids(0) == [None, 0, None] and again.data == dict(batch)
    with pytest.raises(ValueError, match="one returned by a tokenizer's call, got columns without its rows"):
        BatchEncoding({"input_ids": [[1]]}).word_ids()


def test_to_tensors_keeps_other_dtypes_and_rejects_ragged_rows() -> None:
    arrays = to_tensors({"input_ids": [[1, 2]], "labels": [0.5], "mask": [[True, False]]}, "np")
    assert [arrays[name].dtype for name in arrays] == [np.int64, np.float64, np.int64]
    with pytest.raises(ValueError, match="rows of input_ids have different lengths, 1 to 2"):
        to_tensors({"input_ids": [[1], [1, 2]]}, "np")


def test_floats_have_the_default_dtype_of_the_library() -> None:
    """Seen red with float64 for torch, where models compute in float32: some losses refuse to mix the two."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    columns = {"labels": [[0.1, 1.0], [2.0, 3.0]], "input_ids": [[1], [2]]}
    tensors = to_tensors(columns, "pt")
    assert tensors["labels"].dtype == torch.tensor([0.1]).dtype == torch.float32
    assert torch.equal(tensors["labels"], torch.tensor(columns["labels"])) and tensors["input_ids"].dtype == torch.int64
    assert to_tensors(columns, "np")["labels"].dtype == np.float64

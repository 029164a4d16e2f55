"""`pad`: rows of all forms, padded on either side, without changing the caller's data.

Seen red: columns padded in place in the caller's lists; the mask filled with 1; left padding put on the right.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY, texts

from ernie_m.tokenizer import ErnieMTokenizer

TOKENIZER = ErnieMTokenizer(MODEL, VOCABULARY)
LEFT = ErnieMTokenizer(MODEL, VOCABULARY, padding_side="left")
ALL: dict[str, Any] = {
    "return_token_type_ids": True,
    "return_special_tokens_mask": True,
    "return_offsets_mapping": True,
}


@given(batch=st.lists(texts(3), min_size=1, max_size=4), tokenizer=st.sampled_from([TOKENIZER, LEFT]))
def test_pad_equals_the_padding_of_a_call(batch: list[str], tokenizer: ErnieMTokenizer) -> None:
    expected = dict(tokenizer(batch, padding=True, **ALL))
    columns = tokenizer(batch, **ALL)
    before = copy.deepcopy(dict(columns))
    assert dict(tokenizer.pad(columns)) == expected
    assert dict(columns) == before
    assert dict(tokenizer.pad([tokenizer(text, **ALL) for text in batch])) == expected
    if len(batch) == 1:
        assert dict(tokenizer.pad(tokenizer(batch[0], **ALL))) == dict(tokenizer(batch[0], padding=True, **ALL))


def test_pad_of_arrays_and_labels() -> None:
    rows = [{"input_ids": np.array([0, 2]), "labels": 1}, {"input_ids": np.array([0, 39, 2]), "labels": 0}]
    found = TOKENIZER.pad(rows, pad_to_multiple_of=4, return_tensors="np")
    assert found["input_ids"].tolist() == [[0, 2, 1, 1], [0, 39, 2, 1]]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert found["labels"].tolist() == [1, 0]
    assert LEFT.pad({"input_ids": [[0, 2]]}, padding="max_length", max_length=4)["input_ids"] == [[1, 1, 0, 2]]
    assert list(TOKENIZER.pad({"input_ids": [[0, 2]]}, return_attention_mask=False)) == ["input_ids"]
    assert TOKENIZER.pad({"input_ids": [0, 2]}, padding=False)["input_ids"] == [0, 2]


@pytest.mark.parametrize(
    ("given_rows", "error", "says"),
    [
        ({"ids": [[1]]}, ValueError, "expected the key input_ids, got ids"),
        ([{"input_ids": [1]}, {"ids": [1]}], ValueError, "row 1: expected the keys of row 0, input_ids"),
        ("text", TypeError, "expected a mapping or a list of them, got str"),
        ([{"input_ids": 1}], TypeError, "expected input_ids to be a list"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, ValueError, "attention_mask: row 0: expected .* 2, got 1"),
        (
            {"input_ids": [[1], [1]], "attention_mask": [1, 1]},
            TypeError,
            "attention_mask cannot be padded: row 0: .*int",
        ),
        ({"input_ids": [[1], 2]}, TypeError, "input_ids cannot be padded: row 1: expected a list, got int"),
        ({"input_ids": [[1]], "token_type_ids": None}, TypeError, "token_type_ids cannot be padded: .* got NoneType"),
        (
            {"input_ids": [[1], [1]], "offset_mapping": [[(0, 1)]]},
            ValueError,
            "offset_mapping cannot be .* 2 rows, got 1",
        ),
    ],
)
def test_pad_rejects_what_are_not_rows(given_rows: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        TOKENIZER.pad(given_rows)


@pytest.mark.parametrize("kind", ["np", "pt"])
@pytest.mark.parametrize(
    ("column", "says"),
    [
        ([[1, 2], [3]], "rows of labels have different lengths, 1 to 2, and only input_ids, .* pad labels yourself"),
        (
            [[[1], [2, 3]], [[1], [2]]],
            "labels cannot be a tensor: expected numbers, or lists .* of equal lengths, got list",
        ),
        (
            [None, 1],
            "labels cannot be a tensor: expected numbers, .*, got NoneType and int: leave it out, or call without",
        ),
        (["a", "bc"], "labels cannot be a tensor: expected numbers, .*, got str: leave it out"),
    ],
)
def test_pad_names_the_column_that_it_cannot_pad_and_why(kind: str, column: Any, says: str) -> None:
    """Without `return_tensors`, such a column stays as it is."""
    if kind == "pt":
        pytest.importorskip("torch", reason="torch is not installed: there are no tensors")
    rows = {"input_ids": [[0, 39, 2], [0, 2]], "labels": column}
    assert TOKENIZER.pad(rows)["labels"] == column
    if kind == "np" and column == ["a", "bc"]:  # NumPy has arrays of text
        assert TOKENIZER.pad(rows, return_tensors=kind)["labels"].tolist() == column
        return
    with pytest.raises(ValueError, match=says):
        TOKENIZER.pad(rows, return_tensors=kind)

"""Arguments of single calls: the side of padding, targets, and warnings about what has no effect.

Seen red: the tokenizer's own side used whatever the call says; labels without the call's options; a warning at every
call, or none at the second tokenizer; the warning in spite of `verbose=False`.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY, texts

from ernie_m.tokenizer import ErnieMTokenizer

SIDES = st.sampled_from(["right", "left"])
TOKENIZERS = {side: ErnieMTokenizer(MODEL, VOCABULARY, padding_side=side) for side in ("right", "left")}


@given(batch=st.lists(texts(3), min_size=1, max_size=4), own=SIDES, side=SIDES)
def test_padding_side_of_a_call_overrides_the_tokenizers(batch: list[str], own: str, side: str) -> None:
    tokenizer, expected = TOKENIZERS[own], TOKENIZERS[side](batch, padding=True, return_offsets_mapping=True)
    found = tokenizer(batch, padding=True, padding_side=side, return_offsets_mapping=True)
    assert dict(found) == dict(expected) and tokenizer.padding_side == own
    assert [found.sequence_ids(i) for i in range(len(batch))] == [expected.sequence_ids(i) for i in range(len(batch))]
    rows = tokenizer(batch, return_offsets_mapping=True)
    assert dict(tokenizer.pad(rows, padding_side=side)) == dict(expected)
    for call in (tokenizer, lambda batch, **options: tokenizer.pad(tokenizer(batch), **options)):
        with pytest.raises(ValueError, match="padding_side: expected one of 'right', 'left', got 'up'"):
            call(batch, padding_side="up")


@given(text=texts(4), target=texts(4), pair=st.none() | texts(3), max_length=st.integers(4, 12))
def test_targets_are_encoded_with_the_options_of_the_call(
    text: str, target: str, pair: str | None, max_length: int
) -> None:
    tokenizer = TOKENIZERS["right"]
    options: dict[str, Any] = {"truncation": True, "max_length": max_length, "padding": "max_length"}
    alone = tokenizer(target, pair, **options)
    assert dict(tokenizer(text_target=target, text_pair_target=pair, **options)) == dict(alone)
    both = tokenizer(text, text_target=target, text_pair_target=pair, **options)
    assert dict(both) == {**tokenizer(text, **options), "labels": alone["input_ids"]}
    arrays = tokenizer([text], text_target=[target], return_tensors="np", **options)
    np.testing.assert_array_equal(arrays["labels"][0], tokenizer(target, **options)["input_ids"])


@pytest.mark.parametrize(
    ("given_texts", "error", "says"),
    [
        ({}, TypeError, "text: expected str or a list of str, got NoneType"),
        ({"text": "a", "text_target": 5}, TypeError, "text_target: expected str or a list of str, got int"),
        ({"text": "a", "text_target": ["a", 5]}, TypeError, "text_target: expected str, got int"),
        ({"text_target": ["a"], "text_pair_target": ["a", "b"]}, ValueError, "text_pair_target: .* text_target has, 1"),
        ({"text": "a", "text_pair_target": "b"}, ValueError, "text_pair_target: expected None without text_target"),
        ({"text_target": "a", "text_pair": "b"}, ValueError, "text_pair: expected None without text"),
    ],
)
def test_targets_that_are_not_text_are_named(given_texts: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        TOKENIZERS["right"](**given_texts)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"truncation": True}, "truncation=True has no effect: nothing is truncated: max_length is not given"),
        ({"truncation": "only_first"}, "truncation='only_first' has no effect"),
        ({"padding": True, "max_length": 3}, "max_length=3 has no effect: nothing is truncated to it, nor padded"),
    ],
)
def test_options_without_effect_are_a_warning_once(options: dict[str, Any], says: str) -> None:
    for _ in range(2):  # each tokenizer says it
        tokenizer = ErnieMTokenizer(MODEL, VOCABULARY)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tokenizer("a", verbose=False, **options)
            tokenizer.encode_plus("a", verbose=False)
        with pytest.warns(UserWarning, match=says) as said:
            found = tokenizer("The ships", **options)
        assert len(said) == 1 and said[0].filename == __file__
        assert found["input_ids"] == tokenizer("The ships")["input_ids"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tokenizer("a", **options)
            pickle.loads(pickle.dumps(tokenizer))("a", **options)


@pytest.mark.parametrize(
    "options", [{}, {"truncation": True, "max_length": 3}, {"max_length": 3}, {"padding": True, "truncation": False}]
)
def test_options_with_an_effect_warn_of_nothing(options: dict[str, Any]) -> None:
    limited = ErnieMTokenizer(MODEL, VOCABULARY, model_max_length=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ErnieMTokenizer(MODEL, VOCABULARY)(["a", "The ships"], **options)
        limited("a", truncation=True, **{name: value for name, value in options.items() if name == "padding"})


def test_tokens_of_a_copy_say_where_to_get_them() -> None:
    batch = TOKENIZERS["right"](["a"])
    assert batch.tokens(0) == batch.to("cpu").tokens(0) == ["[CLS]", "▁a", "[SEP]"]
    for again in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        with pytest.raises(ValueError, match=r"tokens: .* call tokenizer\.convert_ids_to_tokens"):
            again.tokens(0)
    assert len(pickle.dumps(batch)) < 1000

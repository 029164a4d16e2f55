"""Arguments of single calls: the side of padding, targets, and warnings about what has no effect.

Seen red: the tokenizer's own side used whatever the call says; labels without the call's options; a warning at every
call, or none at the second tokenizer; the warning in spite of `verbose=False`; a flag "false" taken for True.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY, texts

from ernie_m.tokenizer import AddedToken, ErnieMTokenizer

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
        ({"text": "a", "text_target": ["a", 5]}, TypeError, r"text_target\[1\]: expected str, got int"),
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


FLAGS: dict[str, Callable[[ErnieMTokenizer, dict[str, Any]], Any]] = {
    **dict.fromkeys(
        (
            "add_special_tokens",
            "is_split_into_words",
            "return_token_type_ids",
            "return_attention_mask",
            "return_overflowing_tokens",
            "return_special_tokens_mask",
            "return_offsets_mapping",
            "return_length",
            "split_special_tokens",
            "verbose",
        ),
        lambda t, given: t(["The ships", "[MASK]"], **given),
    ),
    **dict.fromkeys(
        ("skip_special_tokens", "clean_up_tokenization_spaces", "spaces_between_special_tokens"),
        lambda t, given: t.decode([0, 5, 2], **given),
    ),
    **dict.fromkeys(("do_lower_case", "strict_vocab"), lambda t, given: ErnieMTokenizer(MODEL, VOCABULARY, **given)),
    **dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized", "special"), lambda t, given: AddedToken("x", **given)
    ),
    "pair": lambda t, given: t.num_special_tokens_to_add(**given),
    "already_has_special_tokens": lambda t, given: t.get_special_tokens_mask([0, 5, 2], **given),
    "special_tokens": lambda t, given: copy.copy(t).add_tokens(["<x>"], **given),
    "replace_additional_special_tokens": lambda t, given: copy.copy(t).add_special_tokens({}, **given),
    "enable_sampling": lambda t, given: ErnieMTokenizer(MODEL, VOCABULARY, sp_model_kwargs=given).sp_model_kwargs,
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_a_bool_of_python_or_numpy(name: str) -> None:
    call, tokenizer = FLAGS[name], TOKENIZERS["right"]
    for value in (False, True):
        found = call(tokenizer, {name: np.bool_(value)})
        assert repr(found) == repr(call(tokenizer, {name: value}))
    for value in ("false", "", 0, 1.0):
        with pytest.raises(TypeError, match=f"{name}: expected a bool, got {value!r}$"):
            call(tokenizer, {name: value})


def test_the_flags_of_other_calls_are_checked_too(tmp_path: Path) -> None:
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY, do_lower_case=np.True_, split_special_tokens=np.True_)  # type: ignore[arg-type]
    tokenizer.save_pretrained(tmp_path)
    assert ErnieMTokenizer.from_pretrained(tmp_path).tokenize("[MASK]") == tokenizer.tokenize("[MASK]") != ["[MASK]"]
    for option in ("padding", "truncation"):
        for flag in (False, True):
            options: dict[str, Any] = {"max_length": 3, "verbose": False}
            assert tokenizer(["a", "The ships"], **options, **{option: np.bool_(flag)}) == tokenizer(
                ["a", "The ships"], **options, **{option: flag}
            )
        with pytest.raises(ValueError, match=f"{option}: expected one of False, True, .*, got 'false'"):
            tokenizer("a", **{option: "false"})
    calls: list[Callable[[Any], Any]] = [
        lambda value: tokenizer.tokenize("a", split_special_tokens=value),
        lambda value: tokenizer.pad({"input_ids": [[1]]}, return_attention_mask=value),
        lambda value: tokenizer.pad({"input_ids": [[1]]}, verbose=value),
        lambda value: tokenizer.convert_ids_to_tokens(5, skip_special_tokens=value),
        lambda value: tokenizer.batch_decode([[5]], skip_special_tokens=value),
    ]
    for call in calls:
        call(np.True_)
        with pytest.raises(TypeError, match=r"^[a-z_]+: expected a bool, got 'false'$"):
            call("false")

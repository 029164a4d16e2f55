"""The tokenizer against transformers 4.40.2: random texts and options, and directories in both directions.

Seen red: rule A without its "not the first piece"; "longest_first" that truncates the first text on a tie; left padding
put on the right; added tokens matched shortest first; `normalized` ignored when lower-casing; flags not saved.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import MODEL, OTHER_MODELS, VOCABULARY, golden_texts, texts, trained, write_files

import ernie_m.tokenizer as ours_package
from ernie_m.tokenizer import ErnieMTokenizer

transformers = pytest.importorskip(
    "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
)
transformers.logging.set_verbosity(transformers.logging.CRITICAL)

PLAIN, LOWER, ADDED, ADDED_LOWER = range(4)


def add_tokens(tokenizer: Any, added_token: Any) -> Any:
    """Add tokens of every kind: plain, flagged, special, with and without capitals, nested."""
    tokenizer.add_tokens(["ship", "NewTok", "ab", "abc"])
    tokenizer.add_tokens([added_token("foo", lstrip=True, rstrip=True), added_token("bar", single_word=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<X>", added_token("<X>y")]})
    tokenizer.add_special_tokens({"mask_token": added_token("[MASK]", lstrip=True)})
    return tokenizer


def both(kind: int) -> tuple[Any, ErnieMTokenizer]:
    lower = kind in (LOWER, ADDED_LOWER)
    theirs = transformers.ErnieMTokenizer(str(MODEL), vocab_file=str(VOCABULARY), do_lower_case=lower)
    ours = ErnieMTokenizer(MODEL, VOCABULARY, do_lower_case=lower)
    if kind in (ADDED, ADDED_LOWER):
        add_tokens(theirs, transformers.AddedToken)
        add_tokens(ours, ours_package.AddedToken)
    return theirs, ours


TOKENIZERS = [both(kind) for kind in range(4)]
WITH_ADDED = st.lists(
    st.one_of(
        texts(3), st.sampled_from(["ship", "ships", "NewTok", "newtok", "abc", "foo ", " bar ", "xbar", "<X>", "<X>y"])
    ),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("kind", range(4))
def test_tables_equal(kind: int) -> None:
    theirs, ours = TOKENIZERS[kind]
    assert (len(ours), ours.vocab_size, ours.get_vocab()) == (len(theirs), theirs.vocab_size, theirs.get_vocab())
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.additional_special_tokens == theirs.additional_special_tokens
    for name in ("additional_special_tokens_ids", "bos_token_id", "eos_token_id", "mask_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.convert_ids_to_tokens([-1, 0, 3, 5, 4001, 4002, 99999]) == theirs.convert_ids_to_tokens(
        [-1, 0, 3, 5, 4001, 4002, 99999]
    )


@pytest.mark.parametrize("kind", range(4))
@settings(max_examples=400)
@given(text=WITH_ADDED, split=st.booleans())
def test_tokens_and_ids_equal(kind: int, text: str, split: bool) -> None:
    theirs, ours = TOKENIZERS[kind]
    tokens = theirs.tokenize(text, split_special_tokens=split)
    assert ours.tokenize(text, split_special_tokens=split) == tokens
    assert ours(text, add_special_tokens=False, split_special_tokens=split)["input_ids"] == (
        theirs.convert_tokens_to_ids(tokens)
    )
    if not split:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


@settings(max_examples=300)
@given(
    kind=st.integers(0, 3),
    text=WITH_ADDED,
    pair=st.none() | WITH_ADDED,
    max_length=st.integers(5, 30),
    truncation=st.sampled_from([True, "longest_first", "only_first", "only_second", False]),
    padding=st.sampled_from([False, True, "max_length"]),
    sides=st.tuples(st.sampled_from(["right", "left"]), st.sampled_from(["right", "left"])),
    add_special_tokens=st.booleans(),
)
def test_call_equals(
    kind: int,
    text: str,
    pair: str | None,
    max_length: int,
    truncation: Any,
    padding: Any,
    sides: tuple[str, str],
    add_special_tokens: bool,
) -> None:
    theirs, ours = TOKENIZERS[kind]
    for tokenizer in (theirs, ours):
        tokenizer.padding_side, tokenizer.truncation_side = sides
    options = {
        "max_length": max_length,
        "truncation": truncation,
        "padding": padding,
        "return_special_tokens_mask": True,
        "return_attention_mask": True,
        "verbose": False,
        # transformers refuses type ids without special tokens.
        "return_token_type_ids": add_special_tokens,
        "add_special_tokens": add_special_tokens,
    }
    expected = theirs(text, pair, **options)
    try:
        found = ours(text, pair, **options)
    except ValueError as error:
        # In this case transformers logs an error and returns a sequence that is too long.
        assert "cannot be reached" in str(error) or "no second text" in str(error)
        assert len(expected["input_ids"]) > max_length
        return
    if not expected["input_ids"]:
        return  # transformers does not pad an empty row
    if truncation and len(expected["input_ids"]) > max_length:
        # transformers never truncates a text to nothing, and this is the only case that needs it.
        assert len(found["input_ids"]) == max_length
        return
    assert {name: found[name] for name in found} == {name: expected[name] for name in found}


@settings(max_examples=100)
@given(
    batch=st.lists(WITH_ADDED, min_size=1, max_size=4),
    multiple=st.sampled_from([None, 1, 4, 8]),
    kind=st.integers(0, 3),
)
def test_batches_with_padding_equal(batch: list[str], multiple: int | None, kind: int) -> None:
    theirs, ours = TOKENIZERS[kind]
    for tokenizer in (theirs, ours):
        tokenizer.padding_side = "right"
    options: dict[str, Any] = {"padding": True, "pad_to_multiple_of": multiple, "return_tensors": "np"}
    expected = theirs(batch, return_attention_mask=True, return_length=True, **options)
    found = ours(batch, return_length=True, **options)
    for name in ("input_ids", "attention_mask", "length"):
        assert found[name].tolist() == expected[name].tolist() and found[name].dtype == expected[name].dtype


@settings(max_examples=200)
@given(kind=st.integers(0, 3), text=WITH_ADDED, skip=st.booleans(), clean=st.booleans(), spaces=st.booleans())
def test_decode_equals(kind: int, text: str, skip: bool, clean: bool, spaces: bool) -> None:
    theirs, ours = TOKENIZERS[kind]
    options = {
        "skip_special_tokens": skip,
        "clean_up_tokenization_spaces": clean,
        "spaces_between_special_tokens": spaces,
    }
    ids = theirs(text)["input_ids"]
    assert ours.decode(ids, **options) == theirs.decode(ids, **options)


@settings(max_examples=50)
@given(
    tokens=st.lists(st.sampled_from(["▁the", "a", "▁The", "<new>", "[MASK]", "<added>"]), max_size=8),
    skip=st.booleans(),
)
def test_decode_of_special_tokens_inside_and_outside_the_vocabulary_equals(tokens: list[str], skip: bool) -> None:
    theirs, ours = both(PLAIN)
    for tokenizer in (theirs, ours):
        tokenizer.add_special_tokens({"additional_special_tokens": ["▁the", "<new>"]})
        tokenizer.add_tokens(["<added>", "▁The"])
    ids = ours.convert_tokens_to_ids(tokens)
    assert ids == theirs.convert_tokens_to_ids(tokens)
    assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100)
@given(kind=st.integers(0, 3), words=st.lists(texts(2), min_size=1, max_size=6))
def test_words_equal(kind: int, words: list[str]) -> None:
    theirs, ours = TOKENIZERS[kind]
    expected = theirs(words, is_split_into_words=True)["input_ids"]
    assert ours(words, is_split_into_words=True)["input_ids"] == expected


@pytest.mark.parametrize("kind", range(4))
def test_transformers_loads_a_saved_directory(kind: int, tmp_path: Path) -> None:
    ours = TOKENIZERS[kind][1]
    ours.save_pretrained(tmp_path)
    theirs = transformers.ErnieMTokenizer.from_pretrained(tmp_path)
    assert (len(theirs), theirs.get_vocab()) == (len(ours), ours.get_vocab())
    assert theirs.do_lower_case == ours.do_lower_case
    for text in [*golden_texts(), "a foo b", "xbar bar", "NEWTOK ships <X>y [MASK]"]:
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]


@pytest.mark.parametrize("kind", range(4))
def test_from_pretrained_loads_what_transformers_saved(kind: int, tmp_path: Path) -> None:
    theirs = TOKENIZERS[kind][0]
    theirs.save_pretrained(tmp_path)
    ours = ErnieMTokenizer.from_pretrained(tmp_path)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.all_special_tokens == theirs.all_special_tokens
    for text in [*golden_texts(), "a foo b", "xbar bar", "NEWTOK ships <X>y [MASK]"]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_from_pretrained_of_an_older_directory_equals(tmp_path: Path) -> None:
    """Without `added_tokens_decoder`, as older releases and Paddle write it."""
    TOKENIZERS[ADDED][1].save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "ErnieMTokenizer"}')
    theirs, ours = transformers.ErnieMTokenizer.from_pretrained(tmp_path), ErnieMTokenizer.from_pretrained(tmp_path)
    assert ours.get_vocab() == theirs.get_vocab() and ours.all_special_tokens == theirs.all_special_tokens
    for text in ["a ship <X>y [MASK] NewTok newtok", "<X> THE"]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_vocabulary_of_the_piece_model_equals(tmp_path: Path) -> None:
    """transformers uses it if vocab.txt is missing; unknown tokens have the id None there, that of [UNK] here."""
    theirs = transformers.ErnieMTokenizer(str(MODEL))
    ours = ErnieMTokenizer(MODEL, "sentencepiece")
    assert ours.get_vocab() == theirs.get_vocab()
    for text in golden_texts():
        expected = [ours.unk_token_id if i is None else i for i in theirs(text)["input_ids"]]
        assert ours(text)["input_ids"] == expected
    ours.save_pretrained(tmp_path)
    assert transformers.ErnieMTokenizer.from_pretrained(tmp_path).get_vocab() == ours.get_vocab()


@pytest.mark.parametrize("name", OTHER_MODELS)
@settings(max_examples=60)
@given(text=texts())
def test_other_piece_models_equal(name: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if name not in OTHER:
        files = write_files(tmp_path_factory.mktemp("model"), trained(**OTHER_MODELS[name]))
        theirs = transformers.ErnieMTokenizer(str(files[0]), vocab_file=str(files[1]))
        OTHER[name] = theirs, ErnieMTokenizer(*files)
    theirs, ours = OTHER[name]
    try:
        expected = theirs.tokenize(text)
    except IndexError:
        return  # a lone marker at the end
    assert ours.tokenize(text) == expected


OTHER: dict[str, tuple[Any, ErnieMTokenizer]] = {}


@pytest.mark.parametrize("seed", range(40))
def test_sampling_equals_with_the_same_seed(seed: int) -> None:
    """The rule for lone markers too, which sampling produces. Seen red: the marker compared by id with drawn texts.

    sentencepiece (0.2.2 and later) mixes a number of each process into the seed: a seed draws the same for all three
    tokenizers here, but something else in every run. A fault that few draws show needs many seeds.
    """
    import sentencepiece

    options = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.2}
    theirs = transformers.ErnieMTokenizer(str(MODEL), vocab_file=str(VOCABULARY), sp_model_kwargs=options)
    ours, paddle = (
        ErnieMTokenizer(MODEL, VOCABULARY, sp_model_kwargs=options, lone_marker=rule)
        for rule in ("huggingface", "paddle")
    )
    text = "The lighthouse keeper bought olive oil on Tuesday."
    drawn = []
    for tokenizer in (theirs, ours, paddle):
        sentencepiece.set_random_generator_seed(seed + 1)
        # The seed affects only threads that have not drawn yet.
        with ThreadPoolExecutor(1) as thread:
            drawn.append(thread.submit(lambda t=tokenizer: [t.tokenize(text) for _ in range(20)]).result())
    assert drawn[0] == drawn[1]
    assert len(set(map(tuple, drawn[1]))) > 5
    assert not any("\u2581" in row for row in drawn[2])


@pytest.mark.parametrize("flags", range(8))
def test_flags_of_an_added_token_with_capitals_equal(flags: int) -> None:
    """Normalised or not, special or not, lower-casing or not."""
    lower, normalized, special = bool(flags & 1), bool(flags & 2), bool(flags & 4)
    theirs, ours = both(LOWER if lower else PLAIN)
    theirs.add_tokens([transformers.AddedToken("ABC", normalized=normalized, special=special)])
    ours.add_tokens([ours_package.AddedToken("ABC", normalized=normalized, special=special)])
    for text in ("ABC", "x ABC abc Abc", "xABCabc"):
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


@settings(max_examples=100)
@given(
    batch=st.lists(st.tuples(texts(3), texts(3)), min_size=1, max_size=3),
    side=st.sampled_from(["right", "left"]),
    max_length=st.none() | st.integers(4, 12),
)
def test_targets_and_padding_side_equal(batch: list[tuple[str, str]], side: str, max_length: int | None) -> None:
    """`text_target`; and the side that a call names, as if it were the tokenizer's own. `verbose` is accepted."""
    theirs, ours = TOKENIZERS[PLAIN]
    first, second = [list(column) for column in zip(*batch, strict=True)]
    options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": max_length, "verbose": False}
    for given_texts in ({"text": first, "text_target": second}, {"text_target": second, "text_pair_target": first}):
        before, theirs.padding_side = theirs.padding_side, side
        expected = theirs(**given_texts, return_attention_mask=True, **options)
        padded = theirs.pad(theirs(first), return_attention_mask=True, verbose=False)
        theirs.padding_side = before
        assert dict(ours(**given_texts, padding_side=side, **options)) == dict(expected)
        assert dict(ours.pad(ours(first), padding_side=side)) == dict(padded)


def test_truncation_without_a_length_warns_once_as_in_transformers(caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = both(PLAIN)
    transformers.logging.set_verbosity(transformers.logging.WARNING)
    transformers.logging.enable_propagation()
    try:
        for i in range(2):
            caplog.clear()
            expected = theirs("The ships", truncation=True)["input_ids"]
            assert ("no predefined maximum length" in caplog.text) == (i == 0)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                assert ours("The ships", truncation=True)["input_ids"] == expected
            assert len(said) == (i == 0)
    finally:
        transformers.logging.disable_propagation()
        transformers.logging.set_verbosity(transformers.logging.CRITICAL)

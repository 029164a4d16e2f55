"""The whole tokenizer on any Unicode text: properties that hold for every input.

Seen red: offsets not shifted by the start of their segment; the end of a span not shrunk; a window that starts one
token late; ids of added tokens cached from before they were added; `_encoder` left in the pickle.
"""

from __future__ import annotations

import copy
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import MODEL, OTHER_MODELS, VOCABULARY, golden_texts, texts, trained, write_files

from ernie_m.tokenizer import AddedToken, BatchEncoding, ErnieMTokenizer
from ernie_m.tokenizer.decoding import clean_up
from ernie_m.tokenizer.options import LONGEST_PADDED, Options
from ernie_m.tokenizer.segments import lower

PLAIN = ErnieMTokenizer(MODEL, VOCABULARY)
LOWER = ErnieMTokenizer(MODEL, VOCABULARY, do_lower_case=True)
PADDLE = ErnieMTokenizer(MODEL, VOCABULARY, lone_marker="paddle")
ADDED = ErnieMTokenizer(MODEL, VOCABULARY, additional_special_tokens=["<x>"])
ADDED.add_tokens(["ship", AddedToken("bar", lstrip=True, rstrip=True), AddedToken("foo", single_word=True)])
TOKENIZERS = st.sampled_from([PLAIN, LOWER, PADDLE, ADDED])


def normalised(tokenizer: ErnieMTokenizer, text: str) -> str:
    return tokenizer._model.normalise(text)[0].replace("▁", "")


def check_offsets(tokenizer: ErnieMTokenizer, text: str) -> None:
    """Spans lie in the text and in order, and their text is the token, unless several tokens share a span."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans, tokens = found["offset_mapping"], tokenizer.tokenize(text)
    assert found["input_ids"] == tokenizer.convert_tokens_to_ids(tokens) and len(spans) == len(tokens)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert spans == sorted(spans) and [end for _, end in spans] == sorted(end for _, end in spans)
    for i, (token, (start, end)) in enumerate(zip(tokens, spans, strict=True)):
        bare = token.replace("▁", "")
        if token in tokenizer.added:
            assert (lower(text[start:end]) if tokenizer.do_lower_case else text[start:end]) in (token, lower(token))
            continue
        source = lower(text[start:end]) if tokenizer.do_lower_case else text[start:end]
        assert bare in normalised(tokenizer, source)
        # No character at either end that normalisation removes.
        assert not bare or (normalised(tokenizer, source[0]) and normalised(tokenizer, source[-1]))
        if bare != normalised(tokenizer, source):
            # A source character, or a composed sequence, was cut: a neighbour shares part of this span.
            neighbours = spans[max(i - 1, 0) : i] + spans[i + 1 : i + 2]
            assert any(s < end and start < e for s, e in neighbours)


@settings(max_examples=300)
@given(tokenizer=TOKENIZERS, text=texts())
def test_offsets_point_at_their_tokens(tokenizer: ErnieMTokenizer, text: str) -> None:
    check_offsets(tokenizer, text)


@pytest.mark.parametrize("text", golden_texts())
def test_offsets_point_at_their_tokens_in_golden_texts(text: str) -> None:
    for tokenizer in (PLAIN, LOWER, PADDLE, ADDED):
        check_offsets(tokenizer, text)


OTHER: dict[str, ErnieMTokenizer] = {}


@pytest.mark.parametrize("name", OTHER_MODELS)
@settings(max_examples=50)
@given(text=texts())
def test_other_piece_models_have_offsets_too(name: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if name not in OTHER:
        files = write_files(tmp_path_factory.mktemp("model"), trained(**OTHER_MODELS[name]))
        OTHER[name] = ErnieMTokenizer(*files)
    tokenizer = OTHER[name]
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = tokenizer.tokenize(text)
    assert found["input_ids"] == tokenizer.convert_tokens_to_ids(tokens)
    assert len(found["offset_mapping"]) == len(tokens)
    last = 0
    for token, (start, end) in zip(tokens, found["offset_mapping"], strict=True):
        assert last <= start <= end <= len(text)
        last = start
        if name != "byte fallback" and token not in tokenizer.added:
            assert token.replace("▁", "") in normalised(tokenizer, text[start:end])


@settings(max_examples=200)
@given(tokenizer=TOKENIZERS, batch=st.lists(texts(), min_size=1, max_size=5), offsets=st.booleans())
def test_a_batch_equals_its_texts_one_by_one(tokenizer: ErnieMTokenizer, batch: list[str], offsets: bool) -> None:
    together = tokenizer(batch, return_offsets_mapping=offsets)
    alone = [tokenizer(text, return_offsets_mapping=offsets) for text in batch]
    assert dict(together) == {name: [row[name] for row in alone] for name in together}
    assert [tokenizer(text)["input_ids"] for text in batch] == together["input_ids"]


@given(first=texts(4), second=texts(4))
def test_pairs_are_two_texts_in_one_row(first: str, second: str) -> None:
    a, b = (PLAIN(text, add_special_tokens=False)["input_ids"] for text in (first, second))
    pair = PLAIN(
        first, second, return_token_type_ids=True, return_special_tokens_mask=True, return_offsets_mapping=True
    )
    assert pair["input_ids"] == [0, *a, 2, 2, *b, 2] == PLAIN.build_inputs_with_special_tokens(a, b)
    assert pair["token_type_ids"] == PLAIN.create_token_type_ids_from_sequences(a, b)
    assert pair["token_type_ids"] == [0] * (len(a) + 1) + [1] * (len(b) + 3)
    assert pair["special_tokens_mask"] == PLAIN.get_special_tokens_mask(a, b)
    assert pair.sequence_ids() == [None, *[0] * len(a), None, None, *[1] * len(b), None]
    assert [span for span in pair["offset_mapping"] if span != (0, 0)] == [
        span
        for text in (first, second)
        for span in PLAIN(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    assert PLAIN([(first, second)])["input_ids"] == [pair["input_ids"]]
    assert PLAIN.encode(first, second) == pair["input_ids"] == PLAIN.encode_plus(first, second)["input_ids"]
    assert PLAIN.batch_encode_plus([(first, second)])["input_ids"] == [pair["input_ids"]]
    assert PLAIN.tokenize(first, second) == PLAIN.tokenize(first) + PLAIN.tokenize(second)


@settings(max_examples=300)
@given(tokenizer=TOKENIZERS, text=texts(), skip=st.booleans(), clean=st.booleans())
def test_decode_of_encode_is_stable_from_the_second_round(
    tokenizer: ErnieMTokenizer, text: str, skip: bool, clean: bool
) -> None:
    rounds = [text]
    for _ in range(3):
        ids = tokenizer.encode(rounds[-1], add_special_tokens=False)
        rounds.append(tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean))
    assert rounds[2] == rounds[3]


@settings(max_examples=200)
@given(
    text=texts(12),
    pair=st.none() | texts(3),
    room=st.integers(1, 12),
    stride=st.integers(0, 11),
    side=st.sampled_from(["right", "left"]),
)
def test_overflow_loses_no_token(text: str, pair: str | None, room: int, stride: int, side: str) -> None:
    tokenizer = copy.copy(PLAIN)
    tokenizer.truncation_side = side
    stride = min(stride, room - 1)
    extra = 2 if pair is None else 4 + len(PLAIN.tokenize(pair))
    rows = tokenizer(
        text,
        pair,
        max_length=room + extra,
        truncation="only_first",
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert set(rows["overflow_to_sample_mapping"]) == {0}
    found_ids: list[int] = []
    found_spans: list[tuple[int, int]] = []
    order = range(len(rows["input_ids"]))
    for count, i in enumerate(order if side == "right" else reversed(order)):
        inside = [k for k, which in enumerate(rows.sequence_ids(i)) if which == 0]
        assert len(rows["input_ids"][i]) <= room + extra
        ids = [rows["input_ids"][i][k] for k in inside]
        spans = [rows["offset_mapping"][i][k] for k in inside]
        # With side "left", the first window in the text's order is the short one.
        overlap = 0 if count == 0 else stride if side == "right" or count > 1 else min(stride, len(found_ids))
        assert found_ids[len(found_ids) - overlap :] == ids[:overlap]
        found_ids += ids[overlap:]
        found_spans += spans[overlap:]
    assert (found_ids, found_spans) == (whole["input_ids"], whole["offset_mapping"])


@settings(max_examples=200)
@given(
    first=texts(),
    second=texts(),
    room=st.integers(0, 20),
    how=st.sampled_from(["longest_first", "only_first", "only_second"]),
)
def test_truncation_keeps_the_start_of_each_text(first: str, second: str, room: int, how: str) -> None:
    a, b = (PLAIN(text, add_special_tokens=False)["input_ids"] for text in (first, second))
    try:
        row = PLAIN(first, second, max_length=room + 4, truncation=how)
    except ValueError as error:
        assert "cannot be reached" in str(error)
        assert room < len(b if how == "only_first" else a)
        return
    assert len(row["input_ids"]) == min(room, len(a) + len(b)) + 4
    sides = row.sequence_ids()
    kept_a = [i for i, side in zip(row["input_ids"], sides, strict=True) if side == 0]
    kept_b = [i for i, side in zip(row["input_ids"], sides, strict=True) if side == 1]
    assert a[: len(kept_a)] == kept_a and b[: len(kept_b)] == kept_b
    assert how != "only_first" or kept_b == b
    assert how != "only_second" or kept_a == a


@given(words=st.lists(texts(2), min_size=1, max_size=6))
def test_words_are_encoded_one_by_one(words: list[str]) -> None:
    found = PLAIN(words, is_split_into_words=True, add_special_tokens=False, return_offsets_mapping=True)
    alone = [PLAIN(word, add_special_tokens=False, return_offsets_mapping=True) for word in words]
    assert found["input_ids"] == [i for word in alone for i in word["input_ids"]]
    assert found["offset_mapping"] == [span for word in alone for span in word["offset_mapping"]]
    assert found.word_ids() == [k for k, word in enumerate(alone) for _ in word["input_ids"]]


def test_word_ids_of_running_text_are_those_of_str_split() -> None:
    text = "Die  alten Schiffe,\n2024 中文 [MASK] an"
    found = PLAIN(text, return_offsets_mapping=True)
    words = text.split()
    for word, (start, end) in zip(found.word_ids(), found["offset_mapping"], strict=True):
        assert (word is None) == ((start, end) == (0, 0))
        if word is not None and text[start:end].strip():
            assert text[start:end] in words[word]
    assert found.word_ids()[-2] == len(words) - 1
    with pytest.raises(ValueError, match="return_offsets_mapping=True or is_split_into_words=True"):
        PLAIN(text).word_ids()


def same(a: ErnieMTokenizer, b: ErnieMTokenizer) -> None:
    """Assert that two tokenizers do the same."""
    assert (a.get_vocab(), len(a), a.special_tokens_map) == (b.get_vocab(), len(b), b.special_tokens_map)
    assert a.added_tokens_decoder == b.added_tokens_decoder
    for name in (
        "do_lower_case",
        "lone_marker",
        "model_max_length",
        "padding_side",
        "truncation_side",
        "sp_model_kwargs",
    ):
        assert getattr(a, name) == getattr(b, name)
    for text in [*golden_texts()[::5], "a bar b foo <x> SHIP ships"]:
        options: dict[str, Any] = {"return_offsets_mapping": True, "truncation": True, "verbose": False}
        assert a(text, **options) == b(text, **options)
        assert a.decode(a.encode(text)) == b.decode(b.encode(text))


def every_option(folder: Path) -> ErnieMTokenizer:
    model, vocabulary = folder / "m.model", folder / "v.txt"
    model.write_bytes(MODEL.read_bytes())
    vocabulary.write_bytes(VOCABULARY.read_bytes())
    tokenizer = ErnieMTokenizer(
        model,
        vocabulary,
        do_lower_case=True,
        lone_marker="paddle",
        model_max_length=20,
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=False,
        mask_token=AddedToken("[MASK]", lstrip=True),
        bos_token="<s>",
        additional_special_tokens=["<x>"],
    )
    tokenizer.add_tokens(["Ship", AddedToken("foo", single_word=True)])
    return tokenizer


def test_save_and_load_restore_the_tokenizer(tmp_path: Path) -> None:
    for i, tokenizer in enumerate([PLAIN, LOWER, PADDLE, ADDED, every_option(tmp_path)]):
        folder = tmp_path / "deep" / str(i)
        written = tokenizer.save_pretrained(folder)
        assert sorted(map(Path, written)) == sorted(folder.iterdir())
        same(tokenizer, ErnieMTokenizer.from_pretrained(folder))
        assert (folder / "sentencepiece.bpe.model").read_bytes() == MODEL.read_bytes()
        assert (folder / "vocab.txt").read_bytes() == VOCABULARY.read_bytes()
        again = ErnieMTokenizer.from_pretrained(str(folder), do_lower_case=True, lone_marker="paddle")
        assert again.do_lower_case and again.lone_marker == "paddle"


def test_pickle_and_copies_need_no_files(tmp_path: Path) -> None:
    tokenizer = every_option(tmp_path)
    data = pickle.dumps(tokenizer)
    expected = every_option(tmp_path)
    for path in (tmp_path / "m.model", tmp_path / "v.txt"):
        path.unlink()
    same(pickle.loads(data), expected)
    same(copy.deepcopy(tokenizer), expected)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["zebra"])
    assert len(other) == len(expected) + 1 and len(tokenizer) == len(expected)


def test_decode_cleans_up_unless_it_is_told_not_to() -> None:
    """Here or when the tokenizer is made."""
    ids = PLAIN("A ship , and so on .", add_special_tokens=False)["input_ids"]
    kept = PLAIN.decode(ids, clean_up_tokenization_spaces=False)
    assert PLAIN.decode(ids) == clean_up(kept) != kept
    assert ErnieMTokenizer(MODEL, VOCABULARY, clean_up_tokenization_spaces=False).decode(ids) == kept


def test_one_id_decodes_alike_in_every_form() -> None:
    """Also as an array of no axes, which a batch of ids in one tensor is made of.

    Seen red with those taken for several: special tokens were not skipped.
    """
    for skip in (False, True):
        for number in (0, 39):
            forms = [number, [number], np.int64(number), np.array(number), np.array([number])]
            assert len({PLAIN.decode(form, skip_special_tokens=skip) for form in forms}) == 1
    assert PLAIN.batch_decode([np.array(0), np.array(39)], skip_special_tokens=True) == ["", "a"]


def test_batch_decode_names_what_is_not_rows() -> None:
    with pytest.raises(TypeError, match="sequences: expected rows of ids, got 5"):
        PLAIN.batch_decode(5)  # type: ignore[arg-type]


def test_added_tokens_take_effect_at_once() -> None:
    tokenizer = copy.deepcopy(PLAIN)
    before = tokenizer("a zyzzyva")["input_ids"]
    assert tokenizer("\u1100\u1101")["input_ids"] == [0, 3, 2]
    assert tokenizer.add_tokens("zyzzyva") == 1 and tokenizer.add_tokens(["zyzzyva"]) == 0
    after = tokenizer("a zyzzyva")["input_ids"]
    assert before != after and after[-2] == 4002 == len(tokenizer) - 1
    assert tokenizer.vocab_size == 4002
    tokenizer.unk_token = "<unknown>"
    assert tokenizer.unk_token_id == 4003 and tokenizer("\u1100\u1101")["input_ids"] == [0, 4003, 2]


def test_call_returns_numpy_and_torch() -> None:
    batch = PLAIN(["a", "The ships"], padding=True, return_tensors="np", return_offsets_mapping=True)
    assert batch["input_ids"].shape == (2, 4) and batch["input_ids"].dtype == np.int64
    assert batch["offset_mapping"].shape == (2, 4, 2) and batch.attention_mask.tolist() == [[1, 1, 1, 0], [1] * 4]
    assert PLAIN("", return_tensors="np", add_special_tokens=False)["input_ids"].shape == (1, 0)
    assert PLAIN("a", return_tensors="np")["input_ids"].tolist() == [[0, 39, 2]]
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = PLAIN(["a", "The ships"], padding=True, return_tensors="pt")
    assert (
        tensors["input_ids"].dtype == torch.int64
        and tensors.to("cpu")["input_ids"].tolist() == batch.input_ids.tolist()
    )
    assert PLAIN.decode(tensors["input_ids"][0]) == PLAIN.decode(batch["input_ids"][0])


def test_missing_torch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="return_tensors='pt' needs torch"):
        PLAIN("a", return_tensors="pt")


def test_call_returns_the_requested_columns() -> None:
    assert list(PLAIN("a")) == ["input_ids", "attention_mask"]
    assert list(PLAIN("a", return_attention_mask=False)) == ["input_ids"]
    everything = PLAIN(
        ["a", "The ships"],
        padding="max_length",
        max_length=6,
        return_token_type_ids=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
        return_length=True,
    )
    assert everything["input_ids"][0] == [0, 39, 2, 1, 1, 1]
    assert everything["attention_mask"][0] == [1, 1, 1, 0, 0, 0]
    assert everything["special_tokens_mask"][0] == [1, 0, 1, 1, 1, 1]
    assert everything["token_type_ids"][0] == [0] * 6
    assert everything["offset_mapping"][0] == [(0, 0), (0, 1), *[(0, 0)] * 4]
    assert everything["length"] == [3, 4]
    assert isinstance(everything, BatchEncoding)
    assert everything.word_ids(0) == [None, 0, None, None, None, None]
    with pytest.raises(AttributeError, match="no column 'labels'"):
        _ = everything.labels


def test_model_max_length_truncates_only_on_request() -> None:
    tokenizer = copy.copy(PLAIN)
    tokenizer.model_max_length = 5
    text = "The old ships arrive at last."
    assert len(tokenizer(text)["input_ids"]) > 5
    assert len(tokenizer(text, truncation=True)["input_ids"]) == 5
    assert len(tokenizer("a", padding="max_length")["input_ids"]) == 5
    # Without a limit, truncation does nothing.
    assert PLAIN(text, truncation=True, verbose=False) == PLAIN(text)
    assert len(PLAIN(text, max_length=4)["input_ids"]) == 4


def test_special_tokens_mask_of_built_rows_includes_padding_and_mask() -> None:
    row = [0, 5, 1, 1, 4001, 3, 2]
    assert PLAIN.get_special_tokens_mask(row, already_has_special_tokens=True) == [1, 0, 1, 1, 1, 0, 1]
    with pytest.raises(ValueError, match="token_ids_1"):
        PLAIN.get_special_tokens_mask(row, row, already_has_special_tokens=True)


def test_split_special_tokens_reads_them_as_text() -> None:
    assert PLAIN.tokenize("[MASK]", split_special_tokens=True) == ["▁[", "M", "AS", "K", "]"]
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY, split_special_tokens=True)
    assert tokenizer.tokenize("[MASK]") == ["▁[", "M", "AS", "K", "]"]
    assert tokenizer.tokenize("[MASK]", split_special_tokens=False) == ["[MASK]"]
    assert (
        4001 not in tokenizer("[MASK]")["input_ids"]
        and 4001 in tokenizer("[MASK]", split_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda t: t(5), TypeError, "text: expected str or a list of str, got int"),
        (lambda t: t(None), TypeError, "text: expected str or a list of str, got NoneType"),
        (lambda t: t(b"a"), TypeError, "text: expected str or a list of str, got bytes"),
        (lambda t: t(["a", 3]), TypeError, r"^text\[1\]: expected str, got int$"),
        (lambda t: t(["a", None]), TypeError, r"^text\[1\]: expected str, got NoneType$"),
        (lambda t: t(["a", "b"], ["c", b"d"]), TypeError, r"^text_pair\[1\]: expected str, got bytes$"),
        (lambda t: t([("a", "b"), ("c", None)]), TypeError, r"^text\[1\]\[1\]: expected str, got NoneType$"),
        (lambda t: t([]), ValueError, "text: expected at least one text"),
        (lambda t: t(["a"], ["b", "c"]), ValueError, "text_pair: expected as many texts as text has, 1, got 2"),
        (lambda t: t(["a"], "b"), ValueError, "text_pair: expected a batch"),
        (lambda t: t("a", is_split_into_words=True), TypeError, "text: expected a list of words"),
        (lambda t: t(["a", ["b"]], is_split_into_words=True), TypeError, r"^text\[1\]: expected str, got list$"),
        (lambda t: t([["a"], "b"], is_split_into_words=True), TypeError, r"^text\[1\]: expected a list of words"),
        (lambda t: t([["a"], ["b", 3]], is_split_into_words=True), TypeError, r"^text\[1\]\[1\]: expected str"),
        (lambda t: t([("a", "b", "c")]), ValueError, r"^text\[0\]: expected a pair of texts, got 3"),
        (lambda t: t([("a", "b"), ("c",)]), ValueError, r"^text\[1\]: expected a pair of texts, got 1"),
        (lambda t: t("a\ud800b"), ValueError, r"^text: .* lone surrogate U\+D800 at position 1$"),
        (lambda t: t("[MASK] a\udfffb"), ValueError, r"^text: .* lone surrogate U\+DFFF at position 8$"),
        (lambda t: t(["a", "\ud800"]), ValueError, r"^text\[1\]: .* lone surrogate U\+D800 at position 0$"),
        (lambda t: t(["a"], ["\ud800"]), ValueError, r"^text_pair\[0\]: .* lone surrogate U\+D800 at position 0$"),
        (lambda t: t([("a", "\ud800")]), ValueError, r"^text\[0\]\[1\]: .* lone surrogate U\+D800 at position 0$"),
        (lambda t: t([["a", "\ud800"]], is_split_into_words=True), ValueError, r"^text\[0\]\[1\]: .* lone surrogate"),
        (lambda t: t.tokenize("a", pair="\ud800"), ValueError, "^pair: .* lone surrogate"),
        (lambda t: t("a", colour="red"), TypeError, "colour"),
        (lambda t: t.tokenize("a", colour="red"), TypeError, "colour"),
        (lambda t: t.encode("a", colour="red"), TypeError, "colour"),
        (lambda t: t.pad({"input_ids": [1]}, colour="red"), TypeError, "colour"),
        (lambda t: t(["a", "The ships"], return_tensors="np"), ValueError, "padding=True"),
        (
            lambda t: t("a", return_tensors="tf"),
            ValueError,
            "return_tensors: expected one of None, 'np', 'pt', got 'tf'",
        ),
        (lambda t: t("a", padding="longer"), ValueError, "padding: expected one of False, True, 'do_not_pad', 'lon"),
        (lambda t: t("a", truncation="both"), ValueError, "truncation: expected one of"),
        (lambda t: t("a", padding="max_length"), ValueError, "padding='max_length': max_length is not given"),
        (lambda t: t("a", max_length=-1), ValueError, "max_length: expected 0 or more, got -1"),
        (lambda t: t("a", max_length=2.5), TypeError, "max_length: expected an integer, got 2.5"),
        (lambda t: t("a", max_length=True), TypeError, "max_length: expected an integer, got True"),
        (lambda t: t("a", stride=-1), ValueError, "stride: expected 0 or more"),
        (lambda t: t("a", pad_to_multiple_of=0), ValueError, "pad_to_multiple_of: expected 1 or more"),
        (lambda t: t("a", padding=True, truncation=True, max_length=5, pad_to_multiple_of=4), ValueError, "multiple"),
        (lambda t: t("a b c", max_length=1, truncation=True), ValueError, "max_length: expected at least 2"),
        (lambda t: t("a b", "c d", max_length=5, truncation="only_first"), ValueError, "cannot be reached"),
        (lambda t: t(["a", "a b"], ["c", "c d"], max_length=5, truncation="only_first"), ValueError, "of sample 1 has"),
        (lambda t: t("a b c", max_length=4, truncation="only_second"), ValueError, "no second text"),
        (
            lambda t: t("a b", "c", max_length=6, truncation=True, return_overflowing_tokens=True),
            ValueError,
            "only_first",
        ),
        (
            lambda t: t("a b c d", max_length=4, truncation=True, stride=2, return_overflowing_tokens=True),
            ValueError,
            "stride: expected less than 2",
        ),
        (
            lambda t: t("a", padding="max_length", max_length=10**30),
            ValueError,
            "max_length: expected at most 16,777,216, got 1000",
        ),
        (
            lambda t: t.pad(t("a"), padding="max_length", max_length=2**24 + 1),
            ValueError,
            "max_length: expected at most 16,777,216, got 16777217",
        ),
        (
            lambda t: t("a", padding=True, pad_to_multiple_of=10**30),
            ValueError,
            "pad_to_multiple_of: expected at most 16,777,216, got 1000",
        ),
        (lambda t: t("a", padding=True, pad_to_multiple_of=-8), ValueError, "pad_to_multiple_of: expected 1 or more"),
        (lambda t: t("a", stride=math.nan), TypeError, "stride: expected an integer, got nan"),
        (lambda t: t.decode("a"), TypeError, "ids: expected integers"),
        (lambda t: t.convert_ids_to_tokens(["a"]), TypeError, "ids: expected integers"),
        (lambda t: t.add_tokens([3]), TypeError, "new_tokens: expected str or AddedToken, got 3"),
        (lambda t: t.add_special_tokens({"colour": "red"}), ValueError, "colour"),
        (lambda t: t.add_special_tokens({"additional_special_tokens": "red"}), TypeError, "expected a list"),
    ],
)
def test_call_errors_name_the_argument_and_its_value(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(PLAIN)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"lone_marker": "both"}, ValueError, "lone_marker: expected one of 'huggingface', 'paddle', got 'both'"),
        ({"do_lower_case": "yes"}, TypeError, "do_lower_case: expected a bool, got 'yes'"),
        ({"padding_side": "top"}, ValueError, "padding_side: expected one of 'right', 'left', got 'top'"),
        ({"colour": "red"}, TypeError, "unknown argument 'colour'"),
        ({"pad_token": None}, TypeError, "pad_token: expected str or AddedToken, got None"),
        ({"pad_token": 3}, TypeError, "pad_token: expected str or AddedToken, got 3"),
        ({"model_max_length": "long"}, TypeError, "model_max_length: expected an integer, got 'long'"),
        ({"model_max_length": math.inf}, TypeError, "model_max_length: expected an integer, got inf"),
        ({"model_max_length": math.nan}, TypeError, "model_max_length: expected an integer, got nan"),
        ({"model_max_length": 512.5}, TypeError, "model_max_length: expected an integer, got 512.5"),
        ({"model_max_length": True}, TypeError, "model_max_length: expected an integer, got True"),
        ({"model_max_length": -1e30}, ValueError, "model_max_length: expected 1 or more, got -1"),
        ({"sp_model_kwargs": {"reverse": True}}, TypeError, "sp_model_kwargs: expected .*, got 'reverse'"),
        ({"sp_model_kwargs": {"enable_sampling": True, "nbest_size": 1}}, ValueError, "nbest_size: expected .*, got 1"),
    ],
)
def test_constructor_errors_name_the_argument_and_its_value(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        ErnieMTokenizer(MODEL, VOCABULARY, **options)


@pytest.mark.parametrize("length", [math.nan, math.inf, -5, "512", 0, 2.5])
def test_a_model_max_length_set_later_is_checked_by_the_call(length: Any) -> None:
    tokenizer = copy.copy(PLAIN)
    tokenizer.model_max_length = length
    with pytest.raises((TypeError, ValueError), match=f"model_max_length: expected .*, got {length!r}"):
        tokenizer("a", truncation=True)
    tokenizer.model_max_length = 2**24 + 1
    assert tokenizer("a", truncation=True)["input_ids"] == PLAIN("a")["input_ids"]
    with pytest.raises(ValueError, match="model_max_length: expected at most 16,777,216, got 16777217"):
        tokenizer("a", padding="max_length")


def test_huge_lengths_without_padding_mean_no_limit() -> None:
    assert Options(padding="max_length", max_length=LONGEST_PADDED).limit == LONGEST_PADDED == 2**24
    assert PLAIN("a b", truncation=True, max_length=10**30) == PLAIN("a b")
    assert ErnieMTokenizer(MODEL, VOCABULARY, model_max_length=10**40)("a b") == PLAIN("a b")


@given(count=st.integers(1, 7), text=texts(3))
def test_texts_between_special_tokens_are_encoded_one_by_one(count: int, text: str) -> None:
    whole = PLAIN("[SEP]".join([text] * count), add_special_tokens=False, return_offsets_mapping=True)
    one = PLAIN(text, add_special_tokens=False, return_offsets_mapping=True)
    step = len(text) + len("[SEP]")
    ids, spans = [*one["input_ids"]], [*one["offset_mapping"]]
    for i in range(1, count):
        ids += [PLAIN.sep_token_id, *one["input_ids"]]
        spans += [
            (i * step - 5, i * step),
            *((start + i * step, end + i * step) for start, end in one["offset_mapping"]),
        ]
    assert (whole["input_ids"], whole["offset_mapping"]) == (ids, spans)

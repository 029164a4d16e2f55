"""Characters, words and tokens of a row: by definition from the offsets, and as transformers' fast tokenizers count.

Seen red: the last token of a character returned instead of the first; padding on the left not counted; the second
text's characters looked up in the first; a span at special tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY, texts

from ernie_m.reference import demo
from ernie_m.tokenizer import BatchEncoding, ErnieMTokenizer

TOKENIZER = ErnieMTokenizer(MODEL, VOCABULARY)
BATCHES = st.lists(st.tuples(texts(4), texts(4)), min_size=1, max_size=3)


def encoded(batch: list[tuple[str, str]], pairs: bool, side: str, **options: Any) -> tuple[BatchEncoding, list[Any]]:
    first, second = [list(column) for column in zip(*batch, strict=True)]
    options |= {"padding": True, "padding_side": side, "return_offsets_mapping": True}
    found = TOKENIZER(first, second if pairs else None, **options)
    return found, [first, second] if pairs else [first]


def test_the_example_of_the_module() -> None:
    row = ErnieMTokenizer.from_pretrained(demo.directory())("The cat", return_offsets_mapping=True)
    assert row.tokens() == ["[CLS]", "▁The", "▁c", "at", "[SEP]"]
    assert [row.token_to_chars(i) for i in range(5)] == [None, (0, 3), (4, 5), (5, 7), None]
    assert [row.token_to_word(i) for i in range(5)] == [None, 0, 1, 1, None]
    assert (row.char_to_token(5), row.char_to_token(3), row.char_to_token(99)) == (3, None, None)
    assert row.word_to_tokens(1) == (2, 4) and row.word_to_chars(1) == (4, 7) and row.char_to_word(6) == 1
    assert row.word_to_tokens(2) is None and row.word_to_chars(2) is None and row.char_to_word(3) is None


@given(batch=BATCHES, pairs=st.booleans(), side=st.sampled_from(["right", "left"]))
def test_tokens_and_characters_agree(batch: list[tuple[str, str]], pairs: bool, side: str) -> None:
    """For any Unicode text: `char_to_token` is the first token whose span has the character, and no other."""
    found, columns = encoded(batch, pairs, side)
    for i in range(len(batch)):
        tokens, sequences = found.tokens(i), found.sequence_ids(i)
        assert tokens == TOKENIZER.convert_ids_to_tokens(found["input_ids"][i])
        for k, span in enumerate(found["offset_mapping"][i]):
            assert found.token_to_sequence(i, k) == sequences[k]
            assert found.token_to_chars(i, k) == (None if sequences[k] is None else span)
            assert found.token_to_chars(i, k - len(tokens)) == found.token_to_chars(i, k)
        for sequence, texts_ in enumerate(columns):
            for c in range(len(texts_[i]) + 2):
                own = [k for k, number in enumerate(sequences) if number == sequence]
                having = [k for k in own if found["offset_mapping"][i][k][0] <= c < found["offset_mapping"][i][k][1]]
                assert found.char_to_token(i, c, sequence) == (having[0] if having else None)


@given(batch=BATCHES, pairs=st.booleans(), side=st.sampled_from(["right", "left"]))
def test_words_and_tokens_agree(batch: list[tuple[str, str]], pairs: bool, side: str) -> None:
    found, columns = encoded(batch, pairs, side)
    for i in range(len(batch)):
        ids, sequences = found.word_ids(i), found.sequence_ids(i)
        assert [found.token_to_word(i, k) for k in range(len(ids))] == ids
        for sequence, texts_ in enumerate(columns):
            for word in range(len(texts_[i].split()) + 1):
                own = [k for k in range(len(ids)) if (sequences[k], ids[k]) == (sequence, word)]
                span = found.word_to_tokens(i, word, sequence)
                assert span == ((own[0], own[-1] + 1) if own else None)
                characters = found.word_to_chars(i, word, sequence)
                assert (characters is None) == (not own)
            for c in range(len(texts_[i])):
                token = found.char_to_token(i, c, sequence)
                assert found.char_to_word(i, c, sequence) == (None if token is None else ids[token])


@given(text=texts(), max_length=st.integers(3, 9), stride=st.integers(0, 0))
def test_windows_of_a_long_text_are_rows_of_their_own(text: str, max_length: int, stride: int) -> None:
    """Each character that has a token has one in some window, with the same span."""
    whole = TOKENIZER(text, return_offsets_mapping=True)
    options: dict[str, Any] = {"truncation": True, "max_length": max_length, "stride": stride}
    found = TOKENIZER([text], return_offsets_mapping=True, return_overflowing_tokens=True, **options)
    for c in range(len(text)):
        token = whole.char_to_token(c)
        windows = [(i, k) for i in range(len(found["input_ids"])) if (k := found.char_to_token(i, c)) is not None]
        assert (token is None) == (not windows)
        if token is not None:
            assert whole.token_to_chars(token) in [found.token_to_chars(i, k) for i, k in windows]


@settings(max_examples=50)
@given(words=st.lists(texts(2), min_size=1, max_size=5))
def test_words_given_as_words(words: list[str]) -> None:
    found = TOKENIZER(words, is_split_into_words=True, return_offsets_mapping=True)
    for i, word in enumerate(words):
        span = found.word_to_tokens(i)
        assert (span is None) == (not TOKENIZER.tokenize(word))
        for k in range(*span) if span else ():
            assert found.token_to_word(k) == i and found.token_to_chars(k) == found["offset_mapping"][k]
    with pytest.raises(ValueError, match="char_index: expected a call with running text"):
        found.char_to_token(0)


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (
            lambda b: b.char_to_token(0),
            ValueError,
            r"char_index: expected \(batch_index, char_index\) for a batch of 2",
        ),
        (lambda b: b.token_to_chars(1), ValueError, r"expected \(batch_index, token_index\) for a batch of 2, got 1"),
        (lambda b: b.char_to_token(0, -1), ValueError, "char_index: expected 0 or more, got -1"),
        (lambda b: b.word_to_tokens(0, -1), ValueError, "word_index: expected 0 or more, got -1"),
        (lambda b: b.char_to_token(0, 0, 1), ValueError, "sequence_index: expected less than 1, .*, got 1"),
        (lambda b: b.char_to_token(2, 0), IndexError, "batch_index: expected less than 2, got 2"),
        (lambda b: b.token_to_chars(0, 9), IndexError, "token_index: expected less than 4, .*, got 9"),
        (lambda b: b.tokens(5), IndexError, "batch_index: expected less than 2, got 5"),
    ],
)
def test_indices_out_of_range_are_named(ask: Any, error: type[Exception], says: str) -> None:
    batch = TOKENIZER(["The ships", "a"], padding=True, return_offsets_mapping=True)
    with pytest.raises(error, match=says):
        ask(batch)


def test_spans_need_a_call_with_offsets() -> None:
    row = TOKENIZER("The ships")
    assert row.token_to_sequence(1) == 0 and row.tokens() == ["[CLS]", "▁The", "▁ships", "[SEP]"]
    for ask in (row.token_to_chars, row.char_to_token):
        with pytest.raises(ValueError, match="expected a call with return_offsets_mapping=True"):
            ask(1)


WORDS = st.lists(st.sampled_from(["a", "bc", "d-e", "", " ", "ß", "中文", "x\u0301"]), max_size=6).map(" ".join)


@settings(max_examples=60)
@given(
    batch=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3),
    pairs=st.booleans(),
    side=st.sampled_from(["right", "left"]),
)
def test_the_same_rows_answer_as_in_transformers(batch: list[tuple[str, str]], pairs: bool, side: str) -> None:
    """The spans of one of its fast tokenizers, in our `BatchEncoding`, with padding: the same answers."""
    reason = "transformers 4.40.2 is not installed (it has no release for Python 3.13)"
    transformers = pytest.importorskip("transformers", reason=reason)
    tokenizers = pytest.importorskip("tokenizers", reason=reason)
    from ernie_m.tokenizer.layout import Row
    from ernie_m.tokenizer.text_encoder import Encoded

    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", padding_side=side)
    first, second = [list(column) for column in zip(*batch, strict=True)]
    theirs = fast(first, second if pairs else None, padding=True, return_offsets_mapping=True)
    rows = []
    for i, (one, two) in enumerate(batch):
        parts = []
        for number, text in enumerate([one, two][: 1 + pairs]):
            kept = [k for k, sequence in enumerate(theirs.sequence_ids(i)) if sequence == number]
            parts.append(Encoded([0] * len(kept), [theirs["offset_mapping"][i][k] for k in kept], text=text))
        rows.append(Row(parts[0], parts[1] if pairs else None, special=False))
    ours = BatchEncoding({"input_ids": theirs["input_ids"]}, rows, side)
    for i, pair in enumerate(batch):
        assert ours.sequence_ids(i) == theirs.sequence_ids(i)
        for k in range(len(theirs["input_ids"][i])):
            assert ours.token_to_chars(i, k) == theirs.token_to_chars(i, k)
            if ours.token_to_chars(i, k) is not None:
                assert ours.token_to_sequence(i, k) == theirs.token_to_sequence(i, k)
        for sequence, text in enumerate(pair[: 1 + pairs]):
            for c in range(len(text) + 2):
                assert ours.char_to_token(i, c, sequence) == theirs.char_to_token(i, c, sequence)

"""vocab.txt: line ends, duplicates, and files that are not vocabularies.

Seen red: `read_text` with universal newlines; "\\r\\n" removed wherever it occurs; the first of two lines winning;
duplicates counted from 0; `strict` ignored.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY

from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.vocabulary import Vocabulary, split_lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("a\r\nb\n", ["a\r", "b"]),
        ("a\n\r\nb\n", ["a", "\r", "b"]),
        ("a\rb\n", ["a\rb"]),
        ("a \n\u2028\n\x85\n\x0b\n", ["a ", "\u2028", "\x85", "\x0b"]),
        ("a\n\nb\n\n", ["a", "", "b", ""]),
    ],
)
def test_split_lines_ends_a_line_at_newlines_only(text: str, lines: list[str]) -> None:
    assert split_lines(text) == lines


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"))))
def test_text_and_split_lines_are_inverse(tokens: list[str]) -> None:
    text = Vocabulary(tokens).text()
    assert split_lines(text) == tokens
    assert split_lines(text.replace("\n", "\r\n")) == tokens


def test_read_removes_a_byte_order_mark_from_the_first_token(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"\xef\xbb\xbf[CLS]\n\xef\xbb\xbf\n")
    assert Vocabulary.read(path).tokens == ["[CLS]", "\ufeff"]


def test_a_carriage_return_token_does_not_shift_ids(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    tokens = VOCABULARY.read_text(encoding="utf-8").splitlines()
    path.write_bytes("\n".join([*tokens[:10], "\r", *tokens[10:], ""]).encode())
    tokenizer = ErnieMTokenizer(MODEL, path)
    assert tokenizer.mask_token_id == 4002 and tokenizer.convert_ids_to_tokens(10) == "\r"


def test_duplicates_encode_to_the_last_and_decode_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vocab.txt"
    lines = VOCABULARY.read_text(encoding="utf-8").split("\n")[:-1]
    lines[6], lines[7] = "▁a", "▁a"
    path.write_text("\n".join([*lines, "[UNK]"]) + "\n", encoding="utf-8")
    tokenizer = ErnieMTokenizer(MODEL, path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said
    assert (
        "'▁a' on lines 7, 8 and 40" in said and "'[UNK]' on lines 4 and 4003" in said and "2 duplicate tokens" in said
    )
    assert tokenizer("a")["input_ids"] == [0, 39, 2]
    assert tokenizer.unk_token_id == 4002
    assert tokenizer.convert_ids_to_tokens([3, 6, 7, 39, 4002]) == ["[UNK]", "▁a", "▁a", "▁a", "[UNK]"]
    assert tokenizer.vocab_size == 4003 and tokenizer.add_tokens(["zyzzyva"]) == 1
    assert tokenizer.convert_tokens_to_ids("zyzzyva") == 4003
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match=r"2 duplicate tokens: .*'▁a' on lines 7, 8 and 40"):
        ErnieMTokenizer(MODEL, path, strict_vocab=True)


def test_a_clean_vocabulary_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    ErnieMTokenizer(MODEL, VOCABULARY, strict_vocab=True)
    assert capsys.readouterr() == ("", "")


def test_a_long_list_of_duplicates_is_shortened() -> None:
    said = Vocabulary([str(i % 1000) for i in range(2000)]).duplicates()
    assert said.startswith("1000 duplicate tokens: '0' on lines 1 and 1001; ") and said.endswith("; and 995 more")


def test_read_names_the_file_that_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    with pytest.raises(
        FileNotFoundError, match=r"vocab_file: .*vocab\.txt does not exist; .* vocab_file='sentencepiece'"
    ):
        ErnieMTokenizer(MODEL, path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"vocab_file: .*vocab\.txt is empty"):
        Vocabulary.read(path)
    path.write_bytes(b"a\nb\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"vocab_file: .*vocab\.txt is not UTF-8: .* on line 3"):
        Vocabulary.read(path)
    with pytest.raises(OSError, match=str(tmp_path)):
        Vocabulary.read(tmp_path)


@given(data=st.binary(max_size=200))
def test_read_of_any_bytes_loads_or_names_the_file(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "anything.txt"
    path.write_bytes(data)
    try:
        tokenizer = ErnieMTokenizer(MODEL, path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    found = tokenizer("The old ships [MASK] arrive.", return_offsets_mapping=True)
    assert max(found["input_ids"]) < len(tokenizer)


def test_text_rejects_a_token_with_a_line_end() -> None:
    with pytest.raises(ValueError, match=r"token 1, 'b\\nc', contains a line end"):
        Vocabulary(["a", "b\nc"]).text()

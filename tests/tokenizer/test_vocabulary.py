"""vocab.txt: line ends, duplicates, and files that are not vocabularies, or not this model's.

Seen red: `read_text` with universal newlines; "\\r\\n" removed wherever it occurs; the first of two lines winning;
duplicates counted from 0; `strict` ignored; a special token added in silence; any of the three checks left out.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_texts import MODEL, OTHER_MODELS, VOCABULARY, corpus, trained, write_files

from ernie_m.reference import demo
from ernie_m.tokenizer import AddedToken, ErnieMTokenizer
from ernie_m.tokenizer.piece_model import MARKER
from ernie_m.tokenizer.vocabulary import FEWEST_PIECES, Vocabulary, split_lines

LINES = VOCABULARY.read_text(encoding="utf-8").split("\n")[:-1]
SPECIAL = {
    "[CLS]": "cls_token",
    "[PAD]": "pad_token",
    "[SEP]": "sep_token",
    "[UNK]": "unk_token",
    "[MASK]": "mask_token",
}


def write(folder: Path, lines: list[str]) -> Path:
    path = folder / "vocab.txt"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


@given(gone=st.sets(st.sampled_from(sorted(SPECIAL)), min_size=1))
def test_a_special_token_that_is_missing_is_named(gone: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.mktemp("v"), [line for line in LINES if line not in gone])
    with pytest.raises(ValueError, match="vocab_file") as caught:
        ErnieMTokenizer(MODEL, path)
    said = str(caught.value)
    assert str(path) in said
    assert {token for token, role in SPECIAL.items() if f"no line {token} ({role})" in said} == gone
    # Their own names, or ids of their own, are the user's choice.
    named = {SPECIAL[token]: f"<{i}>" for i, token in enumerate(sorted(gone))}
    assert ErnieMTokenizer(MODEL, path, **named).vocab_size == len(LINES) - len(gone)
    decoder = {5000 + i: AddedToken(token, special=True) for i, token in enumerate(sorted(gone))}
    assert ErnieMTokenizer(MODEL, path, added_tokens_decoder=decoder).convert_tokens_to_ids(min(gone)) == 5000


def test_a_truncated_vocabulary_lacks_the_last_special_token(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no line \[MASK\] \(mask_token\); a token with another name"):
        ErnieMTokenizer(MODEL, write(tmp_path, LINES[: len(LINES) // 2]))


@pytest.mark.parametrize("number", ["\t0", "\t-10.5312", " 12", "\t1e-05", "\t4001"])
@pytest.mark.parametrize("all_of_them", [True, False])
def test_numbers_next_to_the_tokens_are_refused(number: str, all_of_them: bool, tmp_path: Path) -> None:
    """As in sentencepiece's `.vocab` files; with or without the special tokens on lines of their own."""
    path = write(tmp_path, [f"{line}{number}" if all_of_them or line not in SPECIAL else line for line in LINES])
    with pytest.raises(
        ValueError, match=r"vocab_file: .*vocab\.txt: most lines are a token and a number, such as '"
    ) as e:
        ErnieMTokenizer(MODEL, path)
    assert repr(f"{(LINES if all_of_them else LINES[4:])[0]}{number}") in str(e.value)


def test_digits_alone_are_tokens(tmp_path: Path) -> None:
    assert Vocabulary.read(write(tmp_path, ["1", "22", "-3", "4.5"])).ids["22"] == 1


HAN = [line for line in LINES if len(line) == 1 and "\u4e00" <= line <= "\u9fff"]
OTHERS = {
    "only special tokens": [*SPECIAL],
    "hardly any pieces": [*SPECIAL, *LINES[4:100]],
    "WordPiece": [*SPECIAL, *HAN, *LINES[200:400], *(f"##{line.strip(MARKER)}" for line in LINES[4:])],
    "another language's words": [*SPECIAL, *(f"▁{line}▁" for line in LINES[4:-1])],
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_vocabulary_of_another_model_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, list(dict.fromkeys(OTHERS[name])))
    with pytest.raises(
        ValueError, match=r"vocab_file: .*vocab\.txt does not belong to the sentencepiece model: (of )?\d+ of "
    ):
        ErnieMTokenizer(MODEL, path)


@given(share=st.floats(0, 0.1) | st.floats(0, 1), seed=st.integers(0, 9))
def test_a_vocabulary_may_lack_pieces_but_not_nearly_all(
    share: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = random.Random(seed).sample(LINES[4:-1], round(share * (len(LINES) - 5)))
    path = write(tmp_path_factory.mktemp("v"), [*LINES[:4], *kept, "[MASK]"])
    enough = len(kept) >= FEWEST_PIECES * (len(LINES) - 5)
    try:
        tokenizer = ErnieMTokenizer(MODEL, path)
    except ValueError as error:
        assert not enough and str(path) in str(error)
    else:
        assert enough and tokenizer.vocab_size == len(kept) + 5


def test_a_vocabulary_cut_down_to_one_language_loads(tmp_path: Path, repository: Path) -> None:
    """Each of the demo's eight languages; that of Chinese has few pieces with a word marker."""
    own = ErnieMTokenizer.from_pretrained(demo.directory())
    sizes = []
    for language in demo.languages():
        path = repository / "tests" / "fixtures" / "sentences" / f"{language}.txt"
        used = {token for line in path.read_text("utf-8").splitlines() for token in own.tokenize(line)}
        lines = [token for token in own.vocabulary.tokens if token in used or token in SPECIAL]
        sizes.append(ErnieMTokenizer(demo.directory() / "sentencepiece.bpe.model", write(tmp_path, lines)).vocab_size)
    assert len(sizes) == 8 and min(sizes) < 300


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_models_of_other_kinds_load_with_their_own_vocabulary(name: str, tmp_path: Path) -> None:
    """Some have no word markers at the beginning, or none at all."""
    tokenizer = ErnieMTokenizer(*write_files(tmp_path, trained(**OTHER_MODELS[name])))
    assert tokenizer(corpus()[0])["input_ids"]
    with pytest.raises(ValueError, match="does not belong to the sentencepiece model"):
        ErnieMTokenizer(tmp_path / "sentencepiece.bpe.model", write(tmp_path, [*SPECIAL]))


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
    with pytest.raises(ValueError, match=f"vocab_file: {tmp_path}: expected a regular file, got a directory"):
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

"""Texts from arguments, files and standard input: line ends, invalid UTF-8, and how much is held in memory."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.cli import input as cli_input
from ernie_m.reference.cli.input import Text, texts, windows

any_line = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\ufeff"), max_size=12)


def from_file(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return [item.text for item in texts(Namespace(texts=[], file=str(path)))]


@given(st.lists(any_line, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_texts_are_the_lines_of_a_file(tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str) -> None:
    path = tmp_path_factory.mktemp("lines") / "texts.txt"
    content = "".join(line + end for line in lines).encode("utf-8")
    assert from_file(path, content) == lines
    # A byte order mark is not part of the text.
    assert from_file(path, b"\xef\xbb\xbf" + content + b"last") == [*lines, "last"]
    assert from_file(path, content + b"last") == [*lines, "last"]


def test_texts_end_at_line_feeds_only(tmp_path: Path) -> None:
    found = from_file(tmp_path / "texts.txt", "a\rb\u2028c\u0085d\x0be\x1cf\r\r\n\n\ng".encode())
    assert found == ["a\rb\u2028c\u0085d\x0be\x1cf\r", "", "", "g"]


def test_texts_reads_standard_input_and_names_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (None, "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("één\nzwei".encode()), encoding="ascii"))
        found = list(texts(Namespace(texts=[], file=name)))
        assert found == [Text("één", "line 1 of stdin"), Text("zwei", "line 2 of stdin")]


def test_texts_names_the_line_and_the_byte_that_are_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^line 3 of texts.txt: expected UTF-8, got byte 0xff at byte 3 .* byte 7 of"):
        from_file(tmp_path / "texts.txt", b"a\n\r\n\xc3\xa9b\xff\n")
    # After a byte order mark, positions still count from the start of the file.
    with pytest.raises(ValueError, match=r"^line 1 .*0xe9 at byte 4 of the line, byte 4 of the file"):
        from_file(tmp_path / "texts.txt", b"\xef\xbb\xbfa\xe9\n")


def test_texts_rejects_two_sources_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TEXT, --file: expected only one"):
        texts(Namespace(texts=["a"], file="b"))
    # Immediately, not when the first text is requested.
    with pytest.raises(FileNotFoundError):
        texts(Namespace(texts=[], file=str(tmp_path / "none")))


def test_texts_rejects_an_argument_with_a_lone_surrogate() -> None:
    with pytest.raises(ValueError, match=r"TEXT 2: expected UTF-8, got '\\udcff' at character 1"):
        list(texts(Namespace(texts=["fine", "a\udcffb"], file=None)))


def test_texts_rejects_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_input, "LONGEST_LINE", 8)
    assert from_file(tmp_path / "texts.txt", b"1234567\n12345678") == ["1234567", "12345678"]
    with pytest.raises(ValueError, match=r"line 2 of texts.txt: expected at most 8 bytes"):
        from_file(tmp_path / "texts.txt", b"1\n123456789\n")


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 9))
def test_windows_keep_order_and_stay_small(lengths: list[int], lines: int) -> None:
    given_texts = [Text("x" * n, str(i)) for i, n in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_input, "WINDOW_CHARACTERS", 50)
        found = list(windows(given_texts, lines))
    assert [item for window in found for item in window] == given_texts
    for window in found:
        assert 1 <= len(window) <= lines
        assert sum(len(item.text) for item in window[:-1]) < 50


def test_windows_reads_no_further_than_needed() -> None:
    def endless() -> Iterator[Text]:
        while True:
            yield Text("", "")

    found = windows(endless(), 3)
    assert len(next(found)) == 3

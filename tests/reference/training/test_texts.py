"""Files of training texts: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.training.texts import read_segments

# Without what ends a line or a cell, and stripped, as readers do.
TEXT = st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=("Cs",)), max_size=12).map(str.strip)
LANGUAGES = st.sampled_from(["en", "de", "zh-CN", "sr_Latn", "ru"])
SEGMENTS = st.lists(st.dictionaries(LANGUAGES, TEXT, max_size=4), max_size=6)


def present(segments: list[dict[str, str]]) -> list[dict[str, str]]:
    """What a reader should return: texts that are there, and segments with any."""
    kept = [{name: text for name, text in segment.items() if text} for segment in segments]
    return [segment for segment in kept if segment]


@given(SEGMENTS, st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_json_lines_come_back(
    tmp_path_factory: pytest.TempPathFactory, segments: list[Any], ascii: bool, end: str
) -> None:
    """Names that begin with _ aside. Seen red: segments without texts kept; lines split where str.splitlines would."""
    path = tmp_path_factory.getbasetemp() / "texts.jsonl"
    lines = [json.dumps({"_key": 3, **segment}, ensure_ascii=ascii) for segment in segments]
    path.write_bytes("".join(line + end for line in lines).encode())
    assert list(read_segments(path)) == present(segments)


@given(SEGMENTS, st.booleans())
def test_tables_come_back(tmp_path_factory: pytest.TempPathFactory, segments: list[Any], bom: bool) -> None:
    """Empty cells are texts that are missing."""
    path = tmp_path_factory.getbasetemp() / "texts.tsv"
    names = sorted({name for segment in segments for name in segment} | {"en"})
    rows = [names, *([segment.get(name, "") for name in names] for segment in segments)]
    path.write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8-sig" if bom else "utf-8", newline="\n")
    assert list(read_segments(path)) == present(segments)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"x", "a.txt: expected a file whose name ends in .tsv or .jsonl"),
        ("a.tsv", b"en\tde\na\n", "a.tsv: line 2: expected 2 columns (en, de), got 1"),
        ("a.tsv", b"en\ten\na\tb\n", "a.tsv: line 1: expected the languages of the columns"),
        ("a.tsv", b"en\tEine Katze.\n", "a.tsv: line 1: expected the languages of the columns"),
        ("a.tsv", b"A cat.\tEine Katze.\n", "a.tsv: line 1: expected the languages of the columns"),
        ("a.jsonl", b'{"en": "x"}\n[1]\n', "a.jsonl: line 2: expected a JSON object, got list"),
        ("a.jsonl", b'{"en": 3}\n', "a.jsonl: line 1: en: expected a text, got 3"),
        ("a.jsonl", b'{"../x": "y"}\n', "a.jsonl: line 1: expected languages such as en or pt-BR as names"),
        ("a.jsonl", b'{"en": "x", "en": "y"}\n', "line 1: expected a JSON object: expected each name once, got 'en'"),
        ("a.jsonl", b'{}\n{"en": "\\ud83d"}\n', "a.jsonl: line 2: expected Unicode text, got lone surrogate U+D8"),
        ("a.jsonl", b'{"en": "x"\n', "a.jsonl: line 1: expected a JSON object"),
        ("a.jsonl", b'{"en": "\xff"}\n', "a.jsonl: expected UTF-8"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid x\nsize 3\n", "git-lfs pointer"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        list(read_segments(tmp_path / name))
    assert expected in str(error.value)

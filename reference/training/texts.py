"""Files of training texts: sentences, and sentences with their translations.

    .tsv     the first line names the languages, one a column; every further line is a segment, empty cells allowed
    .jsonl   every line is an object, {"en": "A cat.", "de": "Eine Katze."}; names that begin with "_" are not texts

A segment in one language is a sentence; in several, a sentence and its translations. Files are read line by line, so
they may be of any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path

from .tables import lines, located, parsed, place_of

Segment = dict[str, str]
SUFFIXES = (".tsv", ".jsonl")
LANGUAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}")


def read_segments(path: str | PathLike[str]) -> Iterator[Segment]:
    """The segments of a file, each a text by language; segments without any text are left out.

    Raises OSError, or ValueError that names the file, the line and what was expected.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{fspath(path)}: expected a file whose name ends in {' or '.join(SUFFIXES)}")
    numbered = lines(path)
    languages: Sequence[str] = ()
    if suffix == ".tsv":
        languages = next(numbered, (1, ""))[1].split("\t")
        if len(set(languages)) < len(languages) or not all(map(LANGUAGE.fullmatch, languages)):
            raise ValueError(
                f"{place_of(path, 1)}: expected the languages of the columns, such as en and de, got {languages}"
            )
    for number, line in numbered:
        with located(place_of(path, number)):
            segment = _row(line, languages) if languages else _object(line)
        if segment:
            yield segment


def _row(line: str, languages: Sequence[str]) -> Segment:
    cells = line.split("\t")
    if not line.strip():
        return {}
    if len(cells) != len(languages):
        raise ValueError(f"expected {len(languages)} columns ({', '.join(languages)}), got {len(cells)}")
    return {name: cell.strip() for name, cell in zip(languages, cells, strict=True) if cell.strip()}


def _object(line: str) -> Segment:
    if not line.strip():
        return {}
    found = parsed(line)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {type(found).__name__}")
    segment = {}
    for name, text in found.items():
        if name.startswith("_"):
            continue
        if not LANGUAGE.fullmatch(name):
            raise ValueError(f"expected languages such as en or pt-BR as names, got {name!r:.80}")
        if not isinstance(text, str):
            raise ValueError(f"{name}: expected a text, got {text!r:.80}")
        if text.strip():
            segment[name] = text.strip()
    return segment

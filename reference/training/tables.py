"""Files of records, one at a time, each with the place that an error about it names.

    .jsonl          an object on every line
    .csv, .tsv      a header, then a record for every row; a .csv may quote cells, a .tsv has no quotes
    .conll, .txt    a token on every line, its columns separated by tabs or spaces; sentences end with an empty line

Lines that are empty are left out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ernie_m.tokenizer.files import refuse_irregular, refuse_pointer, unique

Place = str
PathName = str | PathLike[str]
# Of a row: csv's own limit is 131,072 characters, which a user cannot change.
LONGEST_CELL = 2**31 - 1
# A line before each document of CoNLL 2003.
DOCUMENT = "-DOCSTART-"
# A line that begins with "# " and does not end with a tag is a comment.
TAG = re.compile(r"O|[BI]-.+")


@contextmanager
def located(place: Place) -> Iterator[None]:
    """Put the place in front of the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def objects(path: PathName) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The objects of a .jsonl file. Raises ValueError that names file and line."""
    for number, line in lines(path):
        if not line.strip():
            continue
        place = place_of(path, number)
        with located(place):
            found = parsed(line)
            if not isinstance(found, dict):
                raise ValueError(f"expected a JSON object, got {found!r:.80}")
        yield place, found


def rows(path: PathName, names: tuple[str, ...], needed: tuple[str, ...]) -> Iterator[tuple[Place, dict[str, str]]]:
    """The rows of a .csv or .tsv file by the names of its columns; empty cells are left out.

    names: the columns that there may be, besides those whose names begin with "_". needed: those that there must be.
    Raises ValueError that names file and line.
    """
    csv.field_size_limit(LONGEST_CELL)
    # Lines may end as on old Macintoshes too.
    texts = (line for _, line in lines(path, newline=""))
    if Path(path).suffix == ".csv":
        reader = csv.reader(texts, strict=True)
    else:
        reader = csv.reader(texts, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    header: list[str] = []
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # Where the row begins: an open quote takes in what follows.
            end = str(error) == "unexpected end of data"
            reason = "expected a second quote at the end of a cell" if end else str(error)
            raise ValueError(f"{place_of(path, first)}: {reason}") from None
        if cells is None:
            break
        place = place_of(path, max(1, reader.line_num))
        if not header:
            header = [cell.strip() for cell in cells]
            known = {*names, *(cell for cell in header if cell.startswith("_"))}
            if not set(needed) <= set(header) <= known or len(set(header)) < len(header):
                expected = f"{', '.join(needed)} and perhaps {', '.join(sorted(set(names) - set(needed)))}"
                raise ValueError(f"{place}: expected a header with {expected}, got {', '.join(header)!r:.80}")
        elif cells:
            if len(cells) != len(header):
                quoted = "; a .tsv has no quotes" if Path(path).suffix == ".tsv" and '"' in "".join(cells) else ""
                expected = f"expected {len(header)} cells ({', '.join(header)}), got {len(cells)}{quoted}"
                raise ValueError(f"{place}: {expected}")
            yield place, {name: cell for name, cell in zip(header, cells, strict=True) if cell}


def sentences(path: PathName) -> Iterator[tuple[Place, list[tuple[Place, str, str]]]]:
    """The sentences of a CoNLL file: for each token its place, itself, and its last column, the tag.

    Lines of comments ("# id ...", before a sentence) and of documents (-DOCSTART-) are left out.
    """
    found: list[tuple[Place, str, str]] = []
    for number, line in lines(path):
        place = place_of(path, number)
        columns = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or columns[0] == DOCUMENT:
            if found:
                yield found[0][0], found
            found = []
        elif not found and line.startswith("# ") and not TAG.fullmatch(columns[-1].strip()):
            continue
        elif len(columns) < 2 or not columns[0].strip():
            raise ValueError(f"{place}: expected a token, perhaps more columns, and a tag, got {line!r:.80}")
        else:
            found.append((place, columns[0].strip(), columns[-1].strip()))
    if found:
        yield found[0][0], found


def parsed(line: str) -> Any:
    """The value of a line of JSON. Raises ValueError if it is none, has a name twice, or half of a surrogate pair."""
    try:
        found = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object: {error}") from None
    refuse_surrogates(found)
    return found


def refuse_surrogates(found: Any) -> None:
    """Raise ValueError for JSON with half of a surrogate pair, which is no character: "\\ud83d" alone."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(f"expected Unicode text, got lone surrogate U+{half:04X}") from None


def lines(path: PathName, newline: str = "\n") -> Iterator[tuple[int, str]]:
    """The numbered lines of a UTF-8 file, without their ends; a .csv keeps them, as cells may contain some.

    newline: as of `open`.
    """
    refuse_irregular(path)
    refuse_pointer(path)
    keep = Path(path).suffix == ".csv"
    with open(path, encoding="utf-8-sig", newline=newline) as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line if keep else line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{fspath(path)}: expected UTF-8: {error}") from None


def place_of(path: PathName, number: int) -> Place:
    """What an error about a line begins with."""
    return f"{fspath(path)}: line {number}"

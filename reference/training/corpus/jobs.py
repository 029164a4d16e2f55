"""Labelled data for fine-tuning, from LibreOffice's help, under the corpus's split.

    module     which program's help a text is from; trained in English, tested in every language
    language   which language a text is in
    markup     what in a text is a menu entry, something to type, or a literal name; trained in English

A model that learns `module` or `markup` in English alone, and is right in the others, transfers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .align import Segment
from .recipe import HELP

# A module's texts in training, at least; and a language's texts in each split, at most.
ENOUGH = 300
MOST = {"train": 2000, "dev": 300, "test": 500}

Row = dict[str, Any]


def jobs(parts: dict[str, list[Segment]], languages: Sequence[str]) -> dict[str, list[Row]]:
    """Name of a file, without `.jsonl` -> its rows."""
    of_help = {name: [row for row in rows if module(row)] for name, rows in parts.items()}
    counts = Counter(module(row) for row in of_help["train"])
    labels = {label for label, count in counts.items() if count >= ENOUGH}
    found: dict[str, list[Row]] = {}
    for name, rows in of_help.items():
        tested = languages if name == "test" else ("en",)
        labelled = [row for row in rows if module(row) in labels]
        found[f"module.{name}"] = [
            {"text": text, "label": label, **({"language": language} if name == "test" else {})}
            for language in tested
            for label, text in ((module(row), row.texts[language].text) for row in labelled if language in row.texts)
        ]
        found[f"language.{name}"] = [
            {"text": row.texts[language].text, "label": language}
            for language in languages
            for row in _some([row for row in rows if language in row.texts], MOST[name])
        ]
        found[f"markup.{name}"] = [
            {"text": text, "language": language, "spans": [span._asdict() for span in spans]}
            for language in tested
            for text, spans in (row.texts[language] for row in rows if language in row.texts)
            if spans
        ]
    return found


def module(segment: Segment) -> str:
    """The module of the help (`swriter`, `scalc`, ...) that a segment is from; "" if it is from elsewhere."""
    source, _, page = segment.page.partition(":")
    return page.partition("/")[0] if source == HELP else ""


def _some(rows: list[Segment], most: int) -> list[Segment]:
    """At most so many rows, drawn by a hash of their keys, in their order."""
    drawn = sorted(rows, key=lambda row: hashlib.sha256(row.key.encode("utf-8")).digest())[:most]
    keys = {row.key for row in drawn}
    return [row for row in rows if row.key in keys]

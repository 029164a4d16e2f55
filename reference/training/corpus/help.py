"""LibreOffice's help: paragraphs that have the same file and id in every language, and what they mark.

A menu entry, something to type and a literal name are marked with a class of `<span>`. Some words depend on the
system or on the module ("switches"); the reader sees one of them, and so do we: the default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from . import archives
from .recipe import HELP
from .text import Text, clean

FILES = r"usr/share/libreoffice/help/[^/]+/text/(.*)\.html"
IDS = re.compile(r"(?:par_id|hd_id).*")
MARKS = {"menuitem": "menu", "input": "input", "literal": "literal"}
# Programs are the same in every language.
PROGRAM = ("bascode", "code")


def read(path: Path) -> dict[str, Text]:
    """The paragraphs of one language by key, `libreoffice:PAGE#ID`."""
    found: dict[str, Text] = {}
    for name, data in archives.members(path, FILES):
        page = re.fullmatch(FILES, name)
        assert page
        for identity, text in paragraphs(data):
            # A page may include a paragraph twice.
            found.setdefault(f"{HELP}:{page[1]}#{identity}", text)
    return found


def paragraphs(page: bytes) -> Iterator[tuple[str, Text]]:
    """(id, text) of every paragraph and heading of a page."""
    root = etree.fromstring(page, etree.HTMLParser(encoding="utf-8"))
    if root is None:
        return
    for element in root.iter("p", "h1", "h2", "h3", "h4", "h5", "h6"):
        identity = element.get("id", "")
        if not IDS.fullmatch(identity) or element.get("class") in PROGRAM or element.find(".//pre") is not None:
            continue
        text = clean(_chunks(element, None))
        if text.text:
            yield identity, text


def _chunks(element: etree._Element, label: str | None) -> Iterator[tuple[str, str | None]]:
    """The text of an element in order, each piece with the label that it is marked with."""
    yield element.text or "", label
    children = list(element)
    if element.get("class") == "switchinline":
        children = _default(children)
    for child in children:
        if child.tag == "br":
            yield " ", None
        elif isinstance(child.tag, str):
            yield from _chunks(child, MARKS.get(child.get("class", ""), label))
        yield child.tail or "", label


def _default(choices: list[etree._Element]) -> list[etree._Element]:
    """Of the words to choose from, the default; the first if none is."""
    marked = [choice for choice in choices if choice.get("id", "").startswith("default")]
    return (marked or choices)[:1]

"""Two small sources outside of software: the names of emoji (CLDR), and the Universal Declaration of Human Rights."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from lxml import etree

from . import archives
from .recipe import CLDR, LANGUAGES, UDHR
from .text import Text, plain

Texts = dict[str, dict[str, Text]]


def read_names(path: Path, languages: Sequence[str]) -> Texts:
    """Language -> key (`cldr:EMOJI#name`) -> the name of the emoji. Its keywords are not aligned, and left out."""
    pattern = rf"package/annotations/({'|'.join(languages)})/annotations\.json"
    found: Texts = {}
    for file, data in archives.members(path, pattern):
        match = re.fullmatch(pattern, file)
        assert match
        names = json.loads(data)["annotations"]["annotations"]
        found[match[1]] = {
            f"{CLDR}:{emoji}#name": plain(each["tts"][0]) for emoji, each in names.items() if "tts" in each
        }
    return found


def read_declaration(path: Path, languages: Sequence[str]) -> Texts:
    """Language -> key (`udhr:ARTICLE#NUMBER`) -> paragraph.

    Versions differ in how they cut some articles into paragraphs: where an article's elements are not the same as in
    English, that article is left out.
    """
    codes = {LANGUAGES[name].udhr: name for name in languages}
    pattern = rf"package/declaration/({'|'.join(codes)})\.html"
    sections: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for file, data in archives.members(path, pattern):
        match = re.fullmatch(pattern, file)
        assert match
        sections[codes[match[1]]] = _sections(data)
    english = sections.get("en", {})
    return {
        language: {
            f"{UDHR}:{article}#{number}": plain(text)
            for article, elements in articles.items()
            if [tag for tag, _ in elements] == [tag for tag, _ in english.get(article, [])]
            for number, (_, text) in enumerate(elements)
        }
        for language, articles in sections.items()
    }


def _sections(page: bytes) -> dict[str, list[tuple[str, str]]]:
    """Article (or "preamble") -> (tag, text) of its paragraphs and items."""
    root = etree.fromstring(page, etree.HTMLParser(encoding="utf-8"))
    found = {}
    for section in root.iter("header", "article"):
        elements = [each for each in section.iter("p", "li") if each.tag == "p" or each.find("p") is None]
        name = section.get("data-number") or "preamble"
        found[name] = [(str(each.tag), "".join(each.itertext())) for each in elements]
    return found

"""Firefox's language packs: messages that have the same file and name in every language.

Messages that need a value at run time, or that have several forms, are left out; the names of products in them
(Fluent's terms) are filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fluent.syntax import FluentParser, ast

from . import archives
from .recipe import FIREFOX
from .text import Text, plain

PACKS = r"usr/lib/firefox-esr/.*/langpack-([^/@]+)@[^/]*\.xpi"
# Attributes and properties that are no text: keys to press, sizes.
NO_TEXT = re.compile(r"(?i).*key.*|style|width|height|size")
# A property with a value to fill in.
VALUE = re.compile(r"%(?:\d+\$)?[\w@]|\{|\$")


def read(path: Path) -> dict[str, Text]:
    """The messages of one language by key, `firefox:FILE#NAME`."""
    found: dict[str, Text] = {}
    for pack, data in archives.members(path, PACKS):
        match = re.fullmatch(PACKS, pack)
        assert match
        parts = {}
        for name, content in archives.zipped(path, pack, data, r".*\.(?:ftl|properties)"):
            page = "/".join(part for part in name.split("/") if part != match[1])
            parts[page] = content.decode("utf-8", "replace")
        for page, texts in _messages(parts):
            for key, text in texts:
                if text.text:
                    found[f"{FIREFOX}:{page}#{key}"] = text
    return found


def _messages(parts: Mapping[str, str]) -> Iterator[tuple[str, list[tuple[str, Text]]]]:
    parser = FluentParser(with_spans=False)
    resources = {page: parser.parse(text) for page, text in parts.items() if page.endswith(".ftl")}
    # Sorted, because two files may define a term: the last one counts.
    terms = {
        entry.id.name: entry.value
        for page in sorted(resources)
        for entry in resources[page].body
        if isinstance(entry, ast.Term)
    }
    for page, text in sorted(parts.items()):
        yield page, list(_fluent(resources[page], terms) if page in resources else _properties(text))


def _fluent(resource: ast.Resource, terms: Mapping[str, ast.Pattern]) -> Iterator[tuple[str, Text]]:
    for entry in resource.body:
        if not isinstance(entry, ast.Message):
            continue
        attributes = [(f"{entry.id.name}.{each.id.name}", each.value) for each in entry.attributes]
        for name, pattern in [(entry.id.name, entry.value), *attributes]:
            if pattern is None or NO_TEXT.fullmatch(name.rpartition(".")[2]):
                continue
            if (text := resolve(pattern, terms)) is not None:
                yield name, plain(text)


def resolve(pattern: ast.Pattern, terms: Mapping[str, ast.Pattern], depth: int = 3) -> str | None:
    """The text of a pattern with its terms filled in; None if it needs anything else."""
    texts = []
    for element in pattern.elements:
        text = None
        if isinstance(element, ast.TextElement):
            text = element.value
        elif isinstance(element.expression, ast.StringLiteral):
            text = element.expression.parse()["value"]
        elif isinstance(element.expression, ast.SelectExpression) and depth < 3:
            # A term with several forms, of which a sentence would choose by grammar.
            text = resolve(next(each.value for each in element.expression.variants if each.default), terms, depth - 1)
        elif isinstance(element.expression, ast.TermReference) and depth:
            term = terms.get(element.expression.id.name)
            text = None if term is None or element.expression.attribute else resolve(term, terms, depth - 1)
        if text is None:
            return None
        texts.append(text)
    return "".join(texts)


def _properties(text: str) -> Iterator[tuple[str, Text]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not equals or line.startswith(("#", "!")) or VALUE.search(value) or NO_TEXT.fullmatch(name.strip()):
            continue
        value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), value)
        yield name.strip(), plain(re.sub(r"\\[nrt]", " ", value))

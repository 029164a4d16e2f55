"""Cleaning text: one spelling of characters and spaces, with marked ranges that stay exact."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

# Zero-width non-joiner and joiner: they are format characters, but some scripts spell with them.
JOINERS = "\u200c\u200d"
TAG = re.compile(r"<[^<>]*>")
# Languages that are written without spaces.
UNSPACED = ("ja", "zh")


class Span(NamedTuple):
    """A marked range of characters."""

    start: int
    end: int
    label: str


class Text(NamedTuple):
    """A clean text, and the ranges of it that its source marks."""

    text: str
    spans: tuple[Span, ...] = ()


def clean(chunks: Iterable[tuple[str, str | None]]) -> Text:
    """Join chunks of text, each with its label or None, into one clean text; each label's range without outer spaces.

    Clean means NFKC, no invisible format characters, and single spaces. Adjacent chunks of one label are one range.
    """
    characters: list[str] = []
    labels: list[str | None] = []
    for chunk, label in chunks:
        for character in unicodedata.normalize("NFKC", chunk):
            if unicodedata.category(character) == "Cf" and character not in JOINERS:
                continue
            if not character.isspace():
                characters.append(character)
                labels.append(label)
            elif characters and characters[-1] != " ":
                characters.append(" ")
                labels.append(label)
            elif characters and labels[-1] != label:
                labels[-1] = None
    if characters and characters[-1] == " ":
        del characters[-1], labels[-1]
    return Text("".join(characters), tuple(_ranges(characters, labels)))


def _ranges(characters: list[str], labels: list[str | None]) -> Iterable[Span]:
    start = 0
    while start < len(labels):
        label, end = labels[start], start
        while end < len(labels) and labels[end] == label:
            end += 1
        first, last = start, end
        while first < last and characters[first] == " ":
            first += 1
        while last > first and characters[last - 1] == " ":
            last -= 1
        if label is not None and first < last:
            yield Span(first, last, label)
        start = end


def plain(source: str) -> Text:
    """Clean a text that may contain HTML tags and entities."""
    return clean([(html.unescape(TAG.sub("", source)), None)])


def normalised(text: str) -> str:
    """A text without case, digits and punctuation: two that differ only in these count as the same."""
    return re.sub(r"[\W\d_]+", " ", text.casefold()).strip()


def features(text: str, language: str) -> frozenset[str]:
    """The set that near-duplicates are judged by: the words of `normalised`, or its pairs of characters."""
    same = normalised(text)
    if language not in UNSPACED:
        return frozenset(same.split())
    joined = same.replace(" ", "")
    return frozenset(joined[i : i + 2] for i in range(max(len(joined) - 1, 1)) if joined)

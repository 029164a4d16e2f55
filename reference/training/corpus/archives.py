"""Reading the files inside a package in memory: Debian packages, npm's archives, and zip files inside of them.

A Debian package is an `ar` archive of two tar files: control.tar.* says what it is, data.tar.* is what it installs.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from email.parser import HeaderParser
from lzma import LZMAError
from pathlib import Path

AR, AR_HEADER = b"!<arch>\n", 60


def identify(path: Path) -> tuple[str, str]:
    """(name, version) of a package, which it says itself. Raises OSError, or ValueError if it does not."""
    if path.suffix == ".deb":
        for _, data in _tar_members(path, _part(path, b"control.tar"), r"control"):
            fields = HeaderParser().parsestr(data.decode("utf-8", "replace"))
            if fields["Package"] and fields["Version"]:
                return fields["Package"], fields["Version"]
    for _, data in members(path, r"[^/]+/package\.json"):
        try:
            about = json.loads(data)
            return str(about["name"]), str(about["version"])
        except (ValueError, KeyError, TypeError):
            break
    raise ValueError(f"{path}: expected a package that says its name and version")


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every regular file of a package whose whole name matches the regular expression.

    Raises OSError, or ValueError if the package is damaged.
    """
    yield from _tar_members(path, _part(path, b"data.tar") if path.suffix == ".deb" else path.read_bytes(), pattern)


def zipped(path: Path, name: str, data: bytes, pattern: str) -> Iterator[tuple[str, bytes]]:
    """`members` of a zip file with this content, found as `name` in the package at `path`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for each in sorted(archive.namelist()):
                if re.fullmatch(pattern, each):
                    yield each, archive.read(each)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: {name} in it is damaged: {error}") from error


def _tar_members(path: Path, data: bytes, pattern: str) -> Iterator[tuple[str, bytes]]:
    wanted = re.compile(pattern)
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and wanted.fullmatch(name) and (file := archive.extractfile(member)):
                    yield name, file.read()
    except (tarfile.TarError, EOFError, zlib.error, LZMAError) as error:
        raise ValueError(f"{path}: damaged, or compressed in a way that this Python cannot read: {error}") from error


def _part(path: Path, name: bytes) -> bytes:
    """The member of an ar archive whose name begins so."""
    data = path.read_bytes()
    offset = len(AR)
    while data.startswith(AR) and offset + AR_HEADER <= len(data):
        header, offset = data[offset : offset + AR_HEADER], offset + AR_HEADER
        # Name, date, owner, group, mode, size, and two characters that end it.
        if not (size := header[48:58].strip()).isdigit() or header[58:] != b"`\n":
            break
        end = offset + int(size)
        if header.startswith(name) and end <= len(data):
            return data[offset:end]
        # Members begin at even offsets.
        offset = end + end % 2
    raise ValueError(f"{path}: damaged, or not a Debian package: no {name.decode()} in it")

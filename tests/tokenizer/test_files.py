"""What stands in place of a file: git-lfs pointers, pipes, devices, files that are too large, JSON with a name twice.

Seen red: the check left out for each of the files in turn; the limit one byte higher.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY

from ernie_m.tokenizer import ErnieMTokenizer, files
from ernie_m.tokenizer.files import LARGEST_POINTER, read_json, read_regular, refuse_pointer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{:064x}\nsize {}\n"
NAMES = (
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def saved_without(folder: Path, name: str) -> Path:
    """A directory with every file of a tokenizer, but the one with this name; returns its path."""
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY)
    tokenizer.add_tokens(["zyzzyva"])
    tokenizer.save_pretrained(folder)
    if name in NAMES[3:]:
        (folder / "tokenizer_config.json").unlink()
    (folder / name).unlink()
    return folder / name


@pytest.mark.parametrize("name", NAMES)
def test_a_pointer_in_place_of_a_tokenizers_file_is_named(name: str, tmp_path: Path) -> None:
    saved_without(tmp_path, name).write_text(POINTER.format(7, 5069051))
    said = "this is a git-lfs pointer to a file of 5,069,051 bytes; fetch the real file with `git lfs pull`"
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / name))}: {said}$"):
        ErnieMTokenizer.from_pretrained(tmp_path)


@given(
    size=st.integers(0, 2**63),
    oid=st.integers(0, 2**256 - 1),
    host=st.sampled_from(["https://git-lfs.github.com/spec/v1", "https://hawser.github.com/spec/v1"]),
    extra=st.lists(st.from_regex(r"ext-\d-[a-z]+ sha256:[0-9a-f]{8}\n", fullmatch=True), max_size=2),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_pointers_of_all_kinds(
    size: int, oid: int, host: str, extra: list[str], end: str, mark: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "pointer"
    text = f"{mark}version {host}\n{''.join(extra)}oid sha256:{oid:064x}\nsize {size}\n"
    path.write_bytes(text.replace("\n", end).encode())
    with pytest.raises(ValueError, match=f"pointer to a file of {size:,} bytes; fetch the real file"):
        refuse_pointer(path)


@given(data=st.binary(max_size=200) | st.just(b"version 2 of this vocabulary\n") | st.just(b"x" * 2 * LARGEST_POINTER))
def test_other_files_pass(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "other"
    path.write_bytes(data)
    refuse_pointer(path)


# In a process of its own, because without the check it waits for ever, or takes all the memory that it may.
LOAD = """
import sys
from ernie_m.tokenizer import ErnieMTokenizer
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
except ImportError:
    pass
try:
    ErnieMTokenizer(sys.argv[1] + "/sentencepiece.bpe.model", sys.argv[1] + "/vocab.txt")
    ErnieMTokenizer.from_pretrained(sys.argv[1])
except (ValueError, FileNotFoundError) as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_regular_file_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = saved_without(tmp_path, name)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    done = subprocess.run([sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True, timeout=300)
    assert f"{path}: expected a regular file, got a directory, a pipe or a device" in done.stdout, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_link_to_nothing_and_a_file_that_is_too_large_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved_without(tmp_path, name)
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=name):
        ErnieMTokenizer.from_pretrained(tmp_path)
    path.unlink()
    path.write_bytes(b"x" * 400_001)
    monkeypatch.setattr(files, "LARGEST_FILE", 400_000)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: expected at most 400,000 bytes, got more"):
        ErnieMTokenizer.from_pretrained(tmp_path)


@given(data=st.binary(max_size=40), most=st.integers(0, 40))
def test_read_regular_reads_up_to_the_limit(data: bytes, most: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "limited"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LARGEST_FILE", most)
        if len(data) <= most:
            assert read_regular(path) == data
        else:
            with pytest.raises(ValueError, match=f"limited: expected at most {most} bytes, got more"):
                read_regular(path)


def test_the_limit_is_64_mib(tmp_path: Path) -> None:
    path = tmp_path / "large"
    for size in (64 * 2**20, 64 * 2**20 + 1):
        with open(path, "wb") as file:
            file.truncate(size)
        if size <= 64 * 2**20:
            assert len(read_regular(path)) == size
        else:
            with pytest.raises(ValueError, match="expected at most 67,108,864 bytes, got more"):
                read_regular(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
)


@given(value=VALUES, mark=st.sampled_from(["", "\ufeff"]))
def test_read_json_returns_objects_and_refuses_the_rest(
    value: Any, mark: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    path.write_text(mark + json.dumps(value), encoding="utf-8")
    if isinstance(value, dict):
        assert read_json(path) == value
    else:
        with pytest.raises(ValueError, match=r"value\.json: expected a JSON object, got"):
            read_json(path)
    path.write_text(f'{{"a": {json.dumps(value)}, "b": {{"x": 1, "y": 2, "x": {json.dumps(value)}}}}}')
    with pytest.raises(ValueError, match=r"value\.json: not a JSON file: expected each name once, got 'x' twice"):
        read_json(path)

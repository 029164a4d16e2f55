"""git-lfs pointers in place of files. Seen red: the check left out for each of the files in turn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY

from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.files import LARGEST_POINTER, refuse_pointer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{:064x}\nsize {}\n"
NAMES = (
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_pointer_in_place_of_a_tokenizers_file_is_named(name: str, tmp_path: Path) -> None:
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY)
    tokenizer.add_tokens(["zyzzyva"])
    tokenizer.save_pretrained(tmp_path)
    if name in NAMES[3:]:
        (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / name).write_text(POINTER.format(7, 5069051))
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

"""Tokenised texts on disk."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_texts import segments, tokenizer, write_jsonl

from ernie_m.reference.training import shards as page
from ernie_m.reference.training.shards import shard

TOKENIZER = tokenizer()


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([1, 3, 1000]))
def test_every_text_comes_back(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, batch: int) -> None:
    """By language and by pair, however many segments are tokenised at once. Seen red: ends counted in texts; a pair's
    columns swapped; the files of the second batch written over the first's."""
    folder = tmp_path_factory.mktemp("shards")
    rows = segments(count, seed)
    path = write_jsonl(folder / "a.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "BATCH", batch)
        found = shard([path], TOKENIZER, folder / "out", longest=100)

    def ids(text: str) -> list[int]:
        return TOKENIZER(text, add_special_tokens=False)["input_ids"]

    texts = [found.text(i).tolist() for i in range(len(found.ends))]
    for name, own in found.mono.items():
        assert [texts[i] for (i,) in own] == [ids(row[name]) for row in rows if name in row]
    for pair, own in found.pairs.items():
        names = pair.split("+")
        both = [[ids(row[name]) for name in names] for row in rows if set(names) <= row.keys()]
        assert [[texts[i] for i in row] for row in own] == both
    assert found.lengths(np.arange(len(texts))).tolist() == [len(text) for text in texts]
    assert found.about["segments"] == count and found.about["tokens"] == sum(map(len, texts))


def test_long_sentences_are_cut_and_long_translations_are_left_out(tmp_path: Path) -> None:
    """What is left out is counted."""
    rows = [{"en": "cat " * 40}, {"en": "cat", "de": "Katze " * 40, "ru": "кошка"}]
    found = shard([write_jsonl(tmp_path / "a.jsonl", rows)], TOKENIZER, tmp_path / "out", longest=10)
    whole = TOKENIZER("cat " * 40, add_special_tokens=False)["input_ids"]
    parts = [found.text(int(i)).tolist() for (i,) in found.mono["en"]][:-1]
    assert [i for part in parts for i in part] == whole and max(map(len, parts)) == 10
    assert list(found.pairs) == ["en+ru"]
    assert found.about["left_out"] == {"translations that are too long": 1}


def test_shards_name_the_files_that_they_are_made_of(tmp_path: Path) -> None:
    """In a folder that is made with those above it."""
    path = write_jsonl(tmp_path / "a.jsonl", segments(3000))
    found = shard([path], TOKENIZER, tmp_path / "runs" / "new" / "out")
    assert path.stat().st_size > 2**17
    assert found.about["files"] == [{"name": "a.jsonl", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]


def test_the_same_files_are_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And others are refused, with what is there untouched."""
    path = write_jsonl(tmp_path / "a.jsonl", segments(5))
    first = shard([path], TOKENIZER, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in first.directory.iterdir()}
    monkeypatch.setattr(page, "read_segments", lambda path: pytest.fail("read again"))
    assert shard([path], TOKENIZER, tmp_path / "out").about == first.about
    other = tokenizer()
    other.add_tokens(["unheard-of"])
    for files, t, longest, says in (
        ([path], TOKENIZER, 5, "made with longest 126, not 5"),
        ([path, path], TOKENIZER, 126, "made of other files"),
        ([path], other, 126, "made by another tokenizer"),
        ([path, path], other, 5, "made of other files and by another tokenizer and with longest 126, not 5"),
    ):
        with pytest.raises(ValueError, match=f"out: {says}; remove it, or choose another place"):
            shard(files, t, tmp_path / "out", longest)
    assert {file.name: file.read_bytes() for file in first.directory.iterdir()} == before


@pytest.mark.parametrize("change", [lambda x: x[: len(x) // 2], lambda x: x[:-1], lambda x: x + x, lambda x: b""])
def test_a_damaged_file_is_named(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Any of the files. Seen red: texts past the end of `tokens` were empty."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"en": "one two", "de": "drei"}, {"en": "four"}])
    found = shard([path], TOKENIZER, tmp_path / "out")
    for name in ("tokens", "ends", "mono-en", "mono-de", "pair-de+en"):
        file = found.directory / name
        content = file.read_bytes()
        file.write_bytes(change(content))
        size, changed = len(content), len(change(content))
        says = f"{re.escape(name)}: expected {size} bytes, got {changed}; remove .*out, and it is made again"
        with pytest.raises(ValueError, match=says):
            shard([path], TOKENIZER, tmp_path / "out")
        with pytest.raises(ValueError, match=says):
            shard([path], TOKENIZER, tmp_path / "new", ready=found.directory)
        assert not (tmp_path / "new").exists()
        file.write_bytes(content)


def test_a_longest_that_no_text_fits_in_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"en": "one two three four", "de": "fünf sechs sieben acht"}])
    says = r"a\.jsonl: expected texts, got none of at most 1 tokens; left out: 2 translations that are too long"
    with pytest.raises(ValueError, match=says):
        shard([path], TOKENIZER, tmp_path / "out", 1)


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """An error in the last line of the second file."""
    good, bad = write_jsonl(tmp_path / "a.jsonl", segments(5)), write_jsonl(tmp_path / "b.jsonl", [*segments(5), 3])
    with pytest.raises(ValueError, match=r"b\.jsonl: line 6"):
        shard([good, bad], TOKENIZER, tmp_path / "out")
    empty = write_jsonl(tmp_path / "c.jsonl", [{"en": " "}])
    with pytest.raises(ValueError, match=r"c\.jsonl: expected texts, got none"):
        shard([good, empty], TOKENIZER, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red: what is written kept until the end."""
    monkeypatch.setattr(page, "BATCH", 50)

    def peak(count: int) -> int:
        path = write_jsonl(tmp_path / f"{count}.jsonl", segments(count))
        tracemalloc.start()
        shard([path], TOKENIZER, tmp_path / f"out-{count}")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(12_000) < 1.3 * peak(1500)


# 96 MB of text and its 30 million tokens, in a process that may use 64 MiB beyond what its modules take.
LIMITED = """
import resource, sys
from pathlib import Path
from training_texts import tokenizer, vocabulary
from ernie_m.reference.objectives import collate
from ernie_m.reference.training.mixture import Mixture
from ernie_m.reference.training.shards import shard
t = tokenizer()
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 64 * 2**20,) * 2)
found = shard([Path(sys.argv[1])], t, Path(sys.argv[2]))
mixture = Mixture(found, vocabulary(t), ("camlm", "mmlm"), 2048)
for step in range(200):
    collate(mixture.batch(step), mixture.vocabulary)
print(found.about["tokens"])
"""


@pytest.mark.all
def test_a_corpus_larger_than_memory(tmp_path: Path) -> None:
    """Seen red: all segments read before the first is tokenised."""
    text = "".join(write_jsonl(tmp_path / "part.jsonl", segments(20_000)).read_text("utf-8").splitlines(keepends=True))
    path = tmp_path / "a.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(50):
            file.write(text)
    assert path.stat().st_size > 96 * 10**6
    command = [sys.executable, "-c", LIMITED, str(path), str(tmp_path / "out")]
    folder = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20 * 10**6

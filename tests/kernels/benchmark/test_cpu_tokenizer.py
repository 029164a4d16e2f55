"""What the tokenizer's rows measure: the same texts on every side, with the same results. No times are asserted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ernie_m.kernels.benchmark import cpu_tokenizer
from ernie_m.kernels.benchmark.cpu_tokenizer import COMPARED, ROWS, SIZE, mixed_lines, prepare, read_lines

# In the checkout: the corpus is no part of the installed package.
DEMO = Path(__file__).resolve().parents[3] / "reference" / "demo"
SENTENCES = DEMO.parents[1] / "tests" / "fixtures" / "sentences"


def test_mixed_lines_alternate_between_languages_up_to_their_size() -> None:
    lines = mixed_lines(SENTENCES)
    sizes = [len(line.encode()) for line in lines]
    assert sum(sizes[:-1]) < SIZE <= sum(sizes)
    files = sorted(SENTENCES.glob("*.txt"))
    firsts = [path.read_text(encoding="utf-8").splitlines()[0] for path in files]
    assert len(firsts) == COMPARED
    assert all(line.startswith(first) for line, first in zip(lines, firsts, strict=False))


@pytest.mark.parametrize("row", ROWS)
def test_competitors_of_a_row_return_the_same_ids(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_tokenizer, "SENTENCES", SENTENCES)
    monkeypatch.setattr(cpu_tokenizer, "SIZE", 4000)
    monkeypatch.setattr(cpu_tokenizer, "CALLS", 3)
    monkeypatch.setattr(cpu_tokenizer, "use_one_core", lambda: None)
    prepare(tmp_path)
    found = {}
    for who, make in ROWS[row].items():
        if who == "transformers":
            pytest.importorskip("transformers")
        found[who] = make(tmp_path)()
    results = [ids for ids in found.values() if ids is not None]
    assert len(results) >= 2 and all(ids == results[0] and ids for ids in results)


def test_use_one_core_leaves_one() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system cannot keep a process on one of its CPUs")
    before = os.sched_getaffinity(0)
    try:
        cpu_tokenizer.use_one_core()
        assert len(os.sched_getaffinity(0)) == 1 and os.sched_getaffinity(0) <= before
    finally:
        os.sched_setaffinity(0, before)


def test_rows_without_the_corpus_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="only in a checkout"):
        read_lines(tmp_path)

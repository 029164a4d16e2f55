"""Measuring on a CPU: processes, turns, threads, what a table says. No times are asserted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ernie_m.kernels.benchmark import cpu, cpu_models
from ernie_m.kernels.benchmark.cpu import Missing, Place, Sample, cells, places, sample, take_turns
from ernie_m.kernels.benchmark.cpu_child import NUMBERS, numbers_of
from ernie_m.kernels.cli.program import main


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a part of cheap rows, for this process and its children."""
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([folder, inherited] if inherited else [folder]))
    return "cpu_rows"


def of(wall: float, cpu_seconds: float, numbers: tuple[float, ...] = ()) -> Sample:
    return Sample((wall,), (cpu_seconds,), 0.5, 2**20, numbers)


@pytest.mark.all
def test_each_sample_is_a_process_with_its_threads_and_calls(part: str, tmp_path: Path) -> None:
    """Seen red: the interpreter's variable inherited; warm-up calls among the runs."""
    samples = [sample(Place(part, "processes", "calls"), tmp_path, 1, 3) for _ in range(2)]
    assert all(isinstance(s, Sample) and len(s.wall) == len(s.cpu) == 3 for s in samples)
    (calls, first), (_, second) = (s.numbers for s in samples if isinstance(s, Sample))
    assert calls == 5 and len({first, second, float(os.getpid())}) == 3
    found = sample(Place(part, "numbers", "threads"), tmp_path, 3, 1)
    assert isinstance(found, Sample) and found.numbers == (3.0, 0.0, 4.0)
    assert sample(Place(part, "numbers", "fails"), tmp_path, 1, 1) == Missing("RuntimeError: no such instructions")


def test_competitors_take_turns_until_one_fails() -> None:
    """Seen red: all rounds of one competitor at once."""
    order = []

    def measure(place: Place) -> Sample | Missing:
        order.append(place.who)
        return Missing("why") if order.count(place.who) == 2 and place.who == "b" else of(1, 1)

    found = take_turns([Place("", "", who) for who in "ab"], 3, measure)
    assert order == ["a", "b", "a", "b", "a"]
    assert found["b"] == Missing("why") and len(found["a"]) == 3


def test_cells_are_medians_against_the_first_competitor() -> None:
    rounds = [of(1.0, 4.0, (1.0, 2.0)), of(9.0, 4.0), of(2.0, 4.0)]
    found = {"theirs": [of(4.0, 2.0, (1.0, 2.5))], "ours": rounds, "other": Missing("no GPU")}
    theirs, ours, other = cells("row", found)
    assert theirs == ("row", "theirs", "4.000 s", "1.00", "2.000 s", "1.00", "500.000 ms", "1 MiB", "")
    assert ours == ("row", "ours", "2.000 s", "0.50", "4.000 s", "2.00", "500.000 ms", "1 MiB", "5e-01")
    assert other[:3] == ("row", "other", "not measured: no GPU") and len(other) == len(cpu.HEADINGS)
    assert cells("row", {"theirs": Missing("gone"), "ours": rounds})[1][3] == ""


def test_run_writes_a_page(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the processor, the threads and every competitor of the rows that were asked for."""
    page = cpu.run("numbers", threads=1, rounds=1, runs=1, output=tmp_path, parts=[part])
    assert (tmp_path / cpu.TABLE_FILE).read_text() == page
    assert f"- processor: {cpu.processor()}" in page and "- threads: 1\n" in page
    assert "processes" not in page and "not measured: RuntimeError: no such instructions" in page
    assert "| numbers | threads |" in page and "2e+00" in page
    with pytest.raises(ValueError, match=r"--cpu: expected part of the name of a row .*, got 'nothing'"):
        cpu.run("nothing", parts=[part])


def test_command_keeps_earlier_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / cpu.TABLE_FILE).write_text("mine")
    assert main(["bench", "--cpu", "1 x 16", "--output", str(tmp_path)]) == 2
    assert "CPU.md exists" in capsys.readouterr().err
    assert (tmp_path / cpu.TABLE_FILE).read_text() == "mine"


def test_numbers_of_a_result() -> None:
    assert numbers_of(None) == []
    assert numbers_of([[1, 2], [3, 4]]) == [1.0, 2.0, 3.0, 4.0]
    assert NUMBERS <= len(numbers_of(range(10 * NUMBERS + 7))) <= 2 * NUMBERS


def test_rows_of_models() -> None:
    """Each has transformers as its baseline; ragged batches are padded to their longest row."""
    for row, competitors in places(cpu.PARTS):
        assert competitors[0].who.startswith("transformers"), row
    batch = cpu_models.BATCHES["8 rows of 16 to 128"]
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert mask.sum(axis=1).tolist() == list(batch.lengths) and mask.shape == (8, 128)
    assert (ids[mask == 0] == 1).all() and (ids[mask == 1] > 4).all()

"""Bits are counted as equal or not, alone and beside a load; the load of products needs a GPU."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_m.kernels.benchmark import runner
from ernie_m.kernels.benchmark.measured import Measured, bits
from ernie_m.kernels.benchmark.repeats import equal_runs, products_beside, repeats
from ernie_m.kernels.benchmark.timing import Call
from ernie_m.kernels.cli import bench
from ernie_m.kernels.cli.program import main


def returning(*values: float) -> Call:
    """Returns the values in turn, and then the last one again."""
    left = list(values)
    return lambda i: {"x": torch.tensor([left.pop(0) if len(left) > 1 else left[0], 1.0])}


def test_runs_with_the_bits_of_the_first_are_counted() -> None:
    nan = float("nan")
    assert equal_runs(returning(1.0), 5) == 5
    assert equal_runs(returning(1.0, 1.0, 2.0, 1.0), 5) == 4
    assert equal_runs(returning(0.0, -0.0), 2) == 0  # equal numbers, other bits
    assert equal_runs(returning(nan), 2) == 2  # the same bits, though NaN is not equal to itself


def test_a_result_in_memory_that_is_written_again_is_compared() -> None:
    """As a CUDA graph's is. Seen red without the copy."""
    held, calls = torch.zeros(2), iter(range(9))

    def call(i: int) -> torch.Tensor:
        return held.fill_(float(next(calls)))

    assert equal_runs(call, 3) == 0


def test_the_load_is_queued_before_each_run() -> None:
    log: list[str] = []

    def call(i: int) -> torch.Tensor:
        log.append("call")
        return torch.ones(1)

    assert equal_runs(call, 2, lambda: log.append("load")) == 2
    assert log == ["call", "load", "call", "load", "call"]


def test_bits_of_nothing_are_refused() -> None:
    assert [x.tolist() for x in bits((torch.tensor([1, 2], dtype=torch.int16), None))] == [[1, 0, 2, 0]]
    with pytest.raises(TypeError, match="expected a result with tensors, got NoneType"):
        bits(None)


def made(*sizes: Any) -> Measured:
    def broken(i: int) -> None:
        raise RuntimeError("out of memory")

    calls = {"ours": returning(1.0), "ours, full": broken, "eager": returning(1.0, 2.0), "ours, odd": returning(1, 2)}
    return Measured(calls, lambda matrix, copy: 1.0)


def unbuilt(*sizes: Any) -> Measured:
    raise ImportError("no such package")


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command without a GPU, and without a load."""
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(runner, "makers", lambda: {"embed": made, "encoder": unbuilt})
    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    monkeypatch.setattr(bench, "environment", lambda: {"gpu": "none"})
    without: Callable[[Call], Any] = lambda call: lambda: None  # noqa: E731
    monkeypatch.setattr(bench, "repeats", lambda cases, runs: repeats(cases, runs, "cpu", without))


@pytest.mark.usefixtures("on_a_cpu")
def test_the_command_counts_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--operation", "embed", "--operation", "encoder", "--model", "base", "--case", "one"]
    argv = ["bench", "--repeats", "7", *chosen, "--output", str(tmp_path / "made")]
    assert main(argv) == 1
    saved = json.loads((tmp_path / "made" / "repeats.json").read_text())
    assert saved["environment"] == {"gpu": "none"}
    case = {"size": "base", "batch": "one", "dtype": "bfloat16", "runs": 7}
    assert saved["repeats"] == [
        {"what": "embed", **case, "who": "ours", "alone": 7, "beside": 7, "error": ""},
        {"what": "embed", **case, "who": "ours, full", "alone": 0, "beside": 0, "error": "RuntimeError: out of memory"},
        {"what": "embed", **case, "who": "ours, odd", "alone": 0, "beside": 7, "error": ""},
        {"what": "encoder", **case, "who": "all", "alone": 0, "beside": 0, "error": "ImportError: no such package"},
    ]
    printed = capsys.readouterr()
    cells = [[cell.strip() for cell in line.split("|")[5:-1]] for line in printed.out.splitlines()]
    assert cells[0] == ["who", "runs", "equal, alone", "equal, beside products"]
    assert cells[2] == ["ours", "7", "7", "7"] and cells[4] == ["ours, odd", "7", "0", "7"]
    assert "not measured: ImportError: no such package" in printed.out
    assert main(argv) == 2
    assert "repeats.json exists: choose another directory or pass --overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 1


@pytest.mark.usefixtures("on_a_cpu")
def test_success_is_that_all_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Measured({"ours": returning(1.0)}, lambda matrix, copy: 1.0)
    monkeypatch.setattr(runner, "makers", lambda: {"embed": lambda *sizes: right})
    argv = ["bench", "--repeats", "2", "--operation", "embed"]
    assert main(argv) == 0


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize(("argv", "message"), [
    (["--repeats", "0"], "argument --repeats"),
    (["--repeats", "2", f"{__file__}:made", "--op", "embed"], "--repeats: expected no --op with it"),
    (["--repeats", "2", "--cpu"], "--repeats: expected no --cpu with it"),
    (["--repeats", "2", "--saved", "."], "--repeats: expected no --saved with it"),
    (["--repeats", "2", "--quick"], "--repeats: expected no --quick with it, as it would have no effect"),
])  # fmt: skip
def test_what_does_not_go_together_is_named(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 2
    assert message in capsys.readouterr().err


def test_products_do_not_outlive_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tensors are used on another stream than they were allocated on, so the allocator has to know. Each load
    waits for the one before. Seen red without either."""
    log = list[str]()

    class Stream:
        def wait_stream(self, other: object) -> None:
            log.append("ordered")

        def synchronize(self) -> None:
            log.append("ended")

    def small(*shape: int, **_: object) -> torch.Tensor:
        return torch.zeros(2, 2)

    def product(*_: object, out: torch.Tensor) -> None:
        log.append("product")

    for owner, name, value in (
        (torch.cuda, "Stream", Stream),
        (torch.cuda, "current_stream", lambda: None),
        (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        (torch.cuda, "synchronize", lambda: None),
        (torch, "randn", small),
        (torch, "mm", product),
        (torch.Tensor, "record_stream", lambda tensor, stream: log.append("recorded")),
    ):
        monkeypatch.setattr(owner, name, value)
    load = products_beside(lambda i: None)
    assert log.count("recorded") == 2
    log.clear()
    load()
    load()
    assert log[0] == "ended" and log.count("ended") == 2 and log[-1] == "product"

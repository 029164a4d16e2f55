"""What is read back from a log, and what is refused."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from ernie_m.kernels.training import logs as page
from ernie_m.kernels.training.logs import Log, read

RECORD = '{"step": 1, "loss": 2.5, "seconds": 0.5}'


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read(path) == []
    path.write_text(f"{RECORD}\n{RECORD[:9]}", "utf-8")
    assert read(path) == [{"step": 1, "loss": 2.5, "seconds": 0.5}]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """As in every other file that an editor may have saved. Seen red."""
    path = tmp_path / "log.jsonl"
    path.write_text(f"{RECORD}\n", "utf-8-sig")
    Log(tmp_path, 1, 6).close()
    assert path.read_text("utf-8") == f"{RECORD}\n"


def test_a_plot_has_a_panel_for_each_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers that are not whole, but for the time; steps below the last. Without any, there is no plot."""
    figures = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes))
    log = Log(tmp_path, 0, 6)
    log.close()
    assert drawn == []
    log.write({"step": 1, "loss": 2.5, "norm": 1.0, "tokens": 7})
    log.write({"step": 2, "loss": 2.0, "norm": 0.5, "tokens": 9})
    log.close()
    (panels,) = drawn
    assert [panel.get_ylabel() for panel in panels] == ["loss", "norm"]
    assert [panel.lines[0].get_xydata().tolist() for panel in panels] == [[[1, 2.5], [2, 2]], [[1, 1], [2, 0.5]]]
    assert [panel.get_xlabel() for panel in panels] == ["", "step"]


def test_a_plot_that_cannot_be_written_is_told_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.png").mkdir()
    log = Log(tmp_path, 0, 6)
    log.write({"step": 1, "loss": 2.5})
    log.close()
    assert "log.jsonl were not drawn: " in capsys.readouterr().err
    assert [row["loss"] for row in read(tmp_path / "log.jsonl")] == [2.5]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("seconds", "left"), [(60, "2 min"), (3000, "1:40 h")])
def test_progress_counts_the_time_of_this_process(
    seconds: int, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that took a minute for 4 of 10 steps goes on, and makes 2: 4 are left. Tokens are those of all its time."""
    (tmp_path / "log.jsonl").write_text('{"step": 4, "loss": 2.5, "seconds": 60}\n', "utf-8")
    now = 0
    monkeypatch.setattr(page.time, "perf_counter", lambda: now)
    monkeypatch.setattr(sys, "stderr", Terminal())
    log = Log(tmp_path, 4, 10)
    now = seconds
    log.progress(6, 2.0, 10 * (60 + seconds))
    log.say("told")
    line = f"\rstep 6 of 10  loss 2.000  10 tokens/s  {left} left\x1b[K"
    assert sys.stderr.getvalue() == f"{line}\ntold\n"
    log.say("again")
    assert sys.stderr.getvalue().endswith("\ntold\nagain\n")


def test_progress_is_for_terminals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path, 0, 10)
    log.progress(6, 2.0, 10)
    log.say("told")
    assert capsys.readouterr().err == "told\n"


@pytest.mark.parametrize(
    "line",
    [
        *("my own notes", '{"a": 1}', '{"step": 1, "loss": 2.0}', '{"step": "x", "seconds": 1}', "[]", "3", "", "\xff"),
        # Seen red: an OverflowError, words of Python, and a RecursionError.
        *('{"step": Infinity, "seconds": 1.0}', '{"step": "1", "seconds": 1.0}', "[" * 100_000),
    ],
)
def test_what_no_run_has_written_is_named_and_kept(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    content = f"{RECORD}\n{line}\n".encode("latin-1")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2: expected a record of a run, got "):
        Log(tmp_path, 1, 6)
    assert path.read_bytes() == content

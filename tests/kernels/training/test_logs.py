"""What is read back from a log, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_a_plot_that_cannot_be_written_is_told_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.png").mkdir()
    log = Log(tmp_path, 0, 6)
    log.write({"step": 1, "loss": 2.5})
    log.close()
    assert "log.jsonl were not drawn: " in capsys.readouterr().err
    assert [row["loss"] for row in read(tmp_path / "log.jsonl")] == [2.5]


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

"""Printing, saving and reloading results, and recording their environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_m.kernels.benchmark import report as bench_report
from ernie_m.kernels.benchmark.report import Case, Row, table
from ernie_m.kernels.benchmark.runner import Output
from ernie_m.kernels.benchmark.timing import Missing, Timing
from ernie_m.kernels.cli.program import main


@pytest.mark.parametrize("name", ["bench.json", "bench.md", "bench-share-bfloat16.png"])
def test_results_are_replaced_only_with_overwrite(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(FileExistsError, match=rf"{name} exists: choose another directory or pass --overwrite"):
        Output(tmp_path)
    assert (tmp_path / name).read_text() == "old"
    Output(tmp_path, overwrite=True)


def test_saved_redraws_saved_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, timing = Case("encoder", "base", "one", "bfloat16"), Timing(1e-3, 1e-3, 2e-3, 9, 5)
    rows = [Row(case, "ours, packed", timing, 5e-4, 1e-3, 0.5, 7), Row(case, "eager, padded", Missing("no"))]
    assert [Row.from_json(json.loads(json.dumps(row.as_json()))) for row in rows] == rows
    saved = {"environment": {"gpu": "one"}, "rows": [row.as_json() for row in rows]}
    (tmp_path / "bench.json").write_text(json.dumps(saved), "utf-8-sig")  # with the mark, seen red
    assert main(["bench", "--saved", str(tmp_path)]) == 0
    assert table(rows) in capsys.readouterr().out
    assert (tmp_path / "bench.md").read_text() == f"- gpu: one\n\n{table(rows)}"
    assert json.loads((tmp_path / "bench.json").read_bytes()) == saved


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": [{"what": 1}], "environment": {}}', '{"rows": []}'])
def test_saved_rejects_other_files(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text(content)
    assert main(["bench", "--saved", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"ernie_m.kernels: error: {tmp_path / 'bench.json'}: ") and errors.count("\n") == 1
    assert errors.count("bench.json") == 1  # seen red: named twice
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_commit_is_this_projects_or_none(tmp_path: Path) -> None:
    """Seen red without asking git for the file: a package installed inside another repository got its commit."""
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.example")
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    for name in ("known.py", "other.py"):
        (tmp_path / name).write_text("1\n")
    subprocess.run([*git, "add", "known.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert bench_report.commit(tmp_path / "known.py") == head
    assert bench_report.commit(tmp_path / "other.py") is None
    (tmp_path / "known.py").write_text("2\n")
    assert bench_report.commit(tmp_path / "known.py") == f"{head}-dirty"


def test_output_is_none_if_a_command_is_missing_or_fails() -> None:
    assert bench_report._output("no-such-command-anywhere") is None
    assert bench_report._output(sys.executable, "-c", "raise SystemExit(3)") is None
    assert bench_report._output(sys.executable, "-c", "print('a\\nb')") == "a"


def test_duration_chooses_the_unit() -> None:
    assert [bench_report.duration(t) for t in (1.234e-5, 1.5e-3, 0.0999, 2.5)] == [
        "12.3 µs", "1.500 ms", "99.900 ms", "2.500 s"
    ]  # fmt: skip

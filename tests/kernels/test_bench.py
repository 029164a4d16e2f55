"""The command, all but the GPU: what is refused, planned, printed, saved, and drawn."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_m.kernels import bench, bench_report, compile_report
from ernie_m.kernels.bench import Output, measure, plan
from ernie_m.kernels.bench_operations import OPERATIONS, Measured
from ernie_m.kernels.bench_report import Case, Row, table
from ernie_m.kernels.bench_timing import Call, Missing, Timing
from ernie_m.kernels.cli import main

ABOUT = {"gpu": "none", "matrix_flops_per_s": {"bfloat16": 1e12, "float32": 1e10}, "copy_bytes_per_s": 1e9}


def fake_timer(calls: Mapping[str, Call], runs: int, hide_host: bool) -> dict[str, Timing | Missing]:
    """Calls everyone, as the real one does, and says who could not run; the times are made up: 1 ms, 2 ms, ..."""
    found: dict[str, Timing | Missing] = {}
    for t, (name, call) in enumerate(calls.items(), start=1):
        try:
            call(0)
            found[name] = Timing(t * 1e-3, t * 0.9e-3, t * 1.1e-3, runs, 2**20)
        except RuntimeError as error:
            found[name] = Missing(str(error))
    return found


def maker(size: Any, batch: Any, dtype: torch.dtype, device: str) -> Measured:
    """A case of three, of which one cannot run and one is 1 % off; ours takes half a millisecond at least."""

    def broken(i: int) -> None:
        raise RuntimeError("out | of memory")

    calls: dict[str, Call] = {
        "ours": lambda i: torch.full((4,), 2.0, dtype=dtype),
        "eager": lambda i: torch.full((4,), 2.02, dtype=torch.float64),
        "cuDNN": broken,
    }
    return Measured(calls, lambda matrix, copy: 5e8 / matrix, held=10, uncounted=frozenset({"eager"}))


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MAKERS", dict.fromkeys(bench.MAKERS, maker))


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(argv)


def test_everything_is_planned_and_filters_choose() -> None:
    whole = plan(arguments(), ("bfloat16",))
    assert len(whole) == len(set(whole)) == 2 * 4 * 5
    assert whole[0] == Case("encoder", "base", "ragged", "bfloat16")
    argv = ("--operation", "embed", "--operation", "encoder", "--model", "large", "--case", "one")
    assert [str(case) for case in plan(arguments(*argv), ("float16", "float32"))] == [
        "embed, large, one, float16", "encoder, large, one, float16",
        "embed, large, one, float32", "encoder, large, one, float32",
    ]  # fmt: skip
    assert {case.what for case in whole} == {"encoder", *OPERATIONS}


@pytest.mark.usefixtures("makers")
def test_what_is_measured_is_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(tmp_path / "made")
    output.about = ABOUT
    measure([Case("bias_gelu", "base", "dense", "bfloat16")], output, 7, fake_timer, "cpu")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["bench.json", "bench.md"]
    saved = json.loads((tmp_path / "made" / "bench.json").read_text())
    assert saved["environment"] == ABOUT
    ours, eager, cudnn = saved["rows"]
    assert ours == {
        "what": "bias_gelu", "size": "base", "batch": "dense", "dtype": "bfloat16", "who": "ours",
        "median_s": 1e-3, "p10_s": 0.9e-3, "p90_s": 1.1e-3, "runs": 7, "floor_s": 5e-4, "ours_s": 1e-3,
        "rms_from_ours": None, "peak_bytes": 2**20, "weight_bytes": 10,
    }  # fmt: skip
    assert (eager["median_s"], eager["ours_s"], eager["peak_bytes"]) == (2e-3, 1e-3, None)
    assert eager["rms_from_ours"] == pytest.approx(0.01, rel=1e-5)
    assert cudnn["not_measured"] == "out | of memory"
    printed = capsys.readouterr()
    assert printed.err.endswith("1 of 1: bias_gelu, base, dense, bfloat16\n")
    lines = printed.out.splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[5:-1]] == [
        "ours", "1.000 ms", "900.0 µs to 1.100 ms", "1.00 x", "50%", "", "1 MiB"
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[4].split("|")[6:-1]] == [
        "2.000 ms", "1.800 ms to 2.200 ms", "2.00 x", "25%", "1.0e-02", ""
    ]  # fmt: skip
    assert "not measured: out / of memory" in lines[5]
    assert len({len(line) for line in lines[1:5]}) == 1
    written = (tmp_path / "made" / "bench.md").read_text()
    assert written.startswith("- gpu: none\n")
    assert printed.out.strip() in written
    assert "share of the measured copy rate" in written


@pytest.mark.usefixtures("makers")
def test_each_dtype_has_its_own_ceiling() -> None:
    output = Output(None)
    output.about = ABOUT
    cases = [Case("encoder", "base", "one", dtype) for dtype in ("bfloat16", "float32")]
    measure(cases, output, 3, fake_timer, "cpu")
    assert [row.floor for row in output.rows if row.who == "ours"] == [5e-4, 5e-2]


def test_an_interruption_loses_only_its_own_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command: verified, ceilings, then Ctrl-C in the third case. Figures are drawn all the same."""
    made = 0

    def interrupted(*sizes: Any) -> Measured:
        nonlocal made
        made += 1
        if made == 3:
            raise KeyboardInterrupt
        return maker(*sizes)

    monkeypatch.setattr(bench, "MAKERS", dict.fromkeys(bench.MAKERS, interrupted))
    monkeypatch.setattr(bench, "nothing_to_time", lambda: None)
    monkeypatch.setattr(bench, "kernel_rows", lambda dtypes, quick: iter(()))
    monkeypatch.setattr(bench, "environment", dict)
    monkeypatch.setattr(bench, "ceilings", lambda dtypes, runs: ABOUT)
    monkeypatch.setattr(bench, "measure", lambda *rest: measure(*rest, timer=fake_timer, device="cpu"))
    assert main(["bench", "--all", "--output", str(tmp_path)]) == 130
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert [row["what"] for row in saved["rows"]] == ["encoder"] * 3 + ["packed_attention"] * 3
    assert saved["environment"]["batches"].startswith("ragged: 64 rows of mean length 128, padded to 512; dense:")
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn in ([], [f"bench-{name}-bfloat16.png" for name in ("encoder", "packed_attention", "share")])
    assert not list(tmp_path.glob(".*"))


def test_a_case_that_cannot_be_made_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*sizes: Any) -> Measured:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "MAKERS", {"embed": broken, "bias_gelu": maker})
    output = Output(None)
    output.about = ABOUT
    measure([Case(what, "base", "one", "bfloat16") for what in ("embed", "bias_gelu")], output, 3, fake_timer, "cpu")
    assert output.rows[0].found == Missing("OutOfMemoryError: CUDA out of memory")
    assert [row.who for row in output.rows] == ["all", "ours", "eager", "cuDNN"]


@pytest.mark.parametrize("name", ["bench.json", "bench.md", "bench-share-bfloat16.png"])
def test_results_are_never_replaced_unasked(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(FileExistsError, match=rf"{name} exists: name another folder, or --overwrite"):
        Output(tmp_path)
    assert (tmp_path / name).read_text() == "old"
    Output(tmp_path, overwrite=True)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")

    def broken(*paths: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(bench_report.os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        bench_report.write(tmp_path / "file", b"new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_was_saved_is_shown_once_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, timing = Case("encoder", "base", "one", "bfloat16"), Timing(1e-3, 1e-3, 2e-3, 9, 5)
    rows = [Row(case, "ours, packed", timing, 5e-4, 1e-3, 0.5, 7), Row(case, "eager, padded", Missing("no"))]
    assert [Row.from_json(json.loads(json.dumps(row.as_json()))) for row in rows] == rows
    saved = {"environment": {"gpu": "one"}, "rows": [row.as_json() for row in rows]}
    (tmp_path / "bench.json").write_text(json.dumps(saved))
    assert main(["bench", "--saved", str(tmp_path)]) == 0
    assert table(rows) in capsys.readouterr().out
    assert (tmp_path / "bench.md").read_text() == f"- gpu: one\n\n{table(rows)}"
    assert json.loads((tmp_path / "bench.json").read_text()) == saved


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": [{"what": 1}], "environment": {}}', '{"rows": []}'])
def test_what_bench_did_not_save_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text(content)
    assert main(["bench", "--saved", str(tmp_path)]) == 2
    assert "bench.json: expected what bench saved: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_without_a_gpu_the_compile_report_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[argparse.Namespace] = []

    def report(arguments: argparse.Namespace) -> int:
        asked.append(arguments)
        return 0

    monkeypatch.setattr(compile_report, "run", report)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "INTERPRETED", False)
    assert main(["bench", "--output", str(tmp_path / "results")]) == 0
    assert "no GPU to time anything on: this is the compile report" in capsys.readouterr().err
    assert compile_report.command_line(asked[0]) == ["compile"]
    assert not (tmp_path / "results").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert bench.nothing_to_time() is None
    monkeypatch.setattr(bench, "HAS_TRITON", False)
    assert bench.nothing_to_time() == "triton is not installed, so there are no kernels to time"
    monkeypatch.setattr(bench, "INTERPRETED", True)
    assert "TRITON_INTERPRET is set" in (bench.nothing_to_time() or "")


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Past the question for a GPU, with one kernel that forgets its bias."""
    from ernie_m.kernels import verify

    wrong = {"bias_gelu": (lambda x, bias: torch.nn.functional.gelu(x), 5)}
    monkeypatch.setattr(bench, "nothing_to_time", lambda: None)
    monkeypatch.setattr(bench, "kernel_rows", lambda dtypes, quick: verify.kernel_rows(dtypes, quick, wrong))
    monkeypatch.setattr(bench, "ceilings", lambda *rest: pytest.fail("timed all the same"))
    assert main(["bench", "--dtype", "float32"]) == 1
    assert "not timed, as it is wrong: bias_gelu, float32" in capsys.readouterr().err


def test_the_commit_is_this_projects_or_none(tmp_path: Path) -> None:
    """Seen red without asking git for the file: a package installed inside another repository had that one's commit."""
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


def test_a_command_that_is_not_there_says_nothing() -> None:
    assert bench_report._output("no-such-command-anywhere") is None
    assert bench_report._output(sys.executable, "-c", "raise SystemExit(3)") is None
    assert bench_report._output(sys.executable, "-c", "print('a\\nb')") == "a"


def test_times_have_their_units() -> None:
    assert [bench_report.shown(t) for t in (1.234e-5, 1.5e-3, 0.0999, 2.5)] == [
        "12.3 µs", "1.500 ms", "99.900 ms", "2.500 s"
    ]  # fmt: skip

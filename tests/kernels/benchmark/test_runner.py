"""The command without a GPU: what is refused, planned, printed, saved and drawn."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_m.kernels.benchmark import runner
from ernie_m.kernels.benchmark.measured import YOURS, Measured
from ernie_m.kernels.benchmark.report import Case
from ernie_m.kernels.benchmark.runner import Output, makers, makers_of_yours, measure
from ernie_m.kernels.benchmark.timing import Call, Missing, Timing
from ernie_m.kernels.benchmark.work import BATCHES, SIZES
from ernie_m.kernels.benchmark.workloads import WORKLOADS
from ernie_m.kernels.checking import operations
from ernie_m.kernels.checking.verify import kernel_rows
from ernie_m.kernels.cli import bench
from ernie_m.kernels.cli.bench import plan
from ernie_m.kernels.cli.program import main

ABOUT = {"gpu": "none", "matrix_flops_per_s": {"bfloat16": 1e12, "float32": 1e10}, "copy_bytes_per_s": 1e9}


def fake_timer(calls: Mapping[str, Call], runs: int, hide_host: bool) -> dict[str, Timing | Missing]:
    """Calls every competitor and records failures, like the real timer; the times are fake: 1 ms, 2 ms, ..."""
    found: dict[str, Timing | Missing] = {}
    for t, (name, call) in enumerate(calls.items(), start=1):
        try:
            call(0)
            found[name] = Timing(t * 1e-3, t * 0.9e-3, t * 1.1e-3, runs, 2**20)
        except RuntimeError as error:
            found[name] = Missing(str(error))
    return found


def maker(size: Any, batch: Any, dtype: torch.dtype, device: str) -> Measured:
    """A case of three competitors: one cannot run and one is 1 % off. The floor in bfloat16 is half a millisecond."""

    def broken(i: int) -> None:
        raise RuntimeError("out | of memory")

    calls: dict[str, Call] = {
        "ours": lambda i: torch.full((4,), 2.0, dtype=dtype),
        "eager": lambda i: torch.full((4,), 2.02, dtype=torch.float64),
        "cuDNN": broken,
    }
    return Measured(calls, lambda matrix, copy: 5e8 / matrix, held=10, uncounted=frozenset({"eager"}))


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, so nothing needs a reset, and torch's compiler, which takes seconds, is not imported."""
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)


def use_maker(maker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `maker` build every case."""
    names = tuple(makers())
    monkeypatch.setattr(runner, "makers", lambda: dict.fromkeys(names, maker))


@pytest.fixture
def fake_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    use_maker(maker, monkeypatch)


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(argv)


def test_plan_filters_and_defaults_to_everything() -> None:
    whole = plan(arguments(), ("bfloat16",))
    assert len(whole) == len(set(whole)) == 2 * 4 * 17
    assert whole[0] == Case("encoder", "base", "ragged", "bfloat16")
    argv = ("--operation", "embed", "--operation", "encoder", "--model", "large", "--case", "one")
    assert [str(case) for case in plan(arguments(*argv), ("float16", "float32"))] == [
        "embed, large, one, float16", "encoder, large, one, float16",
        "embed, large, one, float32", "encoder, large, one, float32",
    ]  # fmt: skip
    assert {case.what for case in whole} == {"encoder", "training_step", *WORKLOADS}


@pytest.mark.usefixtures("fake_makers")
def test_measure_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_result_that_changes_in_the_timed_loop_is_not_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ours: torch's own backward functions may add in any order."""
    calls = 0

    def count(i: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.tensor([calls])

    def made(*sizes: Any) -> Measured:
        same: Call = lambda i: torch.tensor([2.0])  # noqa: E731
        return Measured({"ours": count, "ours, other": same, "eager": count}, lambda matrix, copy: 1.0)

    use_maker(made, monkeypatch)
    output = Output(None)
    output.about = ABOUT
    measure([Case("embed", "base", "one", "bfloat16")], output, 3, fake_timer, "cpu")
    ours, other, eager = output.rows
    assert ours.found == Missing("its result after the timed loop differs from the one before")
    assert isinstance(other.found, Timing) and isinstance(eager.found, Timing)
    assert other.ours == eager.ours == other.found.median


def test_what_failed_in_the_timed_loop_keeps_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though there is no result to compare after it. Seen red: "its result after the timed loop differs"."""
    calls = 0

    def filling(i: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RuntimeError("out of memory")
        return torch.ones(1)

    def timer(calls: Mapping[str, Call], runs: int, hide_host: bool) -> dict[str, Timing | Missing]:
        return {"ours": Missing("RuntimeError: out of memory")}

    use_maker(lambda *sizes: Measured({"ours": filling}, lambda matrix, copy: 1.0), monkeypatch)
    output = Output(None)
    output.about = ABOUT
    measure([Case("embed", "base", "one", "bfloat16")], output, 3, timer, "cpu")
    assert [row.found for row in output.rows] == [Missing("RuntimeError: out of memory")]


@pytest.mark.usefixtures("fake_makers")
def test_measure_uses_each_dtypes_ceiling() -> None:
    output = Output(None)
    output.about = ABOUT
    cases = [Case("encoder", "base", "one", dtype) for dtype in ("bfloat16", "float32")]
    measure(cases, output, 3, fake_timer, "cpu")
    assert [row.floor for row in output.rows if row.who == "ours"] == [5e-4, 5e-2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command on a CPU: kernels pass, ceilings and times are fake."""
    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    monkeypatch.setattr(bench, "kernel_rows", lambda dtypes, quick: iter(()))
    monkeypatch.setattr(bench, "environment", dict)
    monkeypatch.setattr(bench, "ceilings", lambda dtypes, runs: ABOUT)
    monkeypatch.setattr(bench, "measure", lambda *rest, **yours: measure(*rest, fake_timer, "cpu", **yours))


@pytest.mark.usefixtures("gpu")
def test_an_interruption_loses_only_the_current_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the third case; figures are still drawn."""
    made = 0

    def interrupted(*sizes: Any) -> Measured:
        nonlocal made
        made += 1
        if made == 3:
            raise KeyboardInterrupt
        return maker(*sizes)

    use_maker(interrupted, monkeypatch)
    assert main(["bench", "--all", "--output", str(tmp_path)]) == 130
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert [row["what"] for row in saved["rows"]] == ["encoder"] * 3 + ["training_step"] * 3
    assert saved["environment"]["batches"].startswith("ragged: 64 rows of mean length 128, padded to 512; dense:")
    drawn = ("encoder", "share", "training_step") if importlib.util.find_spec("matplotlib") else ()
    figures = [f"bench-{name}-bfloat16.png" for name in drawn]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*figures, "bench.json", "bench.md"]


@pytest.mark.usefixtures("gpu", "fake_makers")
def test_a_second_run_needs_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "bench",
        "--quick",
        "--operation",
        "bias_gelu",
        "--model",
        "base",
        "--case",
        "one",
        "--output",
        str(tmp_path),
    ]
    assert main(argv) == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("| bias_gelu | base | one   | bfloat16 | cuDNN")
    first = (tmp_path / "bench.json").read_bytes()
    assert {row.get("runs") for row in json.loads(first)["rows"]} == {bench.QUICK_RUNS, None}
    assert main([*argv, "--dtype", "float32"]) == 2
    assert "exists: choose another directory or pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "bench.json").read_bytes() == first
    assert main([*argv, "--dtype", "float32", "--overwrite"]) == 0
    assert {row["dtype"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]} == {"float32"}


@pytest.mark.usefixtures("fake_makers")
def test_measure_resets_the_compiler_after_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile caches by function: more shapes would make the code dynamic or exceed the recompilation limit."""
    log: list[str] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: log.append("reset"))

    def timer(*rest: Any) -> dict[str, Timing | Missing]:
        log.append("timed")
        return {}

    output = Output(None)
    output.about = ABOUT
    measure([Case("embed", "base", "one", "bfloat16")] * 2, output, 3, timer, "cpu")
    assert log == ["timed", "reset"] * 2


@pytest.mark.usefixtures("gpu", "fake_makers")
def test_without_matplotlib_there_are_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", "--operation", "embed", "--case", "one", "--output", str(tmp_path)]) == 0
    assert "no figures: import of matplotlib" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md"]


def test_a_case_that_cannot_be_built_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*sizes: Any) -> Measured:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "makers", lambda: {"embed": broken, "bias_gelu": maker})
    output = Output(None)
    output.about = ABOUT
    measure([Case(what, "base", "one", "bfloat16") for what in ("embed", "bias_gelu")], output, 3, fake_timer, "cpu")
    assert output.rows[0].found == Missing("OutOfMemoryError: CUDA out of memory")
    assert [row.who for row in output.rows] == ["all", "ours", "eager", "cuDNN"]


MINE = """
import torch
import torch.nn.functional as F


def norm(x, gamma, beta, eps):
    return F.layer_norm(x.float(), x.shape[-1:], gamma.float(), beta.float(), eps).to(x.dtype)


def no_beta(x, gamma, beta, eps):
    return F.layer_norm(x, x.shape[-1:], gamma, None, eps)


def fused(x, bias, residual, gamma, beta, eps):
    return norm(x.float() + bias.float() + residual.float(), gamma, beta, eps).to(x.dtype)


number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(MINE, encoding="utf-8")
    return str(file)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("op", "name", "others"), [
    ("layer_norm", "norm", ["yours", "eager", "compile"]),
    ("add_layer_norm", "fused", ["ours", "yours", "eager", "compile"]),
])  # fmt: skip
def test_a_function_of_ones_own_is_checked_then_timed(
    op: str, name: str, others: list[str], mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next to the same competitors, on the same inputs, as its results show; torch.compile is left out."""
    log: list[str] = []
    monkeypatch.setattr(bench, "check", lambda f, op, dtypes: log.append(f"{f.__name__} {op} {dtypes[0]}"))
    for module in ("workloads", "gradient_workloads", "yours"):
        monkeypatch.setattr(f"ernie_m.kernels.benchmark.{module}.compiled", lambda function: function)
    argv = ["bench", f"{mine}:{name}", "--op", op, "--model", "base", "--case", "one", "--dtype", "float32"]
    assert main([*argv, "--output", str(tmp_path / "made")]) == 0
    assert log == [f"{name} {op} float32"]
    rows = json.loads((tmp_path / "made" / "bench.json").read_text())["rows"]
    assert [row["who"] for row in rows] == others
    assert all(row["floor_s"] > 0 and row["ours_s"] == 1e-3 for row in rows)
    assert [row["rms_from_ours"] for row in rows[1:]] == [pytest.approx(0.0, abs=1e-6)] * (len(rows) - 1)


@pytest.mark.parametrize("op", list(makers_of_yours()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_workload_calls_a_function_as_its_operation_says(
    op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments have the number, the axes and the dtypes of the operation's own inputs."""
    for module in ("workloads", "gradient_workloads", "loss_workloads", "yours"):
        monkeypatch.setattr(f"ernie_m.kernels.benchmark.{module}.compiled", lambda function: function)
    monkeypatch.setattr("ernie_m.kernels.benchmark.measured.copies_beyond_cache", lambda bytes_of_one: 1)
    for module in ("workloads", "gradient_workloads", "loss_workloads"):
        monkeypatch.setattr(f"ernie_m.kernels.benchmark.{module}.VOCABULARY", 1000)
    batch = dataclasses.replace(BATCHES["one"], lengths=(3, 5), padded=8)
    made = makers_of_yours()[op](SIZES["base"], batch, dtype, "cpu")
    got: list[Any] = []
    result = made.with_yours(lambda *arguments: got.extend(arguments)).calls[YOURS](0)
    assert result is None
    expected = operations.fixed_case(op, "float32").inputs.values()
    assert [getattr(x, "ndim", None) for x in got] == [getattr(x, "ndim", None) for x in expected]
    floats = [x.dtype for x in got if isinstance(x, torch.Tensor) and x.is_floating_point()]
    assert set(floats) == {dtype} and made.floor(1e12, 1e9) > 0


@pytest.mark.usefixtures("gpu")
def test_a_wrong_function_of_ones_own_is_not_timed(
    mine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "ceilings", lambda *rest: pytest.fail("timed a wrong function"))
    assert main(["bench", f"{mine}:no_beta", "--op", "layer_norm", "--dtype", "float32"]) == 1
    assert "wrong kernel, nothing timed: no_beta does not compute layer_norm: " in capsys.readouterr().err


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{mine}:norm"], "FILE.py:NAME: expected --op with it"),
        (["--op", "layer_norm"], "--op: expected FILE.py:NAME with it"),
        (["{mine}:norm", "--op", "attention_head"], "argument --op: invalid choice: 'attention_head'"),
        (["{mine}:norm", "--op", "gelu", "--operation", "embed"], "--op: expected no --operation with it"),
        (["{mine}:number", "--op", "gelu"], "mine.py: expected a function named number, got 3"),
        (["{mine}:none", "--op", "gelu"], "mine.py: expected a function named none, got none"),
        (["nowhere.py:f", "--op", "gelu"], "nowhere.py: no such file"),
        (["{mine}", "--op", "gelu"], "function: expected FILE.py:NAME, got "),
    ],
)
def test_what_bench_cannot_measure_is_named(
    argv: list[str], message: str, mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *(argument.format(mine=mine) for argument in argv)]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1 and message in errors


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--threads", "3"], "--threads: expected --cpu with it"),
        (["--overwrite"], "--overwrite: expected --output with it"),
        (["--all", "--dtype", "float32"], "--all: expected no --dtype with it, as it means every dtype"),
        (["--saved", "{mine}", "--output", "new"], "--saved: expected no --output with it, as it would have no effect"),
        (["--saved", "{mine}", "--quick"], "--saved: expected no --quick with it, as it would have no effect"),
        (["--saved", "{mine}", "--cpu"], "--cpu: expected no --saved with it, as it would have no effect"),
        (["--cpu", "--model", "base"], "--cpu: expected no --model with it, as it would have no effect"),
        (["--cpu", "--all"], "--cpu: expected no --all with it, as it would have no effect"),
        (["--cpu", "{mine}", "--op", "gelu"], "--cpu: expected no --op with it, as it would have no effect"),
        (["{mine}:norm", "--cpu"], "--cpu: expected no FILE.py:NAME with it, as it would have no effect"),
        (["--sweep", "--threads", "3"], "--sweep: expected no --threads with it, as it would have no effect"),
    ],
)
def test_an_option_without_effect_is_refused(
    argv: list[str], message: str, mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen red, each: ignored."""
    monkeypatch.setattr(bench, "plan", lambda *rest: pytest.fail("measured"))
    monkeypatch.setattr(bench.cpu, "run", lambda *rest: pytest.fail("measured"))
    assert main(["bench", *(argument.format(mine=mine) for argument in argv)]) == 2
    assert capsys.readouterr() == ("", f"ernie_m.kernels: error: {message}\n")


def test_every_option_of_bench_has_an_effect_somewhere() -> None:
    """A new one is refused in every mode until a mode names it."""
    measuring = {"operation", "quick", *bench.CASES, *bench.SAVING}
    named = measuring.union(bench.MODES, bench.NEEDED, *bench.MODES.values())
    assert named == vars(arguments()).keys()


def test_a_workload_without_a_plug_is_named() -> None:
    with pytest.raises(ValueError, match="expected a workload with `plug`"):
        maker(None, None, torch.float32, "cpu").with_yours(abs)


def test_bench_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "INTERPRETED", False)
    assert main(["bench", "--output", str(tmp_path / "results")]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1
    assert "cannot time kernels: there is no GPU (`compile` reports" in errors
    assert not (tmp_path / "results").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    bench.require_gpu()
    monkeypatch.setattr(bench, "HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="triton is not installed"):
        bench.require_gpu()
    monkeypatch.setattr(bench, "INTERPRETED", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        bench.require_gpu()


def test_a_wrong_kernel_stops_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one kernel that omits its bias; the check for a GPU is skipped."""
    row = operations.OPERATIONS["bias_gelu"]
    wrong = dataclasses.replace(row, kernel=lambda x, bias: torch.nn.functional.gelu(x), examples=5)
    monkeypatch.setattr(operations, "OPERATIONS", {"bias_gelu": wrong})
    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    assert bench.kernel_rows is kernel_rows
    monkeypatch.setattr(bench, "ceilings", lambda *rest: pytest.fail("timed a wrong kernel"))
    assert main(["bench", "--dtype", "float32", "--output", str(tmp_path / "new" / "folder")]) == 1
    assert "wrong kernel, nothing timed: bias_gelu, float32" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [[], ["--sweep"], ["--repeats", "2"], ["--cpu", "no such row"]])
def test_bench_that_fails_before_it_saves_leaves_no_directory(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen red, and for a wrong kernel. What was there before stays, also if it is empty."""

    def fails() -> None:
        assert (tmp_path / "old" / "new" / "folder").is_dir()
        raise RuntimeError("no memory")

    (tmp_path / "old").mkdir()
    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    monkeypatch.setattr(bench, "environment", lambda: {"gpu": "none"})
    monkeypatch.setattr(bench, "prepare", fails)
    assert main(["bench", *more, "--output", str(tmp_path / "old" / "new" / "folder")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


@pytest.mark.parametrize("more", [["--sweep"], ["--cpu", "no such row"], []])
def test_an_output_that_is_no_directory_is_refused(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file, or a link to itself. Seen red: "File exists"."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "loop"):
        assert main(["bench", *more, "--output", str(tmp_path / name)]) == 2
        said = f"{tmp_path / name}: expected a directory, or the name of a new one, got a file or a link"
        assert capsys.readouterr().err == f"ernie_m.kernels: error: {said}\n"

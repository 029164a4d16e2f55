"""The benchmark, all but the GPU: what is counted, who takes part, what is printed, saved and refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_m.kernels import bench, bench_cases, bench_models, bench_operations, bench_report, compile_report
from ernie_m.kernels.bench_cases import BATCHES, SIZES, Batch, Size
from ernie_m.kernels.bench_timing import Missing, Timing, copies_beyond_cache, summary, usable
from ernie_m.kernels.cli import main

TINY = Size("tiny", layers=2, hidden=128, inner=64)
FEW = Batch("3 rows", (5, 1, 3), 5)
ABOUT = {"matrix_flops_per_s": 1e12, "copy_bytes_per_s": 1e9}


def fake_timer(calls: Mapping[str, Callable[[int], Any]], runs: int, hide_host: bool) -> dict[str, Timing | Missing]:
    """Calls everyone, as the real one does, and says who could not run; the times are made up: 1 ms, 2 ms, ..."""
    missing = usable(calls)
    return {name: missing.get(name, Timing(i * 1e-3, 0.0, 1.0, runs)) for i, name in enumerate(calls, start=1)}


def test_the_counts_are_those_done_by_hand() -> None:
    """64 x 512 tokens of the base model in bfloat16, per layer; and as ragged rows of mean length 128."""
    base, dense = SIZES["base"], BATCHES["dense"]
    products = dict(bench_cases.products(base, dense.tokens, 2))
    assert sum(work.flops for work in products.values()) == 463_856_467_968
    assert sum(work.bytes for work in products.values()) == 819_462_144
    attention = bench_cases.attention(base, dense, 2)
    assert attention.flops == 51_539_607_552
    assert attention.bytes - 4 * 12 * 32_768 == 201_326_592
    assert bench_cases.bias_gelu(base, dense.tokens, 2).bytes == pytest.approx(402_653_184, rel=1e-4)
    assert bench_cases.add_layer_norm(base, dense.tokens, 2).bytes == pytest.approx(150_994_944, rel=2e-3)
    ragged = BATCHES["ragged"]
    assert ragged.tokens == 64 * 128
    assert max(ragged.lengths) <= 512
    spread = ragged.pairs / 64 / 128**2 - 1  # the square of the coefficient of variation
    assert 0.6 < spread**0.5 < 0.9


def test_a_models_floor_is_the_sum_of_its_steps() -> None:
    # A copy rate without end leaves the products and attention: 12 layers of 464 + 51.5 GF.
    floor = bench_cases.model_floor(SIZES["base"], BATCHES["dense"], 2, 1e12, float("inf"))
    assert floor == pytest.approx(12 * (463.856467968 + 51.539607552) * 1e-3)


def test_summary_gives_median_and_percentiles() -> None:
    timing = summary([float(x) for x in range(11)])
    assert (timing.low, timing.median, timing.high, timing.runs) == (1.0, 5.0, 9.0, 11)


def test_who_cannot_run_is_named_with_the_reason() -> None:
    def broken(i: int) -> None:
        raise NotImplementedError("no such backend\nand more lines")

    found = usable({"fine": lambda i: i, "broken": broken})
    assert found == {"broken": Missing("NotImplementedError: no such backend")}


def test_inputs_rotate_and_there_are_at_least_two() -> None:
    assert 2 <= copies_beyond_cache(10**12) <= copies_beyond_cache(1) <= 64


@pytest.mark.parametrize("batch", [FEW, Batch("2 x 4", (4, 4), 4)])
def test_every_operation_has_ours_and_torchs(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(bench_operations, "VOCABULARY", 50)
    cases = list(bench_operations.operations(TINY, batch, torch.float32, "cpu", set(bench_operations.OPERATIONS)))
    assert [case.what for case in cases] == list(bench_operations.OPERATIONS)
    for case in cases:
        found = fake_timer(case.calls, 2, True)
        assert isinstance(found["ours"], Timing), found["ours"]
        others = {name: t for name, t in found.items() if name not in ("ours", "torch varlen") and "SDPA" not in name}
        assert all(isinstance(t, Timing) for t in others.values()), found
        # All but attention's competitors compute the same from the same inputs.
        results = [case.calls[name](1) for name in ("ours", *others)]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)


def test_every_encoder_computes_the_same_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(bench_cases, "VOCABULARY", 50)
    torch.manual_seed(0)
    case = bench_models.encoder(TINY, FEW, torch.float32, "cpu")
    found = fake_timer(case.calls, 2, False)
    missing = {name for name, t in found.items() if isinstance(t, Missing)}
    # These need a GPU, and say so; transformers is not there on every Python.
    assert missing - {"transformers, float32"} == {"compile + torch varlen, packed", "ours, packed, CUDA graph"}
    valid = torch.arange(5) < torch.tensor(FEW.lengths)[:, None]
    expected = case.calls["ours, packed"](3)
    for name in found.keys() - missing - {"ours, packed"}:
        torch.testing.assert_close(case.calls[name](3)[valid], expected, rtol=1e-4, atol=1e-4)


def test_what_is_measured_is_printed_and_saved_after_each_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interruption in the second case leaves the first one's results."""

    def broken(i: int) -> None:
        raise RuntimeError("out of memory")

    case = bench_operations.Measured(
        "bias_gelu", "tiny", "3 rows", {"ours": lambda i: i, "eager": lambda i: i, "cuDNN": broken}, lambda m, c: 5e-4
    )

    def interrupted() -> Any:
        yield "bfloat16", case
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.measure(interrupted(), ABOUT, 7, fake_timer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md"]
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["environment"] == ABOUT
    assert [row["who"] for row in saved["rows"]] == ["ours", "eager", "cuDNN"]
    assert saved["rows"][1]["median_s"] == 2e-3
    assert saved["rows"][2]["not_measured"] == "RuntimeError: out of memory"
    printed = capsys.readouterr().out
    assert "2.00 x" in printed  # eager against ours
    assert "50%" in printed  # ours: half a millisecond of work in one
    assert "25%" in printed
    assert "not measured: RuntimeError: out of memory" in printed


def test_results_are_never_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"bench.json exists: name another folder, or --overwrite"):
        bench.check_output(tmp_path, overwrite=False)
    bench.check_output(tmp_path, overwrite=True)
    bench.check_output(tmp_path / "a" / "b", overwrite=False)
    assert (tmp_path / "a" / "b").is_dir()


def test_figures_are_drawn_for_each_case(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        bench_report.Row(what, "base", "1 x 128", "bfloat16", who, Timing(t, t, t, 9), 1e-3, 2e-3)
        for what in ("encoder", "embed")
        for who, t in (("ours", 2e-3), ("eager", 4e-3))
    ]
    made = bench_report.figures(tmp_path, rows)
    assert [path.name for path in made] == ["encoder-base-1_x_128-bfloat16.png", "embed-base-1_x_128-bfloat16.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_without_a_gpu_the_compile_report_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    asked: list[argparse.Namespace] = []

    def report(arguments: argparse.Namespace) -> int:
        asked.append(arguments)
        return 0

    monkeypatch.setattr(compile_report, "run", report)
    assert main(["bench"]) == 0
    assert "no GPU to time anything on" in capsys.readouterr().err
    assert compile_report.command_line(asked[0]) == ["compile"]


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Past the question for a GPU, with one kernel that forgets its bias."""
    from ernie_m.kernels import verify

    wrong = {"bias_gelu": (lambda x, bias: torch.nn.functional.gelu(x), 5)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "INTERPRETED", False)
    monkeypatch.setattr(bench, "kernel_rows", lambda dtypes, quick: verify.kernel_rows(dtypes, quick, wrong))
    monkeypatch.setattr(bench, "ceilings", lambda runs: pytest.fail("timed all the same"))
    assert main(["bench", "--dtype", "float32"]) == 1
    assert "not timed, as it is wrong: bias_gelu, float32" in capsys.readouterr().err

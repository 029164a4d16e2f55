"""A sweep tries what it says, leaves the kernels as they were, and suggests nothing that is wrong or not faster."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.kernels import attention, attention_groups, attention_vjp, gelu
from ernie_m.kernels.benchmark import runner
from ernie_m.kernels.benchmark import sweep as bench_sweep
from ernie_m.kernels.benchmark.measured import Measured
from ernie_m.kernels.benchmark.report import Case
from ernie_m.kernels.benchmark.sweep import BEST, WRONG, Choices, Tried, described, difference, neighbours, suggestions
from ernie_m.kernels.benchmark.timing import Call, Missing, Timing
from ernie_m.kernels.benchmark.work import Batch, Size
from ernie_m.kernels.benchmark.workloads import WORKLOADS
from ernie_m.kernels.checking.guards import Guarded, poisoned
from ernie_m.kernels.checking.watching import watching
from ernie_m.kernels.cli import bench
from ernie_m.kernels.cli.program import main
from ernie_m.kernels.runtime.variants import Configuration

# Those that the interpreter gets through in seconds.
QUICK = ("bias_gelu", "add_layer_norm", "packed_attention", "dropout_vjp")
numbers = st.sampled_from([1, 2, 4, 8, 16])
blocks = st.dictionaries(st.sampled_from(["BM", "BN", "ROWS", "COLUMNS", "BLOCK", "PIECE"]), numbers, min_size=1)
configurations = st.builds(
    lambda blocks, loop, warps, stages: Configuration({**blocks, **loop}, warps, stages),
    blocks,
    st.sampled_from([{}, {"LOOP": True}, {"LOOP": False}]),
    numbers,
    st.integers(1, 5),
)


@given(configurations)
def test_neighbours_differ_in_one_number_that_may_change(chosen: Configuration) -> None:
    found = neighbours(chosen)
    assert len({described(c) for c in [chosen, *found]}) == len(found) + 1
    for c in found:
        old, new = ({**x.blocks, "warps": x.num_warps, "stages": x.num_stages} for x in (chosen, c))
        (name,) = (name for name in old if old[name] != new[name])
        assert name not in ("BLOCK", "PIECE", "LOOP") and (name != "BN" or old.get("LOOP", True))
        assert new[name] in ((old[name] - 1, old[name] + 1) if name == "stages" else (old[name] // 2, 2 * old[name]))
        assert new[name] >= 1
    n, m = chosen.num_warps, chosen.num_stages
    assert {c.num_warps for c in found} - {n} == {k for k in (n // 2, 2 * n) if 1 <= k <= 16}
    assert {c.num_stages for c in found} - {m} == {k for k in (m - 1, m + 1) if 1 <= k <= 5}


def chosen_by(module: Any) -> Any:
    """What the module's launches ask."""
    return module.configuration("sm_90", torch.bfloat16, 64, 512)


def test_choices_pass_through_wherever_a_function_is_used_and_are_restored() -> None:
    before = attention.configuration, attention_groups.configuration, attention_vjp.keys_configuration
    usual, other = chosen_by(attention), Configuration({"BM": 1}, 1)
    with pytest.raises(KeyError), Choices() as choices:
        assert chosen_by(attention) == chosen_by(attention_groups) == usual
        ((use, found),) = choices.seen.items()
        assert found == usual and use[1] == ("sm_90", torch.bfloat16, 64, 512)
        choices.instead = {use: other}
        assert chosen_by(attention) == chosen_by(attention_groups) == other
        # Other arguments are not concerned.
        assert attention.configuration("sm_90", torch.bfloat16, 64, 64).blocks["BM"] == 64
        raise KeyError
    assert before == (attention.configuration, attention_groups.configuration, attention_vjp.keys_configuration)
    assert chosen_by(attention) == usual


def test_of_choices_that_ask_others_the_outer_one_is_seen() -> None:
    with Choices() as choices:
        attention_groups.chosen("sm_90", torch.bfloat16, 64)
    assert [use[0].__name__ for use in choices.seen] == ["chosen"]


def timing(median: float, spread: float = 0.01) -> Timing:
    return Timing(median, median * (1 - spread), median * (1 + spread), 10)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that the interpreter gets through, with rows of one token and rows longer than one block."""
    monkeypatch.setattr(runner, "SIZES", {"base": Size(1, 64, 96)})
    monkeypatch.setattr(runner, "BATCHES", {"ragged": Batch("tiny", (70, 1, 33), 70)})


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "what", [what if what in QUICK else pytest.param(what, marks=pytest.mark.all) for what in WORKLOADS]
)
def test_every_neighbour_computes_the_same(what: str, dtype: str) -> None:
    """In Triton's interpreter: what a sweep times is the operation, and no kernel leaves its arrays, which would end
    the process on a GPU."""
    tried: list[str] = []

    def timer(calls: Mapping[str, Call], runs: int, hide_host: bool) -> dict[str, Timing | Missing]:
        for name, call in calls.items():
            allocated: list[Guarded] = []
            with watching((allocated,)) as watch, poisoned(allocated):
                call(0)
            assert watch.grids and watch.damage is None, f"{name}: {watch.damage}"
            assert not [array.name for array in allocated if array.outside_damage], name
            tried.append(name)
        return dict.fromkeys(calls, timing(1.0))

    (*rounds,) = bench_sweep.sweep([Case(what, "base", "ragged", dtype)], 1, timer, "cpu")
    rows = [row for rows in rounds for row in rows]
    assert len(rows) == len(tried) >= 3 and {row.round for row in rows} == {1}
    assert {row.verdict for row in rows} == {BEST, ""}
    assert max(row.difference for row in rows if row.difference is not None) <= 1.0
    assert suggestions(rows) == []


CASE = Case("bias_gelu", "base", "ragged", "float32")


def climbed(
    speed: Callable[[Configuration], float], result: Callable[[Configuration], float], monkeypatch: pytest.MonkeyPatch
) -> list[list[Tried]]:
    """The rounds of a sweep of GELU's configuration, where a call takes `speed` and returns `result`."""
    used: list[Configuration] = []

    def call(i: int) -> torch.Tensor:
        used.append(gelu.configuration(96, "sm_90"))
        return torch.tensor([1.0, result(used[-1])])

    def timer(calls: Mapping[str, Call], runs: int, hide_host: bool) -> dict[str, Timing | Missing]:
        found: dict[str, Timing | Missing] = {}
        for name, run in calls.items():
            run(1)
            assert described(used[-1]) == name
            time = speed(used[-1])
            found[name] = timing(time) if time else Missing("no room")
        return found

    def unused(i: int) -> None:
        raise AssertionError("only the first of ours is swept")

    made = Measured({"eager": unused, "ours": call, "ours, other": unused}, lambda matrix, copy: 1.0)
    monkeypatch.setattr(runner, "makers", lambda: {"bias_gelu": lambda *sizes: made})
    return list(bench_sweep.sweep([CASE], 10, timer, "cpu"))


def test_a_sweep_climbs_to_what_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps from the module's choice: 4 warps to 8, then one stage to two. It is timed again in each round."""
    module = gelu.configuration(96, "sm_90")
    rounds = climbed(
        lambda c: 4.0 - 2.0 * (c.num_warps == 8) - 1.0 * ((c.num_warps, c.num_stages) == (8, 2)) + (c.num_warps > 8),
        lambda c: 1.0,
        monkeypatch,
    )
    best = [[row.configuration for row in rows if row.verdict == BEST] for rows in rounds]
    assert [len(names) for names in best] == [1, 1, 1] and best[1] == best[2]
    assert best[0][0].endswith("warps 8, stages 1") and best[1][0].endswith("warps 8, stages 2")
    for number, rows in enumerate(rounds, 1):
        assert {row.round for row in rows} == {number} and {row.module for row in rows} == {4.0}
        assert rows[0].configuration == described(module)
    names = [row.configuration for rows in rounds for row in rows]
    assert names.count(described(module)) == 3 and names.count(best[0][0]) == names.count(best[1][0]) == 2
    assert len(set(names)) == len(names) - 4
    (line,) = suggestions([row for rows in rounds for row in rows])
    assert line == (
        f"bias_gelu, base, ragged, float32: gelu.configuration(96, sm_90): {best[1][0]} "
        f"takes 0.25 x the time of {described(module)}"
    )


def test_what_is_wrong_fails_or_wins_by_less_than_the_spread_is_not_best(monkeypatch: pytest.MonkeyPatch) -> None:
    module = gelu.configuration(96, "sm_90")
    for faster in (0.985, 1.0, 1.5):
        (rows,) = climbed(lambda c: 1.0 if c == module else faster, lambda c: 1.0, monkeypatch)  # noqa: B023
        assert [row.configuration for row in rows if row.verdict] == [described(module)]
    for other in (1.001, float("nan"), float("inf")):
        results = {described(module): 1.0}
        (rows,) = climbed(
            lambda c: 1.0 if c == module else 0.5,
            lambda c: results.get(described(c), other),  # noqa: B023
            monkeypatch,
        )
        assert [row.verdict for row in rows] == [BEST] + [WRONG] * (len(rows) - 1)
        assert suggestions(rows) == []
    (rows,) = climbed(lambda c: 1.0 if c == module else 0.0, lambda c: 1.0, monkeypatch)
    assert rows[1].found == Missing("no room") and "not measured: no room" in rows[1].cells()
    assert rows[1].as_json()["not_measured"] == "no room"


def test_a_difference_is_relative_and_never_nan() -> None:
    half = torch.tensor([1.0, 1.0], dtype=torch.bfloat16)
    assert difference([half], [half]) == 0.0
    assert difference([half * (1 + 2.0**-7)], [half]) == pytest.approx(1.0)
    one, zero = torch.ones(3), torch.zeros(3)
    assert difference([one, one * 1.00002], [one, one]) == pytest.approx(2.0, rel=0.01)
    assert difference([zero], [zero]) == 0.0
    assert difference([one], [zero]) == difference([one * float("nan")], [one]) == float("inf")
    with pytest.raises(ValueError, match="zip"):
        difference([one], [one, one])


def test_a_case_that_cannot_be_built_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def unbuilt(*sizes: Any) -> Measured:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "makers", lambda: {"bias_gelu": unbuilt})
    ((row,),) = bench_sweep.sweep([CASE], 10, lambda *given: {}, "cpu")
    assert row.found == Missing("RuntimeError: out of memory")


def test_the_command_prints_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Tried(CASE, "gelu.configuration(96, sm_90)", 1, "ROWS=1, warps 4, stages 1", timing(2e-5), 2e-5, 0.0, "")
    found = timing(1e-5)
    better = Tried(**{**vars(row), "configuration": "ROWS=2, warps 4, stages 1", "found": found, "verdict": BEST})
    planned: list[Case] = []

    def swept(cases: list[Case], runs: int) -> Any:
        planned.extend(cases)
        assert runs == bench.QUICK_RUNS
        yield [row, better]

    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    monkeypatch.setattr(bench, "environment", lambda: {"gpu": "none"})
    monkeypatch.setattr(bench, "sweep", swept)
    argv = ["bench", "--sweep", "--quick", "--model", "base", "--case", "one", "--output", str(tmp_path / "made")]
    assert main(argv) == 0
    assert [case.what for case in planned] == list(WORKLOADS)
    saved = json.loads((tmp_path / "made" / "sweep.json").read_text())
    assert saved["environment"] == {"gpu": "none"} and len(saved["sweep"]) == 2
    assert saved["sweep"][1] == {
        **asdict(CASE), "chooser": row.chooser, "round": 1, "configuration": better.configuration, "median_s": 1e-5,
        "p10_s": found.low, "p90_s": found.high, "runs": 10, "module_s": 2e-5, "difference": 0.0, "verdict": BEST,
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "10.0 µs" in printed and "0.50 x" in printed
    assert printed.endswith(
        "faster than the modules' choices:\nbias_gelu, base, ragged, float32: gelu.configuration(96, sm_90): "
        "ROWS=2, warps 4, stages 1 takes 0.50 x the time of ROWS=1, warps 4, stages 1\n"
    )
    assert main(argv) == 2
    assert "sweep.json exists: choose another directory or pass --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--repeats", "2"], ["--cpu"], ["--saved", "x"], ["x.py:f", "--op", "gelu"]])
def test_what_does_not_go_with_a_sweep_is_refused(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--sweep", *more]) == 2
    assert "--sweep: expected no --" in capsys.readouterr().err

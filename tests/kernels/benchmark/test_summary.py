"""Ratios, targets, the fastest of torch's own, and figures."""

from __future__ import annotations

import pytest

from ernie_m.kernels.bench_figures import figures
from ernie_m.kernels.bench_report import Case, Row
from ernie_m.kernels.bench_summary import ratios, summary_table
from ernie_m.kernels.bench_timing import Missing, Timing


def rows(case: Case, held: int = 0, **milliseconds: float | None) -> list[Row]:
    """Rows of these medians, of a floor of 1 ms; None: not measured. Peak memory: as many bytes as milliseconds."""
    found = []
    for who, t in milliseconds.items():
        timing = Missing("no") if t is None else Timing(t * 1e-3, t * 0.9e-3, t * 1.1e-3, 5, int(t))
        found.append(Row(case, who, timing, 1e-3, held=held))
    return found


def said(found: list[Row]) -> dict[str, tuple[str, ...]]:
    return {ratio.what: ratio.cells()[2:] for ratio in ratios(found)}


ENCODER = {
    "ours, packed": 10.0,
    "eager, padded": 59.0,
    "compile + SDPA, padded": 30.0,
    "compile + torch varlen, packed": None,
}


def test_the_encoders_targets() -> None:
    found = said(rows(Case("encoder", "base", "ragged", "bfloat16"), 30, **ENCODER))
    assert found == {
        "time of eager, padded over ours, packed": ("5.90 x", "at least 6.00 x", "missed"),
        "time of compile + SDPA, padded over ours, packed": ("3.00 x", "at least 3.00 x", "met"),
        "peak memory of ours, packed, against eager, padded": ("0.17 x", "at most 0.40 x", "met"),
        "the same, weights counted too": ("0.45 x", "", ""),
    }


@pytest.mark.parametrize(
    "case", [("large", "ragged", "bfloat16"), ("base", "ragged", "float16"), ("base", "small", "bfloat16")]
)
def test_other_cases_have_ratios_but_no_targets(case: tuple[str, str, str]) -> None:
    found = said(rows(Case("encoder", *case), **ENCODER))
    assert found["time of eager, padded over ours, packed"] == ("5.90 x", "", "")


def test_one_row_is_judged_by_its_graph() -> None:
    found = said(rows(Case("encoder", "base", "one", "bfloat16"), **{**ENCODER, "ours, packed, CUDA graph": 5.0}))
    assert found["time of eager, padded over ours, packed, CUDA graph"] == ("11.80 x", "at least 4.00 x", "met")
    assert found["time of eager, padded over ours, packed"] == ("5.90 x", "", "")


def test_too_much_memory_misses() -> None:
    found = said(rows(Case("encoder", "base", "ragged", "bfloat16"), **{"ours, packed": 41.0, "eager, padded": 100.0}))
    assert found["peak memory of ours, packed, against eager, padded"] == ("0.41 x", "at most 0.40 x", "missed")


ATTENTION = {"ours": 10.0, "torch varlen": 9.4, "SDPA flash": None, "SDPA cuDNN": 8.0, "SDPA math": 90.0}


def test_attention_names_the_fastest_of_torchs() -> None:
    """Of a ragged batch, the rectangle is another layout, with more to do."""
    found = said(rows(Case("packed_attention", "base", "dense", "bfloat16"), **ATTENTION))
    assert found == {
        "time of torch's fastest (SDPA cuDNN, 8.000 ms) over ours": ("0.80 x", "at least 0.95 x", "missed")
    }
    found = said(rows(Case("packed_attention", "base", "ragged", "bfloat16"), **ATTENTION))
    assert found == {
        "time of torch's fastest packed (torch varlen, 9.400 ms) over ours": ("0.94 x", "at least 0.95 x", "missed"),
        "time of torch's fastest dense (SDPA cuDNN, 8.000 ms) over ours": ("0.80 x", "", ""),
    }


@pytest.mark.parametrize(
    ("t", "found"), [(1.17, ("85%", "at least 85%", "met")), (1.2, ("83%", "at least 85%", "missed"))]
)
def test_kernels_that_only_move_bytes_have_a_share_of_the_copy_rate(t: float, found: tuple[str, ...]) -> None:
    case = Case("bias_gelu", "base", "dense", "bfloat16")
    assert said(rows(case, ours=t, eager=3.0)) == {"share of the measured copy rate": found}
    assert said(rows(Case("embed", "base", "dense", "bfloat16"), ours=t))["share of the measured copy rate"][1] == ""


def test_where_ours_is_missing_nothing_is_said() -> None:
    for what in ("encoder", "packed_attention", "bias_gelu"):
        found = rows(
            Case(what, "base", "dense", "bfloat16"), **{"ours": None, "ours, packed": None, "eager, padded": 2.0}
        )
        assert summary_table(found) == ""


def test_figures_are_times_for_each_operation_and_shares() -> None:
    pytest.importorskip("matplotlib")
    found: list[Row] = []
    for size in ("base", "large"):
        found += rows(Case("encoder", size, "ragged", "bfloat16"), **ENCODER)
        found += rows(Case("embed", size, "one", "float32"), eager=2.0)
    drawn = dict(figures(found))
    assert list(drawn) == ["bench-encoder-bfloat16.png", "bench-share-bfloat16.png", "bench-embed-float32.png"]
    assert all(content.startswith(b"\x89PNG") for content in drawn.values())
    assert list(figures([])) == []

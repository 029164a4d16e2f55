"""What the rows say in short: how many times faster, against which target, and who of torch's own is fastest.

The targets are for bfloat16 and the base model; the same ratios are shown for whatever else was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .bench_operations import OURS
from .bench_report import Case, Row, aligned, shown
from .bench_timing import Timing

PACKED = f"{OURS}, packed"
GRAPH = f"{OURS}, packed, CUDA graph"
EAGER, COMPILED, VARLEN = "eager, padded", "compile + SDPA, padded", "compile + torch varlen, packed"

# (batch, ours, the other): how many times faster ours is to be.
SPEED = {
    ("ragged", PACKED, EAGER): 6.0,
    ("ragged", PACKED, COMPILED): 3.0,
    ("ragged", PACKED, VARLEN): 1.0,
    ("dense", PACKED, EAGER): 1.9,
    ("dense", PACKED, COMPILED): 1.05,
    ("one", GRAPH, EAGER): 4.0,
}
ATTENTION, COPY_RATE, MEMORY = 0.95, 0.85, 0.4
LARGE_BATCHES = ("dense", "ragged")  # a kernel on the others is over before memory is busy
HEADINGS = ("case", "what", "found", "target", "")


@dataclass(frozen=True)
class Ratio:
    """A finding; `at_most`: the target is a limit from above."""

    case: Case
    what: str
    found: float
    target: float | None
    at_most: bool = False

    def cells(self) -> tuple[str, ...]:
        """A line of the table, under HEADINGS."""
        share = self.what.startswith("share")
        form = "{:.0%}" if share else "{:.2f} x"
        if self.target is None or (self.case.size, self.case.dtype) != ("base", "bfloat16"):
            return (str(self.case), self.what, form.format(self.found), "", "")
        met = self.found <= self.target if self.at_most else self.found >= self.target
        limit = "at most " if self.at_most else "at least "
        verdict = "met" if met else "missed"
        return (str(self.case), self.what, form.format(self.found), limit + form.format(self.target), verdict)


def ratios(rows: Iterable[Row]) -> Iterator[Ratio]:
    """All that can be said, case by case, in the order of the rows."""
    cases: dict[Case, dict[str, Row]] = {}
    for row in rows:
        if isinstance(row.found, Timing):
            cases.setdefault(row.case, {})[row.who] = row
    for case, by_name in cases.items():
        if case.what == "encoder":
            yield from _encoder(case, by_name)
        elif OURS in by_name and case.what == "packed_attention":
            yield from _attention(case, by_name)
        elif OURS in by_name:
            row = by_name[OURS]
            target = COPY_RATE if case.batch in LARGE_BATCHES and case.what != "embed" else None
            yield Ratio(case, "share of the measured copy rate", row.floor / _seconds(row), target)


def _encoder(case: Case, by_name: dict[str, Row]) -> Iterator[Ratio]:
    for ours in (PACKED, GRAPH):
        for other in (EAGER, COMPILED, VARLEN, "compile + SDPA, reduce-overhead"):
            if ours in by_name and other in by_name:
                found = _seconds(by_name[other]) / _seconds(by_name[ours])
                yield Ratio(case, f"time of {other} over {ours}", found, SPEED.get((case.batch, ours, other)))
    if PACKED in by_name and EAGER in by_name:
        mine, others = (row.found.peak for row in (by_name[PACKED], by_name[EAGER]) if isinstance(row.found, Timing))
        if mine is not None and others:
            target = MEMORY if case.batch == "ragged" else None
            yield Ratio(case, f"peak memory of {PACKED}, against {EAGER}", mine / others, target, at_most=True)
            held = by_name[PACKED].held or 0
            yield Ratio(case, "the same, weights counted too", (mine + held) / (others + held), None, at_most=True)


def _attention(case: Case, by_name: dict[str, Row]) -> Iterator[Ratio]:
    """Against torch's own of the same layout; without padding, a rectangle is a packed batch."""
    varlen = [row for name, row in by_name.items() if name == "torch varlen"]
    dense = [row for name, row in by_name.items() if name.startswith("SDPA")]
    # A ragged case measures no rectangle without padding, so there only the packed one has the same layout.
    groups = [("torch's fastest", varlen + dense)] if case.batch != "ragged" else [
        ("torch's fastest packed", varlen), ("torch's fastest dense", dense)
    ]  # fmt: skip
    for i, (label, others) in enumerate(groups):
        if others:
            fastest = min(others, key=_seconds)
            what = f"time of {label} ({fastest.who}, {shown(_seconds(fastest))}) over {OURS}"
            target = ATTENTION if i == 0 and case.batch in LARGE_BATCHES else None
            yield Ratio(case, what, _seconds(fastest) / _seconds(by_name[OURS]), target)


def _seconds(row: Row) -> float:
    assert row.seconds is not None
    return row.seconds


def summary_table(rows: Sequence[Row]) -> str:
    """The ratios; "" if there are none."""
    lines = [ratio.cells() for ratio in ratios(rows)]
    return aligned(HEADINGS, lines) if lines else ""

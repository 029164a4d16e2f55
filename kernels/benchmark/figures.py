"""Figures of the results: bars of time for each case, and the share of the floor that our kernels reach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any

from .measured import OURS
from .report import Row
from .timing import Timing

OUR_COLOUR, OTHERS_COLOUR = "#d1495b", "#8d99ae"


def figures(rows: Sequence[Row]) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, PNG): per dtype, the times of each operation and the encoder, and the shares of the floor.

    Raises ImportError if matplotlib is missing.
    """
    measured = [row for row in rows if isinstance(row.found, Timing)]
    for dtype in dict.fromkeys(row.case.dtype for row in measured):
        members = [row for row in measured if row.case.dtype == dtype]
        for what in dict.fromkeys(row.case.what for row in members):
            yield f"bench-{what}-{dtype}.png", _times([row for row in members if row.case.what == what])
        ours = [row for row in members if row.who.startswith(OURS)]
        if ours:
            yield f"bench-share-{dtype}.png", _shares(ours)


def _blank(height: float, panels: int) -> tuple[Any, Any]:
    """A figure without a window, and its panels, from top to bottom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    return figure, figure.subplots(panels, 1, squeeze=False)[:, 0]


def _png(figure: Any) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _colours(rows: Iterable[Row]) -> list[str]:
    return [OUR_COLOUR if row.who.startswith(OURS) else OTHERS_COLOUR for row in rows]


def _times(rows: Sequence[Row]) -> bytes:
    """One panel per size and batch."""
    cases = list(dict.fromkeys(row.case for row in rows))
    figure, panels = _blank(0.6 + sum(0.8 + 0.24 * sum(row.case == case for row in rows) for case in cases), len(cases))
    figure.suptitle(f"{rows[0].case.what}, {rows[0].case.dtype}: median time, with 10th and 90th percentiles")
    for case, panel in zip(cases, panels, strict=True):
        members = [row for row in rows if row.case == case]
        found = [row.found for row in members if isinstance(row.found, Timing)]
        spread = [[t.median - t.low for t in found], [t.high - t.median for t in found]]
        error = [[max(x, 0.0) * 1e3 for x in side] for side in spread]
        panel.barh([row.who for row in members], [t.median * 1e3 for t in found], xerr=error, color=_colours(members))
        panel.axvline(members[0].floor * 1e3, color="black", linestyle=":", linewidth=1)
        panel.invert_yaxis()
        panel.set_title(f"{case.size}, {case.batch}", loc="left", fontsize="medium")
        panel.set_xlabel("ms (dotted: the floor)", fontsize="small")
    return _png(figure)


def _shares(rows: Sequence[Row]) -> bytes:
    """One bar for each result of ours."""
    labels = [f"{row.case.what}: {row.who}, {row.case.size}, {row.case.batch}" for row in rows]
    shares = [100 * row.floor / row.found.median for row in rows if isinstance(row.found, Timing)]
    figure, (panel,) = _blank(0.8 + 0.2 * len(rows), 1)
    panel.barh(labels, shares, color=OUR_COLOUR)
    panel.invert_yaxis()
    panel.tick_params(axis="y", labelsize="small")
    panel.margins(y=0.01)
    panel.set_xlabel("share of the floor (the roofline), %")
    figure.suptitle(f"Share of the floor, {rows[0].case.dtype}")
    return _png(figure)

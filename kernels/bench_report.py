"""What was measured, for people (a table, figures) and for programs (JSON).

Every row has its time, its spread, how often it is faster or slower than our kernel, and the share of the floor: the
time that the work takes at least, over the time that it took.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ._triton import HAS_TRITON, triton
from .bench_operations import OURS
from .bench_timing import Missing, Timing

JSON_FILE, TABLE_FILE = "bench.json", "bench.md"
HEADINGS = ("what", "size", "batch", "who", "median", "10 to 90 %", "against ours", "of the floor", "peak memory")


@dataclass(frozen=True)
class Row:
    """One competitor on one case. `floor`: seconds."""

    what: str
    size: str
    batch: str
    dtype: str
    who: str
    found: Timing | Missing
    floor: float
    ours: float | None  # the median of ours, the first of them if there are several

    def cells(self) -> tuple[str, ...]:
        """A line of the table, under HEADINGS."""
        case = (self.what, self.size, self.batch, self.who)
        if isinstance(self.found, Missing):
            return (*case, f"not measured: {self.found.why}", "", "", "", "")
        t = self.found
        against = "" if self.ours is None or self.who.startswith(OURS) else f"{t.median / self.ours:.2f} x"
        spread = f"{_time(t.low)} to {_time(t.high)}"
        return (*case, _time(t.median), spread, against, f"{self.floor / t.median:.0%}", f"{t.peak / 2**20:.0f} MiB")

    def as_json(self) -> dict[str, Any]:
        """The same for programs; times in seconds, memory in bytes."""
        row: dict[str, Any] = {name: getattr(self, name) for name in ("what", "size", "batch", "dtype", "who")}
        if isinstance(self.found, Missing):
            return row | {"not_measured": self.found.why}
        t = self.found
        times = {"median_s": t.median, "p10_s": t.low, "p90_s": t.high, "runs": t.runs, "peak_bytes": t.peak}
        return row | times | {"floor_s": self.floor}


def rows_of(case: Any, dtype: str, found: dict[str, Timing | Missing], floor: float) -> list[Row]:
    """The rows of one case, ours first."""
    times = [t.median for name, t in found.items() if name.startswith(OURS) and isinstance(t, Timing)]
    ours = times[0] if times else None
    return [Row(case.what, case.size, case.batch, dtype, name, t, floor, ours) for name, t in found.items()]


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 0.1 else f"{seconds:.3f} s"


def table(rows: Iterable[Row]) -> str:
    """A Markdown table, aligned, so that it reads in a terminal too."""
    cells = [HEADINGS, *(row.cells() for row in rows)]
    # Why something was not measured may be long: it does not make its column wide.
    widths = [
        max(len(line[i]) for line in cells if not line[i].startswith("not measured")) for i in range(len(HEADINGS))
    ]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def environment(ceilings: dict[str, float]) -> dict[str, Any]:
    """Where it was measured: GPU, driver, versions, commit."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks": _output("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton.__version__ if HAS_TRITON else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": _output("git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"),
        "date": datetime.now(timezone.utc).date().isoformat(),
        **ceilings,
    }


def _output(*command: str) -> str | None:
    """What a command prints, one line; None if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def save(directory: Path, about: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write JSON and table, each under a temporary name that is then renamed: what is there is always whole."""
    described = "".join(f"- {name}: {value}\n" for name, value in about.items())
    found = json.dumps({"environment": about, "rows": [row.as_json() for row in rows]}, indent=1) + "\n"
    write(directory / JSON_FILE, found.encode())
    write(directory / TABLE_FILE, f"{described}\n{table(rows)}".encode())


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def figures(directory: Path, rows: Sequence[Row]) -> list[Path]:
    """Bars for each case, times and shares of the floor. None, without an error, where matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return []
    cases: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if isinstance(row.found, Timing):
            cases.setdefault((row.what, row.size, row.batch, row.dtype), []).append(row)
    made = []
    for name, members in cases.items():
        times = [row.found.median * 1e3 for row in members if isinstance(row.found, Timing)]
        labels, colours = [row.who for row in members], ["C1" if row.who.startswith(OURS) else "C0" for row in members]
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.8 + 0.35 * len(members)), sharey=True)
        left.barh(labels, times, color=colours)
        left.axvline(members[0].floor * 1e3, color="k", linestyle=":")
        left.set_xlabel("median, ms (dotted: the floor)")
        right.barh(labels, [100 * row.floor * 1e3 / t for row, t in zip(members, times, strict=True)], color=colours)
        right.set_xlabel("share of the floor, %")
        left.invert_yaxis()
        figure.suptitle(", ".join(name))
        figure.tight_layout()
        path = directory / ("-".join("".join(c if c.isalnum() else "_" for c in part) for part in name) + ".png")
        figure.savefig(path, dpi=100)
        plt.close(figure)
        made.append(path)
    return made

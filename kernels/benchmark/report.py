"""The results, for people (a table) and for programs (JSON), and the environment in which they were measured.

Each row has a time, its spread, its ratio to our time, the share of the floor (minimum time of the work divided by the
measured time), and the difference of its result from ours: the RMS of the difference divided by the RMS of ours. Where
there is no kernel of ours, a user's function takes its place. Peak memory is what a call allocates, beyond weights and
inputs.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..runtime.optional_triton import HAS_TRITON, triton
from .baselines import pin_varlen
from .measured import OURS, YOURS, Measured
from .timing import Missing, Timing

HEADINGS = (
    "what", "size", "batch", "dtype", "who",
    "median", "10 to 90 %", "against ours", "of the floor", "from ours", "peak memory",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What was timed, in the names that the command takes."""

    what: str
    size: str
    batch: str
    dtype: str

    def __str__(self) -> str:
        return ", ".join(astuple(self))


@dataclass(frozen=True)
class Row:
    """One competitor on one case.

    floor, ours: seconds; `ours` is the median of our first competitor, or else of the user's. difference: of the result
    from its result. held: bytes of the weights.
    """

    case: Case
    who: str
    found: Timing | Missing
    floor: float = 0.0
    ours: float | None = None
    difference: float | None = None
    held: int | None = None

    def cells(self) -> tuple[str, ...]:
        """The row's cells, in the order of HEADINGS."""
        about = (*astuple(self.case), self.who)
        t = self.found
        if isinstance(t, Missing):
            return (*about, f"not measured: {t.why}", *[""] * (len(HEADINGS) - len(about) - 1))
        against = "" if self.ours is None else f"{t.median / self.ours:.2f} x"
        spread = f"{duration(t.low)} to {duration(t.high)}"
        differs = "" if self.difference is None else f"{self.difference:.1e}"
        peak = "" if t.peak is None else f"{t.peak / 2**20:.0f} MiB"
        return (*about, duration(t.median), spread, against, f"{self.floor / t.median:.0%}", differs, peak)

    def as_json(self) -> dict[str, Any]:
        """The row as JSON; times in seconds, memory in bytes."""
        row: dict[str, Any] = {**vars(self.case), "who": self.who}
        if isinstance(self.found, Missing):
            return row | {"not_measured": self.found.why}
        t = self.found
        row |= {"median_s": t.median, "p10_s": t.low, "p90_s": t.high, "runs": t.runs, "floor_s": self.floor}
        row |= {"ours_s": self.ours, "rms_from_ours": self.difference}
        return row | {"peak_bytes": t.peak, "weight_bytes": self.held}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Row:
        """The inverse of `as_json`."""
        case = Case(row["what"], row["size"], row["batch"], row["dtype"])
        if "not_measured" in row:
            return cls(case, row["who"], Missing(row["not_measured"]))
        found = Timing(row["median_s"], row["p10_s"], row["p90_s"], row["runs"], row["peak_bytes"])
        return cls(case, row["who"], found, row["floor_s"], row["ours_s"], row["rms_from_ours"], row["weight_bytes"])


def rows_of(
    case: Case, made: Measured, found: Mapping[str, Timing | Missing], floor: float, differences: Mapping[str, float]
) -> list[Row]:
    """The rows of one case, in the order of its competitors."""
    rows = []
    times = {name: t.median for name, t in found.items() if isinstance(t, Timing)}
    ours = next((median for name, median in times.items() if name.startswith(OURS)), times.get(YOURS))
    for name, t in found.items():
        if isinstance(t, Timing) and name in made.uncounted:
            t = Timing(t.median, t.low, t.high, t.runs)
        rows.append(Row(case, name, t, floor, ours, differences.get(name), made.held))
    return rows


def duration(seconds: float) -> str:
    """A time with its unit."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.3f} s"


def aligned(headings: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table that is also readable in a terminal; a bar in a cell becomes a slash."""
    cells = [headings, *(tuple(cell.replace("|", "/") for cell in line) for line in lines)]
    # A long reason why something was not measured does not widen its column.
    columns = zip(*cells, strict=True)
    widths = [max(len(cell) for cell in column if not cell.startswith("not measured")) for column in columns]
    found = ["| " + " | ".join(x.ljust(width) for x, width in zip(line, widths, strict=True)) + " |" for line in cells]
    found.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(found) + "\n"


def table(rows: Iterable[Row]) -> str:
    """A table of all rows."""
    return aligned(HEADINGS, [row.cells() for row in rows])


def environment() -> dict[str, Any]:
    """Where and when the results are measured: GPU, driver, versions, commit, date. Pins a backend, and names it."""
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    read = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", f"--id={_uuid(properties)}")
    return {
        "gpu": torch.cuda.get_device_name(),
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        **dict(zip(query.split(","), read.split(", ") if read else [None] * 5, strict=False)),
        "torch": torch.__version__,
        "triton": triton.__version__ if HAS_TRITON else None,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "python": platform.python_version(),
        "varlen backend": pin_varlen(),
        "commit": commit(Path(__file__).resolve()),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _uuid(properties: Any) -> str:
    """The GPU's UUID for nvidia-smi, whose numbering of GPUs differs from CUDA's."""
    uuid = str(getattr(properties, "uuid", 0))
    return uuid if len(uuid) < 32 or uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def commit(path: Path) -> str | None:
    """The commit of a file's repository, with "-dirty" if files have changed; None if git does not track the file."""
    git = ("git", "-C", str(path.parent))
    if _output(*git, "ls-files", "--error-unmatch", path.name) is None:
        return None
    return _output(*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _output(*command: str) -> str | None:
    """The first line that a command prints; None if it fails or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None

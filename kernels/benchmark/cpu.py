"""How fast a CPU is: each competitor in a process of its own, with a fixed number of threads, in turn.

After a matrix product, the threads of one library go on spinning for a while, and another library in the same process
loses a core to them; what one has loaded or cached also changes what the next one takes. So each measurement is a new
process (`cpu_child`). Competitors take turns, round after round, so that a busy moment of the machine affects all of
them. Reported are medians of wall time and of CPU time (of all threads), which other programs disturb less.

To add a row, write a function that takes the folder that `prepare` filled and returns a callable without arguments, and
name it in the `ROWS` of one of the modules PARTS: {row: {competitor: function}}. The callable is what is timed. If it
returns numbers, they are compared with those of the baseline, the row's first competitor. A function that raises is
reported as not measured. Adding a part means adding its module's name here.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from ernie_m.tokenizer.new_files import replacing

from .report import aligned, commit, duration
from .timing import Missing

Make = Callable[[Path], Callable[[], Any]]
Rows = Mapping[str, Mapping[str, Make]]

PARTS = (
    "ernie_m.kernels.benchmark.cpu_models",
    "ernie_m.kernels.benchmark.cpu_tokenizer",
    "ernie_m.kernels.benchmark.cpu_encode",
)
TABLE_FILE = "CPU.md"
HEADINGS = (
    "what", "who", "wall time", "against the first", "CPU time", "against the first",
    "first call, CPU", "peak memory", "largest difference",
)  # fmt: skip
# Libraries read these when they are imported.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Sample:
    """One process: seconds of each call and of the first one, the peak of resident memory, and some results."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    first_cpu: float
    peak_bytes: int | None
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Place:
    """What is measured: a competitor of a row of a part."""

    part: str
    row: str
    who: str


def places(parts: Sequence[str], wanted: str = "") -> Iterator[tuple[str, list[Place]]]:
    """The rows whose name contains `wanted`, each with its competitors."""
    for part in parts:
        rows: Rows = import_module(part).ROWS
        for row, makers in rows.items():
            if wanted in row:
                yield row, [Place(part, row, who) for who in makers]


def environment_of_child(threads: int) -> dict[str, str]:
    """This process's environment with a fixed number of threads, and without Triton's interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, **dict.fromkeys(THREADS, str(threads))}


def sample(place: Place, folder: Path, threads: int, runs: int) -> Sample | Missing:
    """Measure one competitor in a new process."""
    request = {**vars(place), "folder": str(folder), "threads": threads, "runs": runs}
    command = [sys.executable, "-m", "ernie_m.kernels.benchmark.cpu_child", json.dumps(request)]
    done = subprocess.run(command, env=environment_of_child(threads), capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return Missing(lines[-1] if lines else f"exit code {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    wall, cpu, numbers = (tuple(found[name]) for name in ("wall", "cpu", "numbers"))
    return Sample(wall, cpu, found["first_cpu"], found["peak_bytes"], numbers)


def take_turns(
    competitors: Sequence[Place], rounds: int, measure: Callable[[Place], Sample | Missing]
) -> dict[str, list[Sample] | Missing]:
    """`rounds` samples of each competitor, in turn; who fails once drops out."""
    found: dict[str, list[Sample] | Missing] = {place.who: [] for place in competitors}
    for _ in range(rounds):
        for place in competitors:
            samples = found[place.who]
            if not isinstance(samples, Missing):
                one = measure(place)
                found[place.who] = one if isinstance(one, Missing) else [*samples, one]
    return found


def cells(row: str, found: Mapping[str, list[Sample] | Missing]) -> list[tuple[str, ...]]:
    """The lines of one row's competitors, in the order of HEADINGS."""
    lines: list[tuple[str, ...]] = []
    baseline = next(iter(found.values()))
    for who, samples in found.items():
        if isinstance(samples, Missing):
            lines.append((row, who, f"not measured: {samples.why}", *[""] * (len(HEADINGS) - 3)))
            continue
        line = [row, who]
        for name in ("wall", "cpu"):
            median = _median(samples, name)
            against = "" if isinstance(baseline, Missing) else f"{median / _median(baseline, name):.2f}"
            line += [duration(median), against]
        line.append(duration(statistics.median(s.first_cpu for s in samples)))
        peaks = [s.peak_bytes for s in samples if s.peak_bytes is not None]
        line.append(f"{statistics.median(peaks) / 2**20:.0f} MiB" if peaks else "")
        lines.append((*line, _difference(samples, baseline)))
    return lines


def _median(samples: Sequence[Sample], name: str) -> float:
    """The median over processes of the median over calls."""
    return statistics.median(statistics.median(getattr(s, name)) for s in samples)


def _difference(samples: Sequence[Sample], baseline: list[Sample] | Missing) -> str:
    if isinstance(baseline, Missing) or samples is baseline:
        return ""
    ours, theirs = samples[0].numbers, baseline[0].numbers
    if not ours or len(ours) != len(theirs):
        return ""
    return f"{max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.0e}"


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment(threads: int) -> dict[str, Any]:
    """Where and when the results are measured."""
    packages = ("numpy", "torch", "transformers", "sentencepiece")
    versions = {name: _version(name) for name in packages}
    return {
        "processor": f"{processor()}, {os.cpu_count()} CPUs",
        "threads": threads,
        **{name: version for name, version in versions.items() if version},
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": commit(Path(__file__).resolve()),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def run(
    wanted: str = "",
    threads: int = 2,
    rounds: int = 3,
    runs: int = 5,
    output: Path | None = None,
    parts: Sequence[str] = PARTS,
) -> str:
    """Measure the rows whose name contains `wanted`, and return the page; if `output` is a folder, write it there."""
    chosen = list(places(parts, wanted))
    if not chosen:
        known = ", ".join(row for row, _ in places(parts))
        raise ValueError(f"--cpu: expected part of the name of a row ({known}), got {wanted!r}")
    about = environment(threads)
    lines: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in dict.fromkeys(competitors[0].part for _, competitors in chosen):
            import_module(part).prepare(folder)
        for row, competitors in chosen:
            print(row, file=sys.stderr, flush=True)
            found = take_turns(competitors, rounds, lambda place: sample(place, folder, threads, runs))
            lines += cells(row, found)
            print(aligned(HEADINGS, lines[-len(found) :]), flush=True)
    page = "# On a CPU\n\n" + _explained(rounds) + "".join(f"- {name}: {value}\n" for name, value in about.items())
    page += "\n" + aligned(HEADINGS, lines)
    if output is not None:
        with replacing(output / TABLE_FILE) as (file,):
            file.write(page.encode())
    return page


def _explained(rounds: int) -> str:
    return (
        "Written by `python -m ernie_m.kernels bench --cpu`. Each competitor runs in a process of its own, in turn; "
        f"medians of {rounds} rounds. CPU time is that of all threads together. Ratios are against the first "
        "competitor for the same work: below 1 is faster. Peak memory is that of the whole process, with weights "
        "and libraries.\n\n"
    )

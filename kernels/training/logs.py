"""What a run tells: JSON lines in a file, a plot, TensorBoard, and a line of progress on a terminal."""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ernie_m.tokenizer.new_files import replacing

FILE = "log.jsonl"


class Log:
    """The log of a run, `log.jsonl`: a record for every few steps, and one for every evaluation.

    A run that goes on from step `step` drops the records after it, so that the file reads as if it had never stopped.
    TensorBoard's files are written beside it if the package is installed.
    """

    def __init__(self, directory: Path, step: int, total: int) -> None:
        self.path, self.total = directory / FILE, total
        self.start, self.first, self.shown = time.perf_counter(), step, False
        kept = [record for record in read(self.path) if record["step"] <= step]
        with replacing(self.path) as (file,):
            file.write("".join(json.dumps(record) + "\n" for record in kept).encode())
        self.before = kept[-1]["seconds"] if kept else 0.0
        self.board: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    @property
    def seconds(self) -> float:
        """Time spent on the run, what came before it was stopped included."""
        return self.before + time.perf_counter() - self.start

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; flat numbers become curves."""
        record = {**record, "seconds": round(self.seconds, 1)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for name, value in curves(record).items():
                self.board.add_scalar(name, value, record["step"])

    def progress(self, step: int, loss: float, tokens: int) -> None:
        """One line on a terminal, written over itself."""
        if not sys.stderr.isatty():
            return
        spent = time.perf_counter() - self.start
        left = spent / max(1, step - self.first) * (self.total - step)
        speed = f"{tokens / self.seconds:,.0f} tokens/s"
        text = f"step {step:,} of {self.total:,}  loss {loss:.3f}  {speed}  {_clock(left)} left"
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()
        self.shown = True

    def say(self, text: str) -> None:
        """A line on standard error, below the line of progress."""
        if self.shown:
            sys.stderr.write("\n")
            self.shown = False
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line of progress, and draw the plot. A plot that cannot be written is no reason for a run to fail."""
        if self.shown:
            sys.stderr.write("\n")
        if self.board is not None:
            self.board.close()
        try:
            plot(self.path, self.path.with_name("log.png"))
        except OSError as error:
            print(f"the curves of {self.path} were not drawn: {error}", file=sys.stderr)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that was cut off by a crash is left out.

    Raises ValueError that names the line of anything else.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text("utf-8-sig", errors="replace").split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            is_record = type(record["step"]) is int and isinstance(record["seconds"], (int, float))
        except (ValueError, KeyError, TypeError, RecursionError):
            is_record = False
        if not is_record:
            raise ValueError(f"{path}: line {number}: expected a record of a run, got {line!r:.60}")
        found.append(record)
    return found


def curves(record: dict[str, Any]) -> dict[str, float]:
    """The values of a record that become curves: its floats, but for the time."""
    return {name: value for name, value in record.items() if isinstance(value, float) and name != "seconds"}


def plot(source: Path, target: Path) -> None:
    """Draw the curves of a log, one panel each, if there are any and matplotlib is installed."""
    if find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    drawn: dict[str, list[tuple[int, float]]] = {}
    for record in read(source):
        for name, value in curves(record).items():
            drawn.setdefault(name, []).append((record["step"], value))
    if not drawn:
        return
    figure = Figure(figsize=(7, 2.2 * len(drawn)), layout="constrained")
    for i, (name, points) in enumerate(sorted(drawn.items()), 1):
        axes = figure.add_subplot(len(drawn), 1, i)
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    axes.set_xlabel("step")
    with replacing(target) as (file,):
        figure.savefig(file, format="png", dpi=80)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"

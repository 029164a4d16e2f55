"""Timing: events around each call, competitors in turn, inputs that are not in the cache.

Competitors take turns within one loop, in a random order that changes every round, so that clock drift affects all of
them alike. Each call takes the next of several sets of inputs, which together exceed the L2 cache, so that nobody finds
in it what another has just read. The result is the median, with the 10th and 90th percentiles as its spread.

The host takes longer to launch a kernel of 20 µs than the GPU to run it. With `hide_host`, the GPU spins while the host
queues the whole round, so that the kernel alone is timed; without it, what a user waits for is timed. It spins again
before each call: a call that synchronises would otherwise leave the rest of the round with a queue that is empty.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Cycles that the GPU spins per competitor while the host queues calls: about half a millisecond.
SPIN = 1_000_000
COPY_BYTES = 1 << 31
PRODUCT = 8192
MOST_COPIES = 2048


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of `runs` calls, and the 10th and 90th percentiles.

    `peak`: peak bytes allocated by a call; None if the allocator does not see them.
    """

    median: float
    low: float
    high: float
    runs: int
    peak: int | None = None


@dataclass(frozen=True)
class Missing:
    """A competitor that could not run, and the reason."""

    why: str


Call = Callable[[int], Any]  # i: the index of the rotating inputs, modulo their number
Timer = Callable[[Mapping[str, Call], int, bool], "dict[str, Timing | Missing]"]


class GpuClock:
    """Times what the host queues on the current stream, by CUDA events. Tests have another one."""

    def mark(self) -> Any:
        """Mark a place in the queue: an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks, once both have passed."""
        return float(start.elapsed_time(end)) / 1e3  # CUDA has milliseconds

    def wait(self) -> None:
        """Wait until the queue is empty."""
        torch.cuda.synchronize()

    def spin(self, calls: int) -> None:
        """Keep the GPU busy while the host queues `calls` calls."""
        torch.cuda._sleep(SPIN * calls)

    def peak(self, call: Call) -> int:
        """Peak bytes that one call allocates, beyond what is already allocated."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free(self) -> None:
        """Release unused memory."""
        torch.cuda.empty_cache()


def summary(seconds: list[float], peak: int | None = None) -> Timing:
    """Median and percentiles of the times of single calls."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    low, high = ordered[round(0.1 * last)], ordered[round(0.9 * last)]
    return Timing(statistics.median(ordered), low, high, len(ordered), peak)


def first_line(error: BaseException) -> str:
    """The type of an error and its first line, short enough for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


class Race:
    """The competitors that still run, and why the others dropped out."""

    def __init__(self, calls: Mapping[str, Call], clock: GpuClock) -> None:
        self.clock, self.running = clock, dict(calls)
        self.missing: dict[str, Missing] = {}
        self.turn = 0

    def attempt(self, name: str, function: Callable[[], Any]) -> Any:
        """Return what `function` returns; if it raises, `name` drops out with the error as the reason."""
        try:
            return function()
        except Exception as error:
            self.missing[name] = Missing(first_line(error))
            del self.running[name]
        self.clock.free()
        return None

    def call(self, name: str) -> None:
        """Call a competitor on the next inputs."""
        self.turn += 1
        self.running[name](self.turn)

    def timed(self, name: str) -> tuple[Any, Any]:
        """The marks before and after one call."""
        start = self.clock.mark()
        self.call(name)
        return start, self.clock.mark()

    def warm_up(self, name: str) -> int:
        """Call a few times, which also compiles; return the bytes that a call allocates."""
        for _ in range(3):
            self.call(name)
        self.clock.wait()
        return self.clock.peak(self.running[name])


def time_calls(
    calls: Mapping[str, Call], runs: int, hide_host: bool, clock: GpuClock | None = None
) -> dict[str, Timing | Missing]:
    """Time each competitor `runs` times, in turn, after a tenth as many warm-up rounds."""
    clock = GpuClock() if clock is None else clock
    race, rng = Race(calls, clock), random.Random(0)
    peaks = {name: race.attempt(name, lambda name=name: race.warm_up(name)) for name in calls}  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(-(runs // 10), runs):
        order = rng.sample(list(race.running), len(race.running))
        marks: dict[str, tuple[Any, Any] | None] = {}
        if hide_host:
            clock.spin(len(order))
        for name in order:
            if hide_host:
                clock.spin(1)
            marks[name] = race.attempt(name, lambda name=name: race.timed(name))  # type: ignore[misc]
            if not hide_host:
                clock.wait()
        clock.wait()
        for name, pair in marks.items():
            if i >= 0 and pair is not None:
                times[name].append(clock.seconds(*pair))
    return {name: race.missing.get(name) or summary(times[name], peaks[name]) for name in calls}


def copies_beyond_cache(bytes_of_one: int) -> int:
    """How many copies of what one call reads fill the L2 cache five times: at least 2, at most MOST_COPIES."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    cache = 0 if device is None else torch.cuda.get_device_properties(device).L2_cache_size
    return min(max(2, -(-5 * cache // max(bytes_of_one, 1))), MOST_COPIES)


def ceilings(dtypes: tuple[str, ...], runs: int, timer: Timer = time_calls, device: str = "cuda") -> dict[str, Any]:
    """What this GPU reaches: bytes per second (read and written) of a large copy, and FLOP/s of a large product."""
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    factors = {
        name: [torch.randn(PRODUCT, PRODUCT, device=device, dtype=getattr(torch, name)) for _ in range(2)]
        for name in dict.fromkeys(("bfloat16", *dtypes))
    }
    calls: dict[str, Call] = {"copy": lambda i: target.copy_(source)}
    calls |= {name: lambda i, a=a, b=b: a @ b for name, (a, b) in factors.items()}  # type: ignore[misc]
    found = timer(calls, max(runs // 5, 3), True)
    medians = {name: timing.median for name, timing in found.items() if isinstance(timing, Timing)}
    if missing := found.keys() - medians.keys():
        raise RuntimeError(f"cannot measure the ceilings: {', '.join(map(str, missing))} failed")
    return {
        "copy_bytes_per_s": 2 * COPY_BYTES / medians.pop("copy"),
        "matrix_flops_per_s": {name: 2.0 * PRODUCT**3 / median for name, median in medians.items()},
    }

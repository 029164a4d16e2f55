"""Timing on a GPU: events around each call, competitors in turn, inputs that are not in the cache.

Competitors take turns within one loop, so that a clock that drifts drifts for all. Inputs rotate among copies that
together are larger than the L2 cache. What is given is the median, with the 10th and 90th percentile as its spread.

A kernel of 20 µs takes the host longer to launch than the GPU to run. To time the kernel, the GPU is first made to
spin while the host queues the whole round (`hide_host`); to time what a user waits for, it is not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Cycles that the GPU spins for each competitor while the host queues calls: about half a millisecond.
SPIN = 1_000_000
COPY_BYTES = 1 << 31
PRODUCT = 8192


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of `runs`, and the percentiles around it. `peak`: bytes above what was there."""

    median: float
    low: float
    high: float
    runs: int
    peak: int = 0


@dataclass(frozen=True)
class Missing:
    """A competitor that could not run, and why."""

    why: str


Call = Callable[[int], Any]  # i: which of the rotating inputs to take, modulo their number
Timer = Callable[..., dict[str, "Timing | Missing"]]


def summary(seconds: list[float], peak: int = 0) -> Timing:
    """Median and percentiles of the times of single calls."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    low, high = ordered[round(0.1 * last)], ordered[round(0.9 * last)]
    return Timing(statistics.median(ordered), low, high, len(ordered), peak)


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def usable(calls: Mapping[str, Call]) -> dict[str, Missing]:
    """Call each competitor a few times, to compile and to warm up; those that cannot run, and why."""
    missing: dict[str, Missing] = {}
    for name, call in calls.items():
        try:
            for i in range(3):
                call(i)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except Exception as error:
            missing[name] = Missing(first_line(error))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return missing


def peak_memory(call: Call) -> int:
    """Bytes that one call allocates at the most, beyond what is allocated already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def time_on_gpu(calls: Mapping[str, Call], runs: int, hide_host: bool) -> dict[str, Timing | Missing]:
    """Time each competitor `runs` times, in turn."""
    found: dict[str, Timing | Missing] = dict(usable(calls))
    running = {name: call for name, call in calls.items() if name not in found}
    peaks = {name: peak_memory(call) for name, call in running.items()}
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in running}
    for i in range(runs):
        if hide_host:
            torch.cuda._sleep(SPIN * len(running))
        for name, call in running.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call(i)
            end.record()
            events[name].append((start, end))
            if not hide_host:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
    for name, pairs in events.items():
        found[name] = summary([start.elapsed_time(end) / 1e3 for start, end in pairs], peaks[name])
    return {name: found[name] for name in calls}


def copies_beyond_cache(bytes_of_one: int) -> int:
    """How many copies of the inputs are more than twice the L2 cache, but no more than 64."""
    cache = torch.cuda.get_device_properties().L2_cache_size if torch.cuda.is_available() else 0
    return min(max(2, -(-5 * cache // (2 * max(bytes_of_one, 1)))), 64)


def ceilings(runs: int) -> dict[str, float]:
    """What this GPU does: bytes per second of a large copy (read and written), operations of a large bf16 product."""
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    calls: dict[str, Call] = {"copy": lambda i: target.copy_(source), "product": lambda i: a @ b}
    found = time_on_gpu(calls, runs, hide_host=True)
    copy, product = found["copy"], found["product"]
    if isinstance(copy, Missing) or isinstance(product, Missing):
        raise RuntimeError(f"the ceilings could not be measured: {copy}, {product}")
    return {
        "copy_bytes_per_s": 2 * COPY_BYTES / copy.median,
        "matrix_flops_per_s": 2.0 * PRODUCT**3 / product.median,
    }

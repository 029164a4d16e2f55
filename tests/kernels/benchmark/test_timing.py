"""Competitors take turns; a fake clock replaces the GPU's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from ernie_m.kernels.benchmark import timing as bench_timing
from ernie_m.kernels.benchmark.timing import (
    Call,
    GpuClock,
    Missing,
    Timing,
    ceilings,
    copies_beyond_cache,
    summary,
    time_calls,
)


class FakeClock(GpuClock):
    """A clock that advances only when told to, and logs its calls."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, list[str]()

    def mark(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def wait(self) -> None:
        self.log.append("wait")

    def spin(self, calls: int) -> None:
        self.log.append(f"spin {calls}")
        self.now += 1000.0

    def peak(self, call: Call) -> int:
        call(0)
        return 77

    def free(self) -> None:
        self.log.append("free")


def working(clock: FakeClock, seconds: float, seen: list[int] | None = None) -> Call:
    """A competitor that takes `seconds`."""

    def call(i: int) -> None:
        clock.now += seconds
        if seen is not None:
            seen.append(i)

    return call


def test_summary_returns_median_and_percentiles() -> None:
    timing = summary([float(x) for x in (10, 3, 1, 2, 0, 5, 4, 7, 6, 9, 8)], 4)
    assert timing == Timing(5.0, 1.0, 9.0, 11, 4)


def test_time_calls_times_each_competitor() -> None:
    """Seen red: the round's start used for all, spinning counted, a warm-up round counted."""
    clock = FakeClock()
    found = time_calls({"a": working(clock, 1.0), "b": working(clock, 2.5)}, 20, True, clock)
    assert found == {"a": Timing(1.0, 1.0, 1.0, 20, 77), "b": Timing(2.5, 2.5, 2.5, 20, 77)}
    assert clock.log.count("spin 2") == 22  # including a tenth more, to warm up


def test_the_device_is_busy_before_each_call() -> None:
    """One call may synchronise, and the next must not find an empty queue. Seen red with one spin for each round."""
    clock, queued = FakeClock(), list[bool]()

    def synchronising(i: int) -> None:
        clock.wait()

    def other(i: int) -> None:
        last = [line for line in clock.log if line == "wait" or line.startswith("spin")][-1]
        queued.append(last.startswith("spin"))

    time_calls({"a": synchronising, "b": other}, 10, True, clock)
    assert all(queued[-10:])


def test_time_calls_without_hide_host_waits_for_each_call() -> None:
    clock = FakeClock()
    time_calls({"a": working(clock, 1.0), "b": working(clock, 1.0)}, 5, False, clock)
    assert not any(line.startswith("spin") for line in clock.log)
    assert clock.log.count("wait") == 2 + 5 * 3  # one per warm-up, then one per call and per round


def test_no_call_reuses_the_inputs_of_the_call_before() -> None:
    """The inputs rotate over all competitors' calls. Seen red with the round's number as everyone's index."""
    clock, seen = FakeClock(), list[int]()
    time_calls({name: working(clock, 1.0, seen) for name in "abc"}, 10, True, clock)
    timed = [i for i in seen if i][9:]  # without the warm-up and the memory measurement (on inputs 0)
    assert timed == list(range(10, 10 + 3 * 11))


def test_the_order_changes_from_round_to_round() -> None:
    clock, order = FakeClock(), list[str]()
    calls: dict[str, Call] = {name: lambda i, name=name: order.append(name) for name in "abc"}  # type: ignore[misc]
    time_calls(calls, 30, True, clock)
    rounds = {tuple(order[i : i + 3]) for i in range(12, len(order), 3)}
    assert len(rounds) == 6
    assert all(set(names) == set("abc") for names in rounds)


@pytest.mark.parametrize("last", [0, 3, 9])
def test_a_failing_competitor_is_missing_and_the_others_go_on(last: int) -> None:
    """It fails in the warm-up, in the memory measurement, or later."""
    clock, calls = FakeClock(), 0

    def broken(i: int) -> None:
        nonlocal calls
        calls += 1
        if calls > last:
            raise NotImplementedError("no such backend\nand more lines")

    found = time_calls({"broken": broken, "fine": working(clock, 1.0)}, 20, True, clock)
    assert found["broken"] == Missing("NotImplementedError: no such backend")
    assert found["fine"] == Timing(1.0, 1.0, 1.0, 20, 77)
    assert list(found) == ["broken", "fine"]
    assert calls == last + 1
    assert "free" in clock.log


def test_an_interruption_is_not_recorded_as_a_failure() -> None:
    def interrupted(i: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_calls({"a": interrupted}, 3, True, FakeClock())


def test_copies_fill_the_cache_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        L2_cache_size = 50_000_000

    assert copies_beyond_cache(10) == 2  # on a CPU the cache size is unknown
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert [copies_beyond_cache(n) for n in (10**9, 125_000_001, 83_333_334, 590_000)] == [2, 2, 3, 424]
    assert copies_beyond_cache(0) == copies_beyond_cache(1) == 2048


def test_ceilings_count_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_timing, "COPY_BYTES", 1 << 10)
    monkeypatch.setattr(bench_timing, "PRODUCT", 16)
    products: dict[str, Any] = {}

    def timer(calls: Mapping[str, Call], runs: int, hide_host: bool) -> dict[str, Timing | Missing]:
        assert runs == 20
        assert hide_host
        products.update({name: call(0).dtype for name, call in calls.items()})
        return {name: Timing(t, t, t, runs) for name, t in zip(calls, (0.5, 0.25, 2.0), strict=True)}

    found = ceilings(("float32",), 100, timer, "cpu")
    assert found["copy_bytes_per_s"] == 2 * 1024 / 0.5
    assert found["matrix_flops_per_s"] == {"bfloat16": 2 * 16**3 / 0.25, "float32": 2 * 16**3 / 2.0}
    assert products == {"copy": torch.uint8, "bfloat16": torch.bfloat16, "float32": torch.float32}


def test_ceilings_that_cannot_be_measured_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_timing, "COPY_BYTES", 1 << 10)
    monkeypatch.setattr(bench_timing, "PRODUCT", 16)
    with pytest.raises(RuntimeError, match="cannot measure the ceilings: copy failed"):
        ceilings((), 5, lambda calls, *_: {"copy": Missing("no"), "bfloat16": Timing(1.0, 1.0, 1.0, 3)}, "cpu")


def test_gpu_clock_returns_seconds_and_peak_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake GPU: each call takes 4 ms and allocates 30 bytes; events report milliseconds."""
    gpu = {"ms": 0.0, "allocated": 100, "peak": 5000, "slept": 0}

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = gpu["ms"]

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    def call(i: int) -> None:
        gpu["ms"] += 4.0
        gpu["peak"] = max(gpu["peak"], gpu["allocated"] + 30)

    for name, function in {
        "Event": Event,
        "synchronize": lambda: None,
        "_sleep": lambda cycles: gpu.update(slept=gpu["slept"] + cycles),
        "reset_peak_memory_stats": lambda: gpu.update(peak=gpu["allocated"]),
        "memory_allocated": lambda: gpu["allocated"],
        "max_memory_allocated": lambda: gpu["peak"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert time_calls({"a": call}, 10, True) == {"a": Timing(4e-3, 4e-3, 4e-3, 10, 30)}
    assert gpu["slept"] == 2 * 11 * bench_timing.SPIN  # for each round, and for each call

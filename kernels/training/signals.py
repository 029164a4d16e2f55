"""SIGTERM and Ctrl-C end a run after a step, not within it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """A signal ended the run after a step, which is saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped after step {step:,}, which is saved")
        self.number, self.step = number, step


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C, so that a step is finished and saved; a second one takes effect at once."""
    arrived: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in numbers:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, note)
        yield arrived
    finally:
        for number in numbers:
            signal.signal(number, before[number])

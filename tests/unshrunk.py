"""hypothesis without shrinking, which takes most of the time where an input only has to fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import Phase, settings


@contextmanager
def unshrunk() -> Iterator[None]:
    """Inside, hypothesis draws inputs and leaves the first one that fails as it is."""
    current = settings.default
    settings.register_profile("no shrinking", current, phases=[Phase.generate])
    settings.load_profile("no shrinking")
    try:
        yield
    finally:
        settings.register_profile("before", current)
        settings.load_profile("before")

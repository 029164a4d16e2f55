"""For tests of `check`: hypothesis without shrinking."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings


@pytest.fixture
def no_shrinking() -> Iterator[None]:
    """Shrinking a failing input takes most of the time; many tests only need it to fail."""
    current = settings.default
    settings.register_profile("no shrinking", current, phases=[Phase.generate])
    settings.load_profile("no shrinking")
    yield
    settings.register_profile("before", current)
    settings.load_profile("before")

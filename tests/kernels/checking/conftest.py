"""For tests of `check`: hypothesis without shrinking."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from unshrunk import unshrunk


@pytest.fixture
def no_shrinking() -> Iterator[None]:
    """For tests that only need an input to fail."""
    with unshrunk():
        yield

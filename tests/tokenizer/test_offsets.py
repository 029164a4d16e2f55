from __future__ import annotations

import pytest

from ernie_m.tokenizer import offsets


def test_shared_spans_are_bounded_and_equal_to_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans beyond the bound are returned but not stored, so memory does not grow with the length of texts."""
    monkeypatch.setattr(offsets, "MAX_SHARED", 3)
    shared = offsets.SharedSpans()
    monkeypatch.setattr(offsets, "SHARED", shared)
    found = offsets.ranges([(1, 2), (0, 1), (3, 2), (0, 4), (1, 1)], -1, 5)
    assert found == [(0, 2), (2, 3), (6, 8), (8, 12), (13, 14)]
    assert list(shared) == found[:3]
    again = offsets.ranges([(1, 2)], -1, 1)
    assert again[0] is found[0]

"""`map_ahead`: the results of `map`, one of them computed ahead of time.

Seen red: an error taken for the end; two results ahead; nothing ahead; a function called after
the caller has stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.cli.ahead import map_ahead


@given(st.integers(0, 6), st.none() | st.integers(0, 6), st.booleans())
def test_map_ahead_gives_the_results_of_map_and_then_its_error(n: int, wrong: int | None, in_items: bool) -> None:
    def fails(i: int) -> None:
        if i == wrong:
            raise ValueError(f"item {i}")

    def items() -> Iterator[int]:
        for i in range(n):
            if in_items:
                fails(i)
            yield i

    def function(i: int) -> int:
        fails(i)
        return i * i

    found = []
    if wrong is not None and wrong < n:
        with pytest.raises(ValueError, match=f"^item {wrong}$"):
            for x in map_ahead(function, items()):
                found.append(x)
        assert found == [i * i for i in range(wrong)]
    else:
        assert list(map_ahead(function, items())) == [i * i for i in range(n)]


def test_map_ahead_is_one_result_ahead_and_stops_when_closed() -> None:
    computed: list[int] = []
    second, closed = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.set()

    def function(i: int) -> int:
        computed.append(i)
        if i == 1:
            second.set()
        return i

    results = map_ahead(function, items())
    assert next(results) == 0
    assert second.wait(30)
    time.sleep(0.1)
    assert computed == [0, 1]
    results.close()
    assert closed.wait(30)
    assert computed == [0, 1]


def test_map_ahead_closes_while_an_item_is_awaited() -> None:
    arrives, asked = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        asked.set()
        arrives.wait(60)
        yield 1

    computed: list[int] = []
    results = map_ahead(computed.append, items())
    next(results)
    assert asked.wait(30)
    results.close()
    arrives.set()
    time.sleep(0.1)
    assert computed == [0]

"""How two texts share a length, and where windows lie.

Seen red: the odd token given to the second text; a window too many when the last one ends exactly at the end.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.tokenizer.options import Options
from ernie_m.tokenizer.text_encoder import Encoded
from ernie_m.tokenizer.truncation import shares, windows

LENGTHS = st.integers(0, 30)


@given(LENGTHS, LENGTHS, st.data())
def test_shares_take_one_token_at_a_time_from_the_longer(first: int, second: int, data: st.DataObject) -> None:
    room = data.draw(st.integers(0, first + second))
    a, b = first, second
    while a + b > room:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    assert shares(first, second, room) == (a, b)


@pytest.mark.parametrize(
    ("side", "length", "size", "stride", "expected"),
    [
        ("right", 7, 3, 0, ["012", "345", "6"]),
        ("right", 6, 3, 0, ["012", "345"]),
        ("right", 7, 3, 1, ["012", "234", "456"]),
        ("right", 8, 3, 2, ["012", "123", "234", "345", "456", "567"]),
        ("left", 7, 3, 0, ["456", "123", "0"]),
        ("left", 7, 3, 1, ["456", "234", "012"]),
    ],
)
def test_windows_of_worked_examples(side: str, length: int, size: int, stride: int, expected: list[str]) -> None:
    options = Options(truncation=True, max_length=size, stride=stride, overflow=True, truncation_side=side)
    found = windows(Encoded(list(range(length))), size, options, "first")
    assert ["".join(map(str, part.ids)) for part in found] == expected

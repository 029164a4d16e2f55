"""Tables: columns line up on a terminal; numbers are short and never -0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.cli import table as table_module
from ernie_m.reference.cli.table import entry_shape, entry_values, number, statistics, table, width
from ernie_m.reference.trace import Entry

cells = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp")), max_size=8)


def test_width_counts_terminal_columns() -> None:
    assert width("abc") == 3
    assert width("猫が") == 4
    assert width("e\u0301") == 1  # a combining accent
    assert width("ｱ") == 1 and width("Ａ") == 2  # half and full width
    assert width("a\u200e") == 1
    assert width("\u00ad") == 1


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6))
def test_table_aligns_its_columns(rows: list[tuple[str, str, str]]) -> None:
    lines = table([(*row, "|") for row in rows], right=(1,))
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    for line, (first, second, third) in zip(lines, rows, strict=True):
        assert width(line) == sum(widths) + 3 * 2 + 1
        assert line.startswith(first + " " * (widths[0] - width(first)) + "  ")
        assert line.endswith(second + "  " + third + " " * (widths[2] - width(third)) + "  |")


def test_table_does_not_measure_its_last_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the configuration's values stand, which may have thousands of labels, and measuring goes by character."""
    measured: list[str] = []
    monkeypatch.setattr(table_module, "width", lambda text: measured.append(text) or len(text))  # type: ignore[func-returns-value]
    lines = table([("a", "bb", "x" * 1000), ("aa", "b", "x")])
    assert lines == ["a   bb  " + "x" * 1000, "aa  b   x"]
    assert max(map(len, measured)) == 2


def test_number_is_short_and_has_no_negative_zero() -> None:
    assert number(1.23456) == "1.2346"
    assert number(-1e-9) == "0.0000"
    assert number(-0.0, 2) == "0.00"
    assert number(-2.5, 1) == "-2.5"
    assert number(123456789.0, 2) == "1.23e+08"
    assert number(float("nan"), 2) == "nan"


def test_statistics_are_computed_in_float64() -> None:
    values = np.full(4096, 60000, np.float16)
    values[0] = 59968
    found = statistics(values)
    assert found["mean"] == 60000 - 32 / 4096
    assert (found["min"], found["max"]) == (59968, 60000)


def test_entry_values_and_shape_of_packed_maps() -> None:
    maps = (np.ones((2, 3, 3)), np.zeros((2, 5, 5)))
    entry = Entry("probs", maps)
    assert entry_values(entry).shape == (2 * 9 + 2 * 25,) and entry_values(entry).sum() == 18
    assert entry_shape(entry) == "2 x (2, 3..5, 3..5)"
    assert entry_shape(Entry("probs", maps[:1])) == "1 x (2, 3, 3)"
    assert entry_shape(Entry("norm1", np.zeros((7, 4)))) == "(7, 4)"

"""Plain-text tables with columns that line up on a terminal, and short number formatting."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from ..array import Array
from ..trace import Entry

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
STATISTICS = ("mean", "std", "min", "max")


def width(text: str) -> int:
    """The terminal columns that `text` takes: 2 for a wide East Asian character, 0 for a combining mark."""
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    # U+00AD, the soft hyphen, is a format character, but terminals show it.
    if unicodedata.category(character) in ("Mn", "Me", "Cf") and character != "\u00ad":
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def escaped(line: str) -> str:
    r"""The line with its control characters, other than tabs and line ends, as \x1b: a terminal would obey them."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", line)


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Lines of cells in aligned columns, `gap` apart; those numbered in `right` are right-aligned.

    Control characters are escaped.
    """
    columns = [tuple(map(escaped, column)) for column in zip(*rows, strict=True)]
    for i, column in enumerate(columns):
        # Nothing follows the last column, whose cells may be long: they need no padding.
        if i == len(columns) - 1 and i not in right:
            break
        sizes = [width(cell) for cell in column]
        spaces = [" " * (max(sizes) - size) for size in sizes]
        pairs = zip(column, spaces, strict=True)
        columns[i] = tuple(space + cell if i in right else cell + space for cell, space in pairs)
    return [gap.join(row).rstrip() for row in zip(*columns, strict=True)]


def number(value: float, digits: int = 4) -> str:
    """`value` with `digits` decimals, in exponent notation from 1e5 on; never -0."""
    if abs(value) >= 1e5:
        return f"{value:.{digits}e}"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def statistics(values: Array) -> dict[str, float]:
    """Mean, standard deviation, minimum and maximum of an array, computed in float64."""
    exact = values.astype(np.float64, copy=False)
    found = (exact.mean(), exact.std(), exact.min(), exact.max())
    return {name: float(value) for name, value in zip(STATISTICS, found, strict=True)}


def entry_values(entry: Entry) -> Array:
    """All numbers of a trace entry in one flat array; entries are packed, so padding is not included."""
    parts = entry.value if isinstance(entry.value, tuple) else (entry.value,)
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


def entry_shape(entry: Entry) -> str:
    """The shape of a trace entry as computed; packed maps are one (H, n, n) per sequence of n tokens."""
    if not isinstance(entry.value, tuple):
        return str(tuple(entry.value.shape))
    lengths = [part.shape[-1] for part in entry.value]
    span = str(lengths[0]) if len(set(lengths)) == 1 else f"{min(lengths)}..{max(lengths)}"
    return f"{len(lengths)} x ({entry.value[0].shape[0]}, {span}, {span})"


def entry_table(entries: Sequence[Entry], digits: int = 4) -> list[str]:
    """Name, shape and statistics of each entry, one per line, below a header."""
    rows: list[tuple[str, ...]] = [("name", "shape", *STATISTICS)]
    for entry in entries:
        found = statistics(entry_values(entry))
        rows.append((entry.name, entry_shape(entry), *(number(value, digits) for value in found.values())))
    return table(rows, right=(2, 3, 4, 5))

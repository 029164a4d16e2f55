"""Compares printed output with what is shown, as rounding allows: last digits depend on the processor."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[-+]?\d+\.\d+(?:e[-+]?\d+)?")


def last_place(number: str) -> float:
    """The value of one unit in the last digit that is written."""
    digits, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def same_output(shown: str, printed: str) -> bool:
    """Whether all words are equal, and numbers with a decimal point equal to one unit in the last place shown."""
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", printed).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    # 1.001: the difference of two decimal fractions is itself rounded.
    return all(abs(float(a) - float(b)) <= 1.001 * max(last_place(a), last_place(b)) for a, b in pairs)

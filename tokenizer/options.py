"""The options of a call, validated, and the strategies behind their short forms.

    padding      False "do_not_pad", True "longest", "max_length"
    truncation   False "do_not_truncate", True "longest_first", "only_first", "only_second"

`max_length` alone, with neither, means truncation, as in transformers. Without `max_length`, the tokenizer's
`model_max_length` applies; by default there is no limit, and truncation does nothing: `without_effect` says so.

Source: transformers 4.40.2 `tokenization_utils_base.py`, `_get_padding_truncation_strategies`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

PADDING = ("do_not_pad", "longest", "max_length")
TRUNCATION = ("do_not_truncate", "longest_first", "only_first", "only_second")
SIDES = ("right", "left")
TENSORS = (None, "np", "pt")

# transformers writes 1e30 for "no limit", and treats anything above 1e20 as no limit.
NO_LIMIT = int(1e30)
LARGE = int(1e20)
# The most tokens that a row is padded to: a row as long as this takes a hundred megabytes or more.
LONGEST_PADDED = 2**24


@dataclass(frozen=True)
class Options:
    """Validated options. Raises ValueError or TypeError with the argument's name, its value and what is allowed."""

    padding: Any = False
    truncation: Any = None
    max_length: int | None = None
    stride: int = 0
    pad_to_multiple_of: int | None = None
    return_tensors: str | None = None
    overflow: bool = False
    model_max_length: int = NO_LIMIT
    padding_side: str = "right"
    truncation_side: str = "right"

    def __post_init__(self) -> None:
        for name in ("padding", "truncation"):
            if isinstance(getattr(self, name), np.bool_):
                object.__setattr__(self, name, bool(getattr(self, name)))
        alone = self.max_length is not None and self.padding is False and self.truncation is None
        truncation = "longest_first" if alone else strategy("truncation", self.truncation, TRUNCATION)
        object.__setattr__(self, "truncation", truncation)
        object.__setattr__(self, "padding", strategy("padding", self.padding, PADDING))
        if self.max_length is not None:
            object.__setattr__(self, "max_length", integer("max_length", self.max_length, 0))
        object.__setattr__(self, "stride", integer("stride", self.stride, 0))
        if self.pad_to_multiple_of is not None:
            checked = integer("pad_to_multiple_of", self.pad_to_multiple_of, 1, LONGEST_PADDED)
            object.__setattr__(self, "pad_to_multiple_of", checked)
        object.__setattr__(self, "model_max_length", model_length(self.model_max_length))
        choice("return_tensors", self.return_tensors, TENSORS)
        choice("padding_side", self.padding_side, SIDES)
        choice("truncation_side", self.truncation_side, SIDES)
        limit, multiple = self.truncation_length, self.pad_to_multiple_of
        if limit is not None and multiple is not None and self.padding != "do_not_pad" and limit % multiple:
            raise ValueError(f"max_length: expected a multiple of pad_to_multiple_of={multiple}, got {limit}")
        if self.padding == "max_length" and self.limit is None:
            raise ValueError("padding='max_length': max_length is not given, and the tokenizer has no model_max_length")
        if self.padding == "max_length":
            integer("model_max_length" if self.max_length is None else "max_length", self.limit, 0, LONGEST_PADDED)

    @property
    def limit(self) -> int | None:
        """`max_length`, or else `model_max_length`; None for no limit."""
        if self.max_length is not None:
            return self.max_length
        return self.model_max_length if self.model_max_length < LARGE else None

    @property
    def truncation_length(self) -> int | None:
        """The length that rows are truncated to; None for no truncation."""
        return None if self.truncation == "do_not_truncate" else self.limit

    @property
    def without_effect(self) -> dict[str, str]:
        """The options that are given but change nothing, each with the reason."""
        found = {}
        if self.truncation != "do_not_truncate" and self.limit is None:
            found["truncation"] = "nothing is truncated: max_length is not given, and there is no model_max_length"
        if self.max_length is not None and self.truncation == "do_not_truncate" and self.padding == "longest":
            found["max_length"] = "nothing is truncated to it, nor padded: pass truncation=True or padding='max_length'"
        return found


def strategy(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Resolve `value`: False and None mean the first of `choices`, True the second."""
    if value is None or isinstance(value, bool):
        return choices[1] if value else choices[0]
    found: str = choice(name, getattr(value, "value", value), (False, True, *choices))
    return found


def choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Return `value`, which must be one of `choices`."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def boolean(name: str, value: Any) -> bool:
    """`value`, True or False or NumPy's, as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {value!r:.80}")
    return bool(value)


def model_length(value: Any) -> int:
    """Validate `model_max_length`, which may come from JSON as the float 1e30."""
    whole = isinstance(value, float) and value.is_integer()
    return integer("model_max_length", int(value) if whole else value, 1)


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int of at least `least` and at most `most`; any integer type except bool is accepted."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name}: expected {least} or more, got {number}")
    if most is not None and number > most:
        raise ValueError(f"{name}: expected at most {most:,}, got {number}")
    return number

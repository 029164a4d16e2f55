"""How one or two texts become the rows of a batch.

    one text    [CLS] A [SEP]
    a pair      [CLS] A [SEP] [SEP] B [SEP]
    type ids       0  0   1     1   1   1

Every column of a row (ids, offsets, masks, words) has this layout; only the values at the special tokens differ.

Source: ERNIE-M (Ouyang et al., 2021), its released code; transformers 4.40.2 `tokenization_ernie_m.py`,
`build_inputs_with_special_tokens` and the methods next to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .offsets import Span
from .text_encoder import Encoded

T = TypeVar("T")

SPECIAL_SINGLE, SPECIAL_PAIR = 2, 4


def lay_out(first: Sequence[T], second: Sequence[T] | None, start: T, separator: T) -> list[T]:
    """[start] first [separator], followed by [separator] second [separator] if there is a second sequence."""
    if second is None:
        return [start, *first, separator]
    return [start, *first, separator, separator, *second, separator]


def type_ids(first: int, second: int | None) -> list[int]:
    """The token type ids for sequences of these lengths."""
    return [0] * (first + 2) if second is None else [0] * (first + 1) + [1] * (second + 3)


@dataclass(slots=True)
class Row:
    """One row: a text or a pair, after truncation, and the index of its sample."""

    first: Encoded
    second: Encoded | None = None
    special: bool = True
    sample: int = 0

    def column(self, first: Sequence[T], second: Sequence[T] | None, start: T, separator: T) -> list[T]:
        """Arrange these values in the row's layout."""
        if self.special:
            return lay_out(first, second, start, separator)
        return [*first, *(second or ())]

    def __len__(self) -> int:
        texts = len(self.first) + (0 if self.second is None else len(self.second))
        return texts + self.special * (SPECIAL_SINGLE if self.second is None else SPECIAL_PAIR)

    def input_ids(self, cls: int, sep: int) -> list[int]:
        """The ids of the row."""
        return self.column(self.first.ids, None if self.second is None else self.second.ids, cls, sep)

    def offset_mapping(self) -> list[Span]:
        """The spans, each relative to its own text; (0, 0) at special tokens that the layout adds."""
        second = None if self.second is None else self.second.offsets
        return self.column(self.first.offsets or [], second, (0, 0), (0, 0))

    def token_type_ids(self) -> list[int]:
        """0 for the first text, 1 for the second."""
        second = None if self.second is None else len(self.second)
        return type_ids(len(self.first), second) if self.special else [0] * len(self.first) + [1] * (second or 0)

    def special_tokens_mask(self) -> list[int]:
        """1 at special tokens that the layout adds."""
        return [int(index is None) for index in self.sequence_ids()]

    def sequence_ids(self) -> list[int | None]:
        """0 for the first text, 1 for the second, None at special tokens that the layout adds."""
        second: list[int | None] | None = None if self.second is None else [1] * len(self.second)
        zeros: list[int | None] = [0] * len(self.first)
        return self.column(zeros, second, None, None)

    def word_ids(self) -> list[int | None]:
        """The index of each token's word in its text, None at special tokens that the layout adds."""
        first: list[int | None] = [*self.first.word_ids()]
        second: list[int | None] | None = None if self.second is None else [*self.second.word_ids()]
        return self.column(first, second, None, None)


def columns_of(rows: Sequence[Row], names: Sequence[str], cls: int, sep: int) -> dict[str, list[Any]]:
    """The named columns of these rows, without padding."""
    column: dict[str, Callable[[Row], Any]] = {
        "input_ids": lambda row: row.input_ids(cls, sep),
        "token_type_ids": Row.token_type_ids,
        "special_tokens_mask": Row.special_tokens_mask,
        "attention_mask": lambda row: [1] * len(row),
        "length": len,
        "offset_mapping": Row.offset_mapping,
        "overflow_to_sample_mapping": lambda row: row.sample,
    }
    return {name: list(map(column[name], rows)) for name in names}

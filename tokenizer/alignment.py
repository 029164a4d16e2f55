"""Which token covers which characters and words, and back, for the rows of an encoded batch.

    "The cat"        [CLS]   ▁The   ▁c    at    [SEP]
    token_to_chars   None    0:3    4:5   5:7   None      char_to_token(5) = 3, char_to_token(3) = None
    token_to_word    None    0      1     1     None      word_to_tokens(1) = 2:4

Tokens are counted in the row as returned, with padding on either side; characters and words, in one text of the row:
`sequence_index` 1 means the second of a pair. What needs spans is available if the call had
`return_offsets_mapping=True`. Each method takes (batch_index, i), or for a batch of one row, i alone.

Source: transformers 4.40.2 `tokenization_utils_base.py`, `BatchEncoding`, for names, arguments and results; its fast
tokenizers (tokenizers `Encoding`) for the definitions.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from .layout import Row
from .offsets import Span

T = TypeVar("T")


class CharSpan(NamedTuple):
    """Characters of a text, half-open."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens of a row, half-open."""

    start: int
    end: int


class Alignment:
    """The methods of a `BatchEncoding` that need the rows behind its columns."""

    _rows: list[Row] | None
    _padding_side: str

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: 0 for the first text, 1 for the second, None at special tokens and padding."""
        return self._padded(self._row(batch_index).sequence_ids(), batch_index)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: the index of its word, None at special tokens and padding.

        With is_split_into_words, words are those of the call, otherwise those of `text.split()`. Raises ValueError for
        running text encoded without offsets.
        """
        return self._padded(self._row(batch_index).word_ids(), batch_index)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """0 if the token belongs to the first text, 1 for the second, None for special tokens and padding."""
        row, token = self._place("token_index", batch_or_token_index, token_index)
        return self._at(self.sequence_ids(row), token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The index of the token's word; None for special tokens and padding."""
        row, token = self._place("token_index", batch_or_token_index, token_index)
        return self._at(self.word_ids(row), token)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters that the token comes from, in its text or, with is_split_into_words, in its word.

        None for special tokens and padding. Raises IndexError for a token that the row does not have.
        """
        row, token = self._place("token_index", batch_or_token_index, token_index)
        inside, span = self._at(self.sequence_ids(row), token), self._at(self._spans(row), token)
        return None if inside is None or span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The first token whose characters include this one; None if there is none, as at spaces and after the end."""
        row, character = self._place("char_index", batch_or_char_index, char_index)
        if self._text(row, sequence_index).words is not None:
            raise ValueError("char_index: expected a call with running text: characters of words have no common count")
        for i, (sequence, span) in enumerate(zip(self.sequence_ids(row), self._spans(row), strict=True)):
            if sequence == sequence_index and span is not None and span[0] <= character < span[1]:
                return i
        return None

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word of `char_to_token`'s token, or None."""
        row, character = self._place("char_index", batch_or_char_index, char_index)
        token = self.char_to_token(row, character, sequence_index)
        return None if token is None else self.word_ids(row)[token]

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """From the first to the last token of a word; None if no token belongs to it."""
        row, word = self._place("word_index", batch_or_word_index, word_index)
        self._text(row, sequence_index)
        pairs = zip(self.sequence_ids(row), self.word_ids(row), strict=True)
        found = [i for i, pair in enumerate(pairs) if pair == (sequence_index, word)]
        return TokenSpan(found[0], found[-1] + 1) if found else None

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """From the first to the last character of a word's tokens; None if no token belongs to it."""
        row, word = self._place("word_index", batch_or_word_index, word_index)
        tokens = self.word_to_tokens(row, word, sequence_index)
        spans = [] if tokens is None else [span for span in self._spans(row)[slice(*tokens)] if span is not None]
        return CharSpan(min(a for a, _ in spans), max(b for _, b in spans)) if spans else None

    def _row(self, index: int) -> Row:
        if self._rows is None:
            raise ValueError("BatchEncoding: expected one returned by a tokenizer's call, got columns without its rows")
        if not -len(self._rows) <= index < len(self._rows):
            raise IndexError(f"batch_index: expected less than {len(self._rows)}, got {index}")
        return self._rows[index]

    def _text(self, row: int, sequence_index: int) -> Any:
        texts = [text for text in (self._row(row).first, self._row(row).second) if text is not None]
        if sequence_index not in range(len(texts)):
            raise ValueError(
                f"sequence_index: expected less than {len(texts)}, the texts of a row, got {sequence_index}"
            )
        return texts[sequence_index]

    def _place(self, name: str, first: int, second: int | None) -> tuple[int, int]:
        """The row and the index in it that a method's one or two arguments mean."""
        row, index = (0, first) if second is None else (first, second)
        self._row(row)
        if second is None and self._rows is not None and len(self._rows) > 1:
            raise ValueError(
                f"{name}: expected (batch_index, {name}) for a batch of {len(self._rows)}, got {first} alone"
            )
        if index < 0 and name != "token_index":
            raise ValueError(f"{name}: expected 0 or more, got {index}")
        return row, index

    def _spans(self, index: int) -> list[Span | None]:
        """The span of each token of a row; None at padding."""
        row = self._row(index)
        if any(text is not None and text.offsets is None for text in (row.first, row.second)):
            raise ValueError("characters of tokens: expected a call with return_offsets_mapping=True")
        return self._padded([*row.offset_mapping()], index)

    @staticmethod
    def _at(values: list[T], index: int) -> T:
        if not -len(values) <= index < len(values):
            raise IndexError(f"token_index: expected less than {len(values)}, the length of the row, got {index}")
        return values[index]

    def _ids(self, index: int) -> Any:
        """The ids of a row as returned, with padding."""
        ids = self["input_ids"]  # type: ignore[index]
        return ids[index] if len(ids) > 0 and hasattr(ids[0], "__len__") else ids

    def _padded(self, values: list[T | None], index: int) -> list[T | None]:
        padding: list[T | None] = [None] * (len(self._ids(index)) - len(values))
        return values + padding if self._padding_side == "right" else padding + values

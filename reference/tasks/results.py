"""What tasks return: frozen records, of which `dataclasses.asdict` makes a dictionary for JSON; vectors of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..array import Array


@dataclass(frozen=True)
class Answer:
    """context[start:end] == text, and its probability. No answer is an empty text with start and end 0."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Entity:
    """text[start:end] of the text that was tagged, its kind, and the mean probability of its tokens' tags."""

    label: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class Label:
    """A class and its probability, or with `problem_type="regression"` its value."""

    label: str
    score: float


@dataclass(frozen=True)
class Choice:
    """choices[index] == text, and its probability among the choices."""

    index: int
    text: str
    score: float


class TokenVectors(NamedTuple):
    """A text's tokens, without [CLS] and [SEP]: vectors (n, E), and n spans (start, end) in the text's characters.

    Spans are half-open, in Python's code points (see `tokenizer.offsets`).
    """

    vectors: Array
    spans: list[tuple[int, int]]

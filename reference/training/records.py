"""What labelled files hold, one class for each task. Positions are code points, ends exclusive."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Span(NamedTuple):
    """Characters of a text, and what they are."""

    start: int
    end: int
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all records have: where the record stands, and its language if that is known."""

    where: str = field(default="", compare=False)
    language: str | None = None


@dataclass(frozen=True, kw_only=True)
class Classified(Record):
    """A text, or two, and its class."""

    text: str
    pair: str | None = None
    label: str


@dataclass(frozen=True, kw_only=True)
class Tagged(Record):
    """A text and spans that do not overlap, in order."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Answered(Record):
    """A question and the places of its answers, all right, in a text; none if it has no answer."""

    question: str
    context: str
    answers: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen(Record):
    """Several ways to continue a text, and the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True, kw_only=True)
class Extracted(Record):
    """What a prompt asks for in a text: spans, in order."""

    prompt: str
    content: str
    spans: tuple[Span, ...]

"""Texts to tokens, ids and offsets, for a batch: lower-casing, special tokens, sentencepiece, and rules A and B.

Written for speed: sentencepiece gets all segments of all texts in one call, and the rules are applied to pieces, not
to characters. Each piece is cut and looked up once and then cached (rule B depends on the piece alone), so that
encoding a text is a chain of dictionary look-ups.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Generic, TypeVar

from .cutting import cut, drop_markers
from .offsets import Span, byte_ranges, follow, ranges, steps
from .piece_model import MARKER, Piece, PieceModel
from .segments import Finder, Segment, lower_case, split
from .token_table import TokenTable

# ERNIE-M's vocabulary has 250,002 pieces of at most 16 characters. Unknown pieces (runs of unknown characters) may be
# many and long, so the cache limits both.
MAX_CACHED, MAX_CACHED_LENGTH = 300_000, 64
NOTHING = Finder()

Value = TypeVar("Value")


class PieceCache(dict[Piece, Value], Generic[Value]):
    """`make(text of the piece)`, cached by piece."""

    def __init__(self, model: PieceModel, make: Callable[[str], Value]) -> None:
        super().__init__()
        self.text_of = model.text_of
        self.make = make

    def __missing__(self, piece: Piece) -> Value:
        text = self.text_of(piece)
        value = self.make(text)
        if len(self) < MAX_CACHED and len(text) <= MAX_CACHED_LENGTH:
            self[piece] = value
        return value


@dataclass(slots=True)
class Encoded:
    """One text: the ids of its tokens; their spans, if requested; and, if it came as words, the word of each."""

    ids: list[int]
    offsets: list[Span] | None = None
    words: list[int] | None = None
    text: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, end: int) -> Encoded:
        """The tokens from `start` to `end`."""
        return Encoded(
            self.ids[start:end],
            None if self.offsets is None else self.offsets[start:end],
            None if self.words is None else self.words[start:end],
            self.text,
        )

    def word_ids(self) -> list[int]:
        """The index of each token's word, as given or in `text.split()`. A lone marker belongs to the next one."""
        if self.words is not None:
            return self.words
        if self.offsets is None:
            raise ValueError("word_ids: expected a call with return_offsets_mapping=True or is_split_into_words=True")
        ends = [match.end() for match in re.finditer(r"\S+", self.text)]
        return [bisect_right(ends, start) for start, _ in self.offsets]


def ordinary(segments: Iterable[Segment]) -> list[str]:
    """The texts of the ordinary segments."""
    return [segment.text for segment in segments if not segment.special]


def join_words(parts: Sequence[Encoded]) -> Encoded:
    """The words of one text, joined. Spans stay relative to their word; `words` has its index."""
    located = all(part.offsets is not None for part in parts)
    return Encoded(
        [index for part in parts for index in part.ids],
        [span for part in parts for span in part.offsets or ()] if located else None,
        [word for word, part in enumerate(parts) for _ in part.ids],
    )


class TextEncoder:
    """Encodes texts with one piece model and one token table. Create a new one when tokens are added."""

    def __init__(self, model: PieceModel, table: TokenTable, lone_marker: str) -> None:
        self.model = model
        self.table = table
        self.lone_marker = lone_marker
        self.marker = model.piece_of(MARKER)
        self.runs_meet = MARKER + MARKER in model.normalise("a  b")[0]
        self.text = PieceCache(model, str)
        self.strings = PieceCache(model, lambda text: tuple(text[start:end] for start, end in cut(text)))
        self.starts_marked = PieceCache(model, lambda text: text.startswith(MARKER))
        self.ids = PieceCache(model, self.find_ids)
        self.only_id = PieceCache(model, self.find_only_id)
        # There are many pieces but few distinct walks over them: shared, these stay in the processor's cache.
        walks: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.steps = PieceCache(model, lambda text: walks.setdefault(steps(text), steps(text)))
        self.vanishes = lru_cache(4096)(lambda character: not model.normalise(character)[0].strip(MARKER))

    def segments(self, text: str, split_special: bool) -> tuple[list[Segment], list[int] | None]:
        """The segments of a text and, if lower-casing moved characters, the source index of each character."""
        source = None
        if self.table.do_lower_case:
            text, source = lower_case(text, self.table.cased)
        return split(text, NOTHING if split_special else self.table.finder, self.table.added), source

    def pieces(self, texts: list[str]) -> Iterator[list[Piece]]:
        """The pieces of the text of each ordinary segment, after rule A."""
        marked = self.starts_marked.__getitem__
        for text, pieces in zip(texts, self.model.pieces(texts), strict=True):
            meet = self.runs_meet or MARKER in text
            yield drop_markers(pieces, self.marker, self.lone_marker, marked if meet else None)

    def tokens(self, text: str, split_special: bool) -> list[str]:
        """The tokens of a text, as strings."""
        segments, _ = self.segments(text, split_special)
        pieces = self.pieces(ordinary(segments))
        tokens: list[str] = []
        for segment in segments:
            if segment.special:
                tokens.append(segment.text)
            else:
                tokens += chain.from_iterable(map(self.strings.__getitem__, next(pieces)))
        return tokens

    def encode(self, texts: Sequence[str], split_special: bool, with_offsets: bool) -> list[Encoded]:
        """The ids of each text and, if requested, the spans of its tokens."""
        # None for a text that is one ordinary segment. Nearly all are, and objects for them would cost a tenth.
        segmented = [
            None if self.is_ordinary(text, split_special) else self.segments(text, split_special) for text in texts
        ]
        parts = [[text] if found is None else ordinary(found[0]) for text, found in zip(texts, segmented, strict=True)]
        pieces = self.pieces([part for found in parts for part in found])
        return [
            self.join_pieces(text, next(pieces), with_offsets)
            if found is None
            else self.join_segments(text, *found, pieces, with_offsets)
            for text, found in zip(texts, segmented, strict=True)
        ]

    def is_ordinary(self, text: str, split_special: bool) -> bool:
        """Whether it is certain that a text is one ordinary segment and keeps its case."""
        return text != "" and not self.table.do_lower_case and (split_special or not self.table.finder.may_find(text))

    def find_ids(self, text: str) -> tuple[int, ...]:
        """The ids of the tokens that a piece is cut into."""
        return tuple(self.table.id_of(text[start:end]) for start, end in cut(text))

    def find_only_id(self, text: str) -> int | None:
        """The id of a piece that is one token, as nearly every piece is; None for others."""
        ids = self.find_ids(text)
        return ids[0] if len(ids) == 1 else None

    def ids_of(self, pieces: list[Piece]) -> list[int]:
        """The ids of the tokens that these pieces are cut into."""
        # Faster than to chain a tuple for each piece.
        ids: list[Any] = list(map(self.only_id.__getitem__, pieces))
        if None in ids:
            for i in [i for i, number in enumerate(ids) if number is None][::-1]:
                ids[i : i + 1] = self.ids[pieces[i]]
        return ids

    def join_pieces(self, text: str, pieces: list[Piece], with_offsets: bool) -> Encoded:
        """The ids of a text that is one ordinary segment, and their spans."""
        ids = self.ids_of(pieces)
        return Encoded(ids, self.locate(text, 0, pieces, len(ids)), text=text) if with_offsets else Encoded(ids)

    def join_segments(
        self,
        text: str,
        segments: list[Segment],
        source: list[int] | None,
        pieces: Iterator[list[Piece]],
        with_offsets: bool,
    ) -> Encoded:
        """The ids of a text's segments and their spans in the text; `pieces` yields each segment's pieces next."""
        ids: list[int] = []
        offsets: list[Span] = []
        for segment in segments:
            if segment.special:
                ids.append(self.table.id_of(segment.text))
                offsets.append((segment.start, segment.start + len(segment.text)))
                continue
            own = next(pieces)
            found = self.ids_of(own)
            ids += found
            if with_offsets:
                offsets += self.locate(segment.text, segment.start, own, len(found))
        if source is not None:
            offsets = [(source[a], source[b - 1] + 1 if b > a else source[b]) for a, b in offsets]
        return Encoded(ids, offsets, text=text) if with_offsets else Encoded(ids)

    def locate(self, text: str, start: int, pieces: list[Piece], count: int) -> list[Span]:
        """The spans of the `count` tokens of an ordinary segment, whose text starts at `start`."""
        walks = map(self.steps.__getitem__, pieces)
        bytewise = self.model.byte_fallback
        if not bytewise and self.model.is_plain(text):
            # The usual case. The marker in front does not stand for a character.
            return ranges(walks, start - 1, count)
        normalised, source = self.model.normalise(text)
        if not bytewise and normalised.startswith(MARKER) and source[1:] == list(range(len(text) + 1)):
            # Characters were replaced one for one.
            return ranges(walks, start - 1, count)
        texts = map(self.text.__getitem__, pieces)
        found = byte_ranges(texts, normalised) if bytewise else ranges(walks, 0, count)
        spans = follow(found, text, source, self.vanishes)
        return [(start + first, start + end) for first, end in spans] if start else spans

"""The sentencepiece model: it normalises a text and cuts it into pieces. Token ids do not come from it.

    "Zwei Äpfel"  ->  "▁Zwei▁Äpfel"  ->  ["▁Z", "wei", "▁", "Ä", "pfel"]

Spaces become the marker ▁ (U+2581), and one is put in front of the text. A table in the model file defines how
characters are normalised (for ERNIE-M, nearly NFKC). The pieces of a text, joined, are its normalised form.

Source: SentencePiece (Kudo and Richardson, 2018); `ModelProto` in its `sentencepiece_model.proto`.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import sentencepiece

from .files import read_regular
from .sampling import sampling_options

MARKER = "▁"

# A piece: the model's own number for it, which is faster to get and to look up, or the text of an unknown piece.
Piece: TypeAlias = "int | str"

# Fields of `ModelProto` that every complete model has, by number.
FIELDS = {1: "pieces", 2: "trainer_spec", 3: "normalizer_spec"}

# Normalisation can make up to 18 characters out of one (U+FDFA), and each may become a token that takes a hundred times
# the memory of its character. In ordinary texts the number hardly changes, so one that grows by more than this factor
# is refused, unless it is short: these many characters more are always allowed.
MOST_GROWTH, FREE_GROWTH = 4, 2**18
# No text of up to this many characters grows by more than `FREE_GROWTH`.
SHORT = 8192

# A batch call of sentencepiece first starts a thread, which takes as long as several short texts.
FEW_TEXTS = 4
# Cutting this many characters takes several milliseconds, a hundred times as long as starting a thread.
CHARACTERS_PER_THREAD = 2**16


class PieceModel:
    """A loaded sentencepiece model with its sampling options. Pickling it does not need the file."""

    def __init__(self, data: bytes, source: str, sampling: Mapping[str, Any] | None = None) -> None:
        """Load a model from a file's content; errors call it `source`. `sampling`: see `sampling_options`."""
        self._options = sampling_options(sampling or {})
        # Without NumPy's types, which cannot be saved.
        self.sampling = {name: x.item() if hasattr(x, "item") else x for name, x in (sampling or {}).items()}
        self._processor = sentencepiece.SentencePieceProcessor()
        hint = "the model is the first argument, vocab.txt the second"
        try:
            # sentencepiece takes empty data for "no model given".
            complete = bool(data) and self._processor.LoadFromSerializedProto(data) is not False
        except Exception as error:
            raise ValueError(f"sentencepiece_model_file: {source} is not a sentencepiece model ({hint})") from error
        if not complete:
            raise ValueError(f"sentencepiece_model_file: {source} is empty, expected a sentencepiece model")
        self.byte_fallback: bool = self._processor.is_byte(self._processor.piece_to_id("<0x00>"))
        found = field_numbers(data)
        missing = [name for number, name in FIELDS.items() if number not in found]
        if missing:
            raise ValueError(f"sentencepiece_model_file: {source} has no {' and no '.join(missing)}: is it truncated?")

    @classmethod
    def read(cls, path: str | os.PathLike[str], sampling: Mapping[str, Any] | None = None) -> PieceModel:
        """Load a model file. Raises FileNotFoundError or ValueError that names the file."""
        try:
            data = read_regular(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"sentencepiece_model_file: {path} does not exist") from None
        except ValueError as error:
            raise ValueError(f"sentencepiece_model_file: {error}") from None
        return cls(data, str(path), sampling)

    def pieces(self, texts: list[str]) -> list[list[Piece]]:
        """The pieces of each text, from one call: sentencepiece processes the batch without Python.

        Raises ValueError if normalisation makes a long text, or all texts together, several times longer.
        """
        for text in texts:
            if len(text) > SHORT:
                check_growth(len(text), len(self._processor.normalize(text)), "when normalised")
        pieces = self._draw(texts) if self._options else self._cut(texts)
        check_growth(sum(map(len, texts)), sum(map(len, pieces)), "pieces")
        return pieces

    def _draw(self, texts: list[str]) -> list[list[Piece]]:
        """The pieces of each text, sampled.

        As text, because a second call (for unknown pieces) would draw different pieces. One by one, because a batch
        runs in a new thread, which after `sentencepiece.set_random_generator_seed` always draws the same.
        """
        drawn = (self._processor.encode(text, out_type=str, **self._options) for text in texts)
        return [[self.piece_of(piece) for piece in row] for row in drawn]

    def _cut(self, texts: list[str]) -> list[list[Piece]]:
        """The pieces of each text, the most probable ones."""
        pieces: list[list[Piece]]
        if len(texts) <= FEW_TEXTS:
            pieces = [self._processor.encode(text, out_type=int) for text in texts]
        else:
            threads = threads_for(sum(map(len, texts)))
            pieces = self._processor.encode(texts, out_type=int, num_threads=threads)
        unknown = self._processor.unk_id()
        for row, text in zip(pieces, texts, strict=True):
            if unknown in row:
                at = -1
                for unknown_text in self._unknown_texts(text, row.count(unknown)):
                    at = row.index(unknown, at + 1)
                    row[at] = unknown_text
        return pieces

    def _unknown_texts(self, text: str, count: int) -> list[str]:
        """The texts of the `count` unknown pieces of a text, in order."""
        if self._unknown_runs is not None:
            # Twice as fast as cutting the text again.
            found: list[str] = self._unknown_runs.findall(self._processor.normalize(text))
            if len(found) == count:
                return found
        unknown = self._processor.unk_id()
        pieces = self._processor.encode(text, out_type=str)
        return [piece for piece in pieces if self._processor.piece_to_id(piece) == unknown]

    @cached_property
    def _unknown_runs(self) -> re.Pattern[str] | None:
        """A pattern for the unknown pieces in a normalised text, if single characters determine them.

        They do if every character that occurs in a piece is also a piece: then exactly the other characters are
        unknown, and a run of them is one piece. The trainer ensures this, except for models with user-defined symbols.
        """
        known = [i for i in range(self._processor.get_piece_size()) if not self._processor.is_control(i)]
        table = [self._processor.id_to_piece(i) for i in known if i != self._processor.unk_id()]
        alphabet = {piece for piece in table if len(piece) == 1}
        closed = set("".join(table)) == alphabet
        return re.compile(f"[^{re.escape(''.join(sorted(alphabet)))}]+") if closed and alphabet else None

    def text_of(self, piece: Piece) -> str:
        """The text of a piece."""
        text: str = self._processor.id_to_piece(piece) if isinstance(piece, int) else piece
        return text

    def piece_of(self, text: str) -> Piece:
        """The piece with this text."""
        number: int = self._processor.piece_to_id(text)
        return text if number == self._processor.unk_id() else number

    def is_plain(self, text: str) -> bool:
        """Whether normalising `text` only replaces its spaces with markers and puts one in front."""
        normalised: str = self._processor.normalize(text)
        return normalised == MARKER + text.replace(" ", MARKER)

    def normalise(self, text: str) -> tuple[str, list[int]]:
        """The normalised text of n characters, and n + 1 positions in `text`: the source of each, and the end."""
        normalised, source = self._processor.normalize(text, with_offsets=True)
        return normalised, source

    def table(self) -> list[str]:
        """The model's own pieces, in the order of its own ids."""
        return [self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())]

    def sample(self, most: int) -> list[str]:
        """At most `most` of the model's own pieces, evenly spaced, without control and unknown pieces."""
        size = self._processor.get_piece_size()
        numbers = range(0, size, -(-size // most))
        return [
            self._processor.id_to_piece(i)
            for i in numbers
            if not self._processor.is_control(i) and not self._processor.is_unknown(i)
        ]

    def serialised(self) -> bytes:
        """The model file's bytes."""
        data: bytes = self._processor.serialized_model_proto()
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.serialised(), "sampling": self.sampling}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["data"], "a pickled tokenizer", state["sampling"])  # type: ignore[misc]


def threads_for(characters: int) -> int:
    """How many threads cut texts of so many characters: one in a child process, such as a data loader's worker."""
    if multiprocessing.parent_process() is not None:
        return 1
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 1 + characters // CHARACTERS_PER_THREAD)


def check_growth(characters: int, found: int, what: str) -> None:
    """Raise ValueError if texts of `characters` became many more characters or pieces; `what` says which."""
    if found > MOST_GROWTH * characters + FREE_GROWTH:
        raise ValueError(
            f"text: {characters:,} characters become {found:,} {what}, expected at most {MOST_GROWTH} times as many, "
            f"and {FREE_GROWTH:,}, because each takes memory; split the text"
        )


def check_unicode(text: str, name: str = "text") -> None:
    """Raise ValueError if `text` contains a surrogate; `name` is the argument, for the message."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise ValueError(
            f"{name}: expected Unicode text, got lone surrogate {code} at position {error.start}"
        ) from None


def field_numbers(data: Sequence[int]) -> set[int]:
    """The numbers of the top-level fields of a protobuf message.

    A file truncated between two fields is still a valid message: sentencepiece loads it, and normalises by its own
    defaults. These numbers tell a complete model from a truncated one.
    """
    numbers, at = set(), 0
    while at < len(data):
        # Nearly every field is a piece of less than 128 bytes: two bytes, then its content.
        while at + 1 < len(data) and data[at] == 0x0A and data[at + 1] < 128:
            numbers.add(1)
            at += 2 + data[at + 1]
        if at >= len(data):
            break
        tag, at = varint(data, at)
        numbers.add(tag >> 3)
        if tag & 7 == 2:
            length, at = varint(data, at)
            at += length
        elif tag & 7 == 0:
            _, at = varint(data, at)
        else:
            at += 8 if tag & 7 == 1 else 4
    return numbers


def varint(data: Sequence[int], at: int) -> tuple[int, int]:
    """The base-128 number that starts at `at`, and the position after it."""
    value, shift = 0, 0
    while at < len(data):
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            break
    return value, at

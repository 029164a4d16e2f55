"""vocab.txt: one token per line; a token's id is its line number, counted from 0.

    [CLS] [PAD] [SEP] [UNK]   0 to 3
    the pieces                the sentencepiece model's own, in its order, without its control and unknown pieces
    [MASK]                    last

A line ends at "\\n"; "\\r\\n" is a line end only if every line ends with it. Python's universal newlines would also
split at a lone "\\r", which may be a token, and so shift the ids of all later tokens. A token on two lines encodes to
the later id, as in transformers; both ids decode to the token.

Source: transformers 4.40.2 `tokenization_ernie_m.py`, `load_vocab` and `save_vocabulary`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .files import read_regular

# The most duplicates that a message lists; a wrong file may have a hundred thousand.
MAX_LISTED = 5
# sentencepiece's own `.vocab` ("piece, tab, score"), and the tables of token and count or id that other programs write.
NUMBERED = re.compile(r".*[\t ]-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
# ERNIE-M's own file holds every piece of its model, and so does one that is made by the rule above, except for
# pieces that contain a line end. A file cut down to one language still holds more than this: in 80 sentences, each of
# 21 languages used 4 to 12 % of the pieces of a small model. Too few means another model's vocabulary, or hardly any
# at all.
FEWEST_PIECES = 0.03
# Between WordPiece and sentencepiece, short words and Han characters coincide; WordPiece is known by its own marker.
WORDPIECE, MOST_WORDPIECE = "##", 0.1


class Vocabulary:
    """The tokens by id (`tokens`) and the ids by token (`ids`), without tokens added later."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self.ids = {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def read(cls, path: str | os.PathLike[str], strict: bool = False) -> Vocabulary:
        """Read a vocab.txt. Duplicate lines are reported on stderr or, if `strict`, raise ValueError.

        Raises FileNotFoundError (or another OSError) for a file that cannot be read, ValueError for one that is not
        UTF-8, is empty, has numbers next to the tokens, or is a git-lfs pointer; each names the file.
        """
        vocabulary = cls(split_lines(read_text(Path(path))))
        if not vocabulary.tokens:
            raise ValueError(f"vocab_file: {path} is empty, expected one token per line")
        numbered = [token for token in vocabulary.tokens if NUMBERED.fullmatch(token)]
        if 2 * len(numbered) > len(vocabulary):
            raise ValueError(
                f"vocab_file: {path}: most lines are a token and a number, such as {numbered[0]!r}; expected the token "
                "alone, whose id is its line number"
            )
        if len(vocabulary.ids) < len(vocabulary.tokens):
            report = f"vocab_file: {path}: {vocabulary.duplicates()}"
            if strict:
                raise ValueError(report)
            print(f"{report}; text encodes to the last of each", file=sys.stderr)
        return vocabulary

    def check_pieces(self, pieces: Sequence[str], path: str | os.PathLike[str]) -> None:
        """Raise ValueError, naming the file, if nearly every one of the model's pieces is missing from it."""
        problem = f"vocab_file: {path} does not belong to the sentencepiece model"
        wordpiece = sum(token.startswith(WORDPIECE) for token in self.tokens)
        if wordpiece > MOST_WORDPIECE * len(self):
            raise ValueError(f"{problem}: {wordpiece} of {len(self)} lines begin with {WORDPIECE}, as WordPiece's do")
        known = sum(piece in self.ids for piece in pieces)
        if known < FEWEST_PIECES * len(pieces):
            raise ValueError(
                f"{problem}: of {len(pieces)} of its pieces it has {known}; nearly all of a text would be [UNK]"
            )

    def duplicates(self) -> str:
        """Describe the tokens that are on more than one line, with line numbers counted from 1, as in editors."""
        # Only the lines whose token has a later one: this stays short for a large vocabulary.
        lines: dict[str, list[int]] = {}
        for i, token in enumerate(self.tokens):
            if self.ids[token] != i:
                lines.setdefault(token, []).append(i + 1)
        entries = [
            f"{token!r} on lines {', '.join(map(str, n))} and {self.ids[token] + 1}" for token, n in lines.items()
        ]
        more = f"; and {len(entries) - MAX_LISTED} more" if len(entries) > MAX_LISTED else ""
        return f"{len(entries)} duplicate token{'s' * (len(entries) > 1)}: {'; '.join(entries[:MAX_LISTED])}{more}"

    def text(self) -> str:
        """The content of a vocab.txt with these tokens, including duplicates, so that each keeps its id."""
        for i, token in enumerate(self.tokens):
            if "\n" in token:
                raise ValueError(f"vocabulary: token {i}, {token!r}, contains a line end, which vocab.txt cannot hold")
        return "".join(f"{token}\n" for token in self.tokens)


def read_text(path: Path) -> str:
    """The file's text, decoded from UTF-8 with or without a byte order mark."""
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"vocab_file: {path} does not exist; for the sentencepiece model's own ids, pass vocab_file='sentencepiece'"
        ) from None
    except ValueError as error:
        raise ValueError(f"vocab_file: {error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"vocab_file: {path} is not UTF-8: {error.reason} on line {line}") from None


def split_lines(text: str) -> list[str]:
    """The lines of `text` without their ends; the last line need not have one."""
    ends = text.count("\n")
    lines = text.split("\r\n" if ends and text.count("\r\n") == ends else "\n")
    return lines[:-1] if lines[-1] == "" else lines

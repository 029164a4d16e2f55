"""ERNIE-M cuts sentencepiece's pieces once more, by two rules.

Rule A: a piece that is only the marker ▁. transformers keeps it as a token if it is not the first piece of its text
and the next piece does not begin with ▁; Paddle always drops it. As the last piece it is dropped here, where
transformers fails with an IndexError.

Rule B: every other piece, on its own:

    isolated characters (Han, and 17 punctuation marks) are tokens of their own;
    a cut separates a digit from anything else, ▁ included, except before ▁;
    a ▁ that these cuts leave alone is dropped, unless it ends the piece.

    ▁2024年  ->  2024 年        ▁中文  ->  中 文        ▁A4  ->  ▁A 4        ▁的  ->  的        ▁the  ->  ▁the

Source: transformers 4.40.2 `tokenization_ernie_m.py`, `ErnieMTokenizer._tokenize`; paddlenlp 2.8.1
`ernie_m/tokenizer.py`, likewise.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .piece_model import MARKER, Piece

LONE_MARKER_RULES = ("huggingface", "paddle")
# Replaces a dropped lone marker, so that positions in the text can still be counted.
DROPPED = ""

# The block of Han characters, without its extensions, and the ASCII and full-width marks that both sources list.
ISOLATED = "\u4e00-\u9fff" + re.escape(",;:.?!~") + "，；：。？！《》【】"

# All characters for which `str.isdigit` is true: decimal digits (\d), and others that Unicode calls digits:
# superscripts, Ethiopic, circled, in brackets, with a full stop. Unicode will not add to the latter.
DIGIT = (
    r"\d\u00b2\u00b3\u00b9\u1369-\u1371\u19da\u2070\u2074-\u2079\u2080-\u2089\u2460-\u2468\u2474-\u247c\u2488-\u2490"
    r"\u24ea\u24f5-\u24fd\u24ff\u2776-\u277e\u2780-\u2788\u278a-\u2792\U00010a40-\U00010a43\U00010e60-\U00010e68"
    r"\U00011052-\U0001105a\U0001f100-\U0001f10a"
)

# ▁ is not a digit, but does not end a run of digits: it adds what follows it to the run.
TOKEN = re.compile(f"[{ISOLATED}]|[{DIGIT}]+(?:{MARKER}[^{DIGIT}{ISOLATED}]*)?|[^{DIGIT}{ISOLATED}]+")


def drop_markers(
    pieces: list[Piece], marker: Piece, lone_marker: str, starts_marked: Callable[[Piece], bool] | None = None
) -> list[Piece]:
    """Apply rule A to the pieces of one text, possibly in place: a dropped lone marker becomes `DROPPED`.

    `marker` is the lone marker as a piece; `lone_marker` is "huggingface" or "paddle". `starts_marked` tells whether a
    piece begins with a marker. It is None if no two markers can meet: then only the first and the last piece can be a
    marker to drop, and a loop over the pieces is not needed.
    """
    if lone_marker == "paddle":
        return [DROPPED if piece == marker else piece for piece in pieces]
    if starts_marked is not None:
        for i, following in enumerate(pieces[1:]):
            if pieces[i] == marker and starts_marked(following):
                pieces[i] = DROPPED
    for i in (0, -1):
        if pieces and pieces[i] == marker:
            pieces[i] = DROPPED
    return pieces


def cut(piece: str) -> list[tuple[int, int]]:
    """Apply rule B: the tokens of a piece, as half-open ranges of its characters. A lone marker is one token here."""
    ranges = [match.span() for match in TOKEN.finditer(piece)]
    last = len(piece)
    return [(start, end) for start, end in ranges if piece[start:end] != MARKER or end == last]

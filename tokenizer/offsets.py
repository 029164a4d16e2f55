"""Character offsets: the span of the source text that each token comes from.

sentencepiece reports the source position of every character of its normalised text, and its pieces, joined, are the
normalised text. So each token is a known range of the normalised text, and its span is

    start   the source position of its first character, not counting markers
    end     the next larger source position after its last character

minus any characters at the end that normalisation deletes or turns into space. If one character became several tokens
(㎏ -> k, g), or a sequence was composed into one character that was then cut, each token has the whole span. A lone
marker has the run of white space that it stands for, which may be empty at the end of the text. Spans are half-open, in
Python's code points.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain

from .cutting import DROPPED, cut
from .piece_model import MARKER

Span = tuple[int, int]
# As many spans as texts of a few thousand characters have; each takes 100 bytes.
MAX_SHARED = 100_000


class SharedSpans(dict[Span, Span]):
    """One tuple per distinct span: short texts share the same few thousand, and `zip` can reuse the one it looks up.

    A new tuple per token would cost more than computing it, because Python's cyclic garbage collector scans them all.
    """

    def __missing__(self, span: Span) -> Span:
        if len(self) < MAX_SHARED:
            self[span] = span
        return span


SHARED = SharedSpans()
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def steps(piece: str) -> tuple[int, ...]:
    """How to walk over a piece: for each token, the number of characters to skip before it, and its length.

    Markers at a token's ends are skipped, unless it is only markers. The rest of the piece after its last token, and a
    dropped marker, are skipped before a token of length 0.
    """
    if piece == DROPPED:
        return len(MARKER), 0
    walk: list[int] = []
    at = 0
    for start, end in cut(piece):
        token = piece[start:end]
        inner = token.strip(MARKER) or token
        first = start + token.index(inner)
        walk += [first - at, len(inner)]
        at = first + len(inner)
    return tuple(walk) if at == len(piece) else (*walk, len(piece) - at, 0)


def ranges(walks: Iterable[Sequence[int]], start: int, count: int) -> list[Span]:
    """The ranges of a text's `count` tokens, found by walking these steps from `start`."""
    places = accumulate(chain.from_iterable(walks), initial=start)
    next(places)
    # The same iterator twice: it yields starts and ends in turn.
    found = list(map(SHARED.__getitem__, zip(places, places, strict=True)))
    return found if len(found) == count else [span for span in found if span[0] != span[1]]


def byte_ranges(pieces: Iterable[str], normalised: str) -> list[Span]:
    """The ranges of a text's tokens if the model has byte fallback.

    Such a model spells an unknown character as pieces such as <0xE9>, one for each of its UTF-8 bytes. All tokens that
    these are cut into have the range of that character.
    """
    found: list[Span] = []
    at = left = 0
    for piece in pieces:
        count = len(cut(piece))
        if BYTE.fullmatch(piece) and not normalised.startswith(piece, at):
            left = (left or len(normalised[at].encode())) - 1
            found += [(at, at + 1)] * count
            at += left == 0
        else:
            found += ranges([steps(piece)], at, count)
            at += len(piece or MARKER)
    return found


def follow(found: Sequence[Span], text: str, source: Sequence[int], vanishes: Callable[[str], bool]) -> list[Span]:
    """Convert ranges of the normalised text to spans of `text`.

    `source` holds the source position of every normalised character, and of the end. `vanishes` tells whether
    normalisation turns a character into nothing or only space; a span of only such characters stays whole.
    """
    spans = [(source[start], source[end]) for start, end in found]
    # If the next position is not larger, several tokens come from one character; if it is larger by more than 1, the
    # token comes from several characters.
    odd = [i for i, (_, end) in enumerate(found) if source[end] - source[end - 1] != 1]
    for i in odd:
        (start, end), after = spans[i], found[i][1]
        last = source[after - 1]
        if end == last:
            at = bisect_right(source, last, after)
            end = source[at] if at < len(source) else len(text)
        if not vanishes(text[start : start + 1]):
            while end - 1 > last and vanishes(text[end - 1]):
                end -= 1
        spans[i] = (start, end)
    return spans

"""Character offsets: the span of the source text that each token comes from.

sentencepiece tells for every character of its normalised text where in the source it comes from, and its pieces,
joined, are the normalised text. So a token is a known range of the normalised text, and its span is

    start   the source position of its first character, markers apart
    end     the next larger source position after its last character

less any characters at the end that normalisation deletes or turns into space. Where one character became several
tokens (㎏ -> k, g), or a sequence was composed into one character that was then cut, each token has the whole span. A
lone marker has the run of white space that it stands for, which at the text's end may be empty. Spans are half open, in
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
# As many spans as texts of some thousand characters have; they are 100 bytes each.
MOST_SHARED = 100_000


class SharedSpans(dict[Span, Span]):
    """Each span once: the spans of short texts are the same few thousand, and `zip` makes no tuple that is not kept.

    A new tuple for every token would cost more than the rest of the way to it: Python's cyclic garbage collector looks
    through all of them.
    """

    def __missing__(self, span: Span) -> Span:
        if len(self) < MOST_SHARED:
            self[span] = span
        return span


SHARED = SharedSpans()
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def steps(piece: str) -> tuple[int, ...]:
    """How to walk over a piece: for each token the characters to skip before it, and its length.

    Markers at a token's ends are skipped, unless it is markers only. What is left at the end of the piece, and a
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
    """The ranges of the `count` tokens that the steps of a text's pieces lead to from `start`."""
    places = accumulate(chain.from_iterable(walks), initial=start)
    next(places)
    # From one iterator: the starts and the ends in turn.
    found = list(map(SHARED.__getitem__, zip(places, places, strict=True)))
    return found if len(found) == count else [span for span in found if span[0] != span[1]]


def byte_ranges(pieces: Iterable[str], normalised: str) -> list[Span]:
    """The ranges of a text's tokens where the model has byte fallback.

    Such a model spells a character that it lacks as pieces <0xE9>, one for each of its UTF-8 bytes: all tokens that
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
    """From ranges of the normalised text to spans of `text`.

    `source` holds the source position of every normalised character, and one for the end. `vanishes` says whether
    normalisation leaves nothing, or only space, of a character; a span that is nothing else stays whole.
    """
    spans = [(source[start], source[end]) for start, end in found]
    # Where the next position is no larger, several tokens are from one character; where it is further on, more than
    # one character was taken in.
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

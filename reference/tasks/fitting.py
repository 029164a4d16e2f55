"""Texts, or pairs of texts, as rows that fit the model, by a policy for long ones (see `long_texts`).

    truncate      a pair's longer text loses its end first, or, where the second must stay whole, only the first does
    window-mean   windows of a pair's longer text, or of its first, each with all of the other
"""

from __future__ import annotations

import warnings

from ..training.rows import Row, RowEncoder, Text
from .long_texts import ERROR, POLICIES, TRUNCATE, WINDOW_MEAN, window_starts

CUT = "texts cut to fit"


def check_policy(long: str, allowed: tuple[str, ...] = POLICIES) -> str:
    """Raise ValueError unless the policy is one of those allowed."""
    if long not in allowed:
        raise ValueError(f"long: expected one of {', '.join(allowed)}, got {long!r}")
    return long


def fitted(
    encoder: RowEncoder, first: Text, second: Text | None, long: str, number: int, reserved: int | None = None
) -> list[Row]:
    """The rows of one text, or of a pair; more than one only for "window-mean". `encoder.notes[CUT]` counts those cut.

    reserved: only the first text may be cut, and windows leave room for so many tokens of the second; None: either may.
    Raises ValueError if the texts are too long for the policy.
    """
    special, whole = 2 if second is None else 4, reserved is not None
    room = encoder.longest - special
    beside = 0 if second is None else len(second)
    if long == WINDOW_MEAN:
        beside = max(beside, reserved or 0)
    tokens = len(first) + beside
    if tokens <= room:
        return [encoder.row(first, second, number)]
    if long == ERROR:
        raise ValueError(f"expected at most {encoder.longest} tokens, special tokens included, got {tokens + special}")
    if second is None:
        if long == TRUNCATE:
            return [encoder.single(first, number)]
        parts = [first.part(start, start + room) for start in window_starts(len(first), room)]
        return [encoder.row(part, None, number) for part in parts]
    if long == TRUNCATE and not whole:
        return [encoder.pair(first, second, number)]
    on_first = whole or len(first) >= beside
    longer, shorter, beside = (first, second, beside) if on_first else (second, first, len(first))
    if beside > room // 2:
        one = "the second text" if whole else "the shorter text"
        raise ValueError(f"{one}: expected at most {room // 2} tokens beside a long one, got {beside}")
    size = room - beside
    encoder.notes[CUT] += long == TRUNCATE
    starts = [0] if long == TRUNCATE else window_starts(len(longer), size)
    parts = [longer.part(start, start + size) for start in starts]
    return [encoder.row(*((part, shorter) if on_first else (shorter, part)), number) for part in parts]


def say_what_was_cut(encoder: RowEncoder, of: int, depth: int) -> None:
    """Warn, once for a call, of rows whose texts were cut; `depth` calls below the line that the warning is about."""
    if encoder.notes[CUT]:
        fits = f"the {encoder.longest} tokens that the model reads"
        warnings.warn(f"{encoder.notes[CUT]:,} of {of:,} rows had to be cut to {fits}", stacklevel=depth)

"""Texts, or pairs of texts, as rows that fit the model, by a policy for long ones (see `long_texts`).

What these two policies do to a pair:

    truncate      a pair's longer text loses its end first, or, where the second must stay whole, only the first does
    window-mean   windows of a pair's longer text, or of its first, each with all of the other
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from ernie_m.tokenizer import ErnieMTokenizer

from ..training.rows import Row, RowEncoder, Text
from .long_texts import ERROR, POLICIES, TRUNCATE, WINDOW_MEAN, window_starts
from .recorded import ONE_AT_A_TIME
from .task import Task

CUT = "texts cut to fit"


def fitted(
    encoder: RowEncoder, first: Text, second: Text | None, long: str, number: int, reserved: int | None = None
) -> list[Row]:
    """The rows of one text, or of a pair; more than one only for "window-mean". `encoder.notes[CUT]` counts those cut.

    reserved: only the first text may be cut, and windows leave room for so many tokens of the second, at most half of
    the row; None: either may. Raises ValueError if the texts are too long for the policy.
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
        raise ValueError(f"the shorter text: expected at most {room // 2} tokens beside a long one, got {beside}")
    size = room - beside
    encoder.notes[CUT] += long == TRUNCATE
    starts = [0] if long == TRUNCATE else window_starts(len(longer), size)
    parts = [longer.part(start, start + size) for start in starts]
    return [encoder.row(*((part, shorter) if on_first else (shorter, part)), number) for part in parts]


class FittingTask(Task):
    """A task whose texts are cut or refused where they are too long for the model.

    long: one of POLICIES, how to treat texts that are too long. With "truncate", a call that truncates texts warns once
    and says how many, and `truncated` counts them over all calls, by all threads: Python shows equal warnings about one
    line only once.
    """

    policies: ClassVar[tuple[str, ...]] = POLICIES

    def __init__(
        self,
        model: Any,
        tokenizer: ErnieMTokenizer,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        long: str = TRUNCATE,
    ) -> None:
        super().__init__(model, tokenizer, batch_size, progress)
        if long not in self.policies:
            raise ValueError(f"long: expected one of {', '.join(self.policies)}, got {long!r}")
        self.long = long
        self.truncated = 0

    def say_what_was_cut(self, count: int, of: int, what: str, depth: int) -> None:
        """Count what was truncated, and warn of it, `depth` calls below the line that the warning is about."""
        if count:
            with ONE_AT_A_TIME:
                self.truncated += count
            limit = f"the {self.config.max_length} tokens that the model reads"
            warnings.warn(f"{count:,} of {of:,} {what} had to be truncated to {limit}", stacklevel=depth)

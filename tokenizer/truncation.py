"""Truncation: which tokens of a row are kept if it would be longer than `max_length`.

    longest_first   drop one token at a time from the longer text, from the second if both are equally long
    only_first      drop from the first text only
    only_second     drop from the second text only

Special tokens are always kept. With `overflow` no token is lost: a row becomes several, with windows of the text that
is truncated; each window begins `stride` tokens before the end of the previous one. With truncation_side "left" the end
of a text is kept, and windows run from its end to its start.

Source: transformers 4.40.2 `tokenization_utils_base.py`, `truncate_sequences`, for the rules; its fast tokenizers
(tokenizers `Encoding::truncate`) for overflow as rows.
"""

from __future__ import annotations

from .layout import SPECIAL_PAIR, SPECIAL_SINGLE, Row
from .options import Options
from .text_encoder import Encoded


def truncate(row: Row, options: Options) -> list[Row]:
    """The row truncated to `options.max_length`, or one row per window.

    Raises ValueError if the strategy cannot reach `max_length`, or if the stride leaves no progress.
    """
    limit = options.truncation_length
    first, second = row.first, row.second
    if limit is None:
        return [row]
    if options.overflow and second is not None and options.truncation == "longest_first":
        raise ValueError(
            "return_overflowing_tokens: with a pair, expected truncation='only_first' or 'only_second', "
            "got 'longest_first'"
        )
    if len(row) <= limit:
        return [row]
    strategy = "only_first" if second is None and options.truncation == "longest_first" else options.truncation
    room = limit - row.special * (SPECIAL_SINGLE if second is None else SPECIAL_PAIR)
    if room < 0:
        raise ValueError(f"max_length: expected at least {limit - room}, the number of special tokens, got {limit}")
    if strategy == "only_second":
        if second is None:
            raise ValueError("truncation='only_second': expected a text pair, got no second text")
        parts = windows(second, room - len(first), options, f"second text of sample {row.sample}")
        return [Row(first, part, row.special, row.sample) for part in parts]
    if strategy == "only_first":
        size = room - (0 if second is None else len(second))
        parts = windows(first, size, options, f"first text of sample {row.sample}")
        return [Row(part, second, row.special, row.sample) for part in parts]
    assert second is not None  # a single text is truncated by "only_first"
    keep_first, keep_second = shares(len(first), len(second), room)
    return [Row(window(first, keep_first, options), window(second, keep_second, options), row.special, row.sample)]


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """The lengths that "longest_first" leaves: a text that fits its half stays whole; the first gets the odd token."""
    if first <= room - room // 2:
        return first, room - first
    if second <= room // 2:
        return room - second, second
    return room - room // 2, room // 2


def window(text: Encoded, size: int, options: Options) -> Encoded:
    """The `size` tokens that truncation keeps."""
    return text.part(0, size) if options.truncation_side == "right" else text.part(len(text) - size, len(text))


def windows(text: Encoded, size: int, options: Options, name: str) -> list[Encoded]:
    """The window that truncation keeps, followed, with overflow, by all others."""
    if size < 0:
        raise ValueError(
            f"truncation: max_length {options.truncation_length} cannot be reached: the {name} has "
            f"{-size} tokens too few to remove"
        )
    if not options.overflow:
        return [window(text, size, options)]
    step = size - options.stride
    if step <= 0:
        raise ValueError(f"stride: expected less than {size}, the text tokens of a row, got {options.stride}")
    count = 1 + -(-(len(text) - size) // step)
    starts = [i * step for i in range(count)]
    if options.truncation_side == "right":
        return [text.part(start, start + size) for start in starts]
    return [text.part(max(len(text) - start - size, 0), len(text) - start) for start in starts]

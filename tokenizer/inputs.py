"""The shapes in which texts can be given to a call, brought into one.

    not split      "a"      one text            ["a", "b"]          a batch      [("a", "b"), ...]   a batch of pairs
    split          ["a"]    one text's words    [["a"], ["b"]]      a batch

A text pair comes as a second argument of the same shape, or as pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# A text, or its words.
Text: TypeAlias = "str | list[str]"


@dataclass
class Inputs:
    """The first text of each sample, the second (None if there are no pairs), and whether a batch was given."""

    first: list[Text]
    second: list[Text] | None
    batched: bool


def arrange(text: Any, text_pair: Any, split_into_words: bool) -> Inputs:
    """Sort out the arguments of a call. TypeError for what is no text, ValueError for lengths that do not fit."""
    batched = is_batch("text", text, split_into_words)
    if batched and not split_into_words and text_pair is None and all(is_list(item) for item in text):
        if any(len(pair) != 2 for pair in text):
            raise ValueError("text: expected pairs of texts (for lists of words say is_split_into_words=True)")
        text, text_pair = [pair[0] for pair in text], [pair[1] for pair in text]
    first = [check("text", item, split_into_words) for item in (text if batched else [text])]
    if text_pair is None:
        return Inputs(first, None, batched)
    if is_batch("text_pair", text_pair, split_into_words) != batched:
        raise ValueError("text_pair: expected a batch if text is a batch, one text if it is one")
    second = [check("text_pair", item, split_into_words) for item in (text_pair if batched else [text_pair])]
    if len(first) != len(second):
        raise ValueError(f"text_pair: expected as many texts as text has, {len(first)}, got {len(second)}")
    return Inputs(first, second, batched)


def is_list(value: Any) -> bool:
    """Whether it is a list or a tuple."""
    return isinstance(value, (list, tuple))


def is_batch(name: str, value: Any, split_into_words: bool) -> bool:
    """Whether `value` is several samples."""
    if isinstance(value, str) and not split_into_words:
        return False
    if not is_list(value):
        expected = "a list of words or a list of such lists" if split_into_words else "str or a list of str"
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{name}: expected at least one text, got an empty list")
    return not split_into_words or is_list(value[0])


def check(name: str, value: Any, split_into_words: bool) -> Text:
    """One sample's text or words."""
    if not split_into_words:
        if isinstance(value, str):
            return value
        raise TypeError(f"{name}: expected str, got {type(value).__name__}")
    if is_list(value) and all(isinstance(word, str) for word in value):
        return list(value)
    raise TypeError(f"{name}: expected a list of words, got {value!r:.80}")


def flatten(texts: Sequence[Text]) -> list[str]:
    """All texts, or all words of all texts, in a row."""
    return [part for text in texts for part in ([text] if isinstance(text, str) else text)]

"""The forms that a call accepts texts in, converted to one.

    not split      "a"      one text            ["a", "b"]          a batch      [("a", "b"), ...]   a batch of pairs
    split          ["a"]    one text's words    [["a"], ["b"]]      a batch

A second text is a second argument of the same form, or part of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# A text, or the list of its words.
Text: TypeAlias = "str | list[str]"


@dataclass
class Inputs:
    """The first text of each sample, the second (None without pairs), and whether the input was a batch."""

    first: list[Text]
    second: list[Text] | None
    batched: bool


def arrange(
    text: Any, text_pair: Any, split_into_words: bool, names: tuple[str, str] = ("text", "text_pair")
) -> Inputs:
    """Convert a call's arguments. Raises TypeError if one is not text, ValueError if lengths do not match.

    `names` are those of the two arguments, for messages.
    """
    name, pair_name = names
    batched = is_batch(name, text, split_into_words)
    if batched and not split_into_words and text_pair is None and all(is_list(item) for item in text):
        if any(len(pair) != 2 for pair in text):
            raise ValueError(f"{name}: expected pairs of texts (for lists of words, pass is_split_into_words=True)")
        text, text_pair = [pair[0] for pair in text], [pair[1] for pair in text]
    first = [check(name, item, split_into_words) for item in (text if batched else [text])]
    if text_pair is None:
        return Inputs(first, None, batched)
    if is_batch(pair_name, text_pair, split_into_words) != batched:
        raise ValueError(f"{pair_name}: expected a batch if {name} is a batch, otherwise one text")
    second = [check(pair_name, item, split_into_words) for item in (text_pair if batched else [text_pair])]
    if len(first) != len(second):
        raise ValueError(f"{pair_name}: expected as many texts as {name} has, {len(first)}, got {len(second)}")
    return Inputs(first, second, batched)


def is_list(value: Any) -> bool:
    """Whether `value` is a list or a tuple."""
    return isinstance(value, (list, tuple))


def is_batch(name: str, value: Any, split_into_words: bool) -> bool:
    """Whether `value` is a batch of samples."""
    if isinstance(value, str) and not split_into_words:
        return False
    if not is_list(value):
        expected = "a list of words or a list of such lists" if split_into_words else "str or a list of str"
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{name}: expected at least one text, got an empty list")
    return not split_into_words or is_list(value[0])


def check(name: str, value: Any, split_into_words: bool) -> Text:
    """Validate one sample: its text or its words."""
    if not split_into_words:
        if isinstance(value, str):
            return value
        raise TypeError(f"{name}: expected str, got {type(value).__name__}")
    if is_list(value) and all(isinstance(word, str) for word in value):
        return list(value)
    raise TypeError(f"{name}: expected a list of words, got {value!r:.80}")


def flatten(texts: Sequence[Text]) -> list[str]:
    """All texts, or all words of all texts, in one list."""
    return [part for text in texts for part in ([text] if isinstance(text, str) else text)]

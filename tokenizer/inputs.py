"""The forms that a call accepts texts in, converted to one.

    not split      "a"      one text            ["a", "b"]          a batch      [("a", "b"), ...]   a batch of pairs
    split          ["a"]    one text's words    [["a"], ["b"]]      a batch

A second text is a second argument of the same form, or part of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .piece_model import check_unicode

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
    """Convert a call's arguments.

    `names` are those of the two arguments, for messages. Raises TypeError for what is not text, ValueError for a lone
    surrogate, each with the index, such as `text[3]`; ValueError too if lengths do not match.
    """
    name, pair_name = names
    batched = is_batch(name, text, split_into_words)
    if batched and not split_into_words and text_pair is None and all(is_list(item) for item in text):
        for i, pair in enumerate(text):
            if len(pair) != 2:
                hint = "for lists of words, pass is_split_into_words=True"
                raise ValueError(f"{name}[{i}]: expected a pair of texts, got {len(pair)} ({hint})")
        first, second = ([check(f"{name}[{i}][{j}]", p[j], False) for i, p in enumerate(text)] for j in (0, 1))
        return Inputs(first, second, batched)
    first = check_all(name, text, batched, split_into_words)
    if text_pair is None:
        return Inputs(first, None, batched)
    if is_batch(pair_name, text_pair, split_into_words) != batched:
        raise ValueError(f"{pair_name}: expected a batch if {name} is a batch, otherwise one text")
    second = check_all(pair_name, text_pair, batched, split_into_words)
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


def check_all(name: str, value: Any, batched: bool, split_into_words: bool) -> list[Text]:
    """Validate every sample of an argument."""
    if not batched:
        return [check(name, value, split_into_words)]
    return [check(f"{name}[{i}]", item, split_into_words) for i, item in enumerate(value)]


def check(name: str, value: Any, split_into_words: bool) -> Any:
    """Validate one sample: its text or its words."""
    if split_into_words:
        if not is_list(value):
            raise TypeError(f"{name}: expected a list of words, got {value!r:.80}")
        return [check(f"{name}[{i}]", word, False) for i, word in enumerate(value)]
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected str, got {type(value).__name__}")
    check_unicode(value, name)
    return value


def flatten(texts: Sequence[Text]) -> list[str]:
    """All texts, or all words of all texts, in one list."""
    return [part for text in texts for part in ([text] if isinstance(text, str) else text)]

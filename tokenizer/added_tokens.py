"""Tokens that are matched in running text before sentencepiece sees it: the special tokens, and those a user adds.

An added token that is in the vocabulary keeps its id; any other takes the next free id after the vocabulary. It matches
anywhere, even inside words. With lower-casing, a plain added token is stored in lower case, so that it matches in any
case; a special one must match exactly. One that is neither plain (`normalized`) nor special, and has capitals, is never
found in the lower-cased text, as in transformers.

Source: transformers 4.40.2 `tokenization_utils.py`, `PreTrainedTokenizer._add_tokens`; tokenizers `AddedToken`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .options import boolean
from .piece_model import check_unicode

# Larger ids would overflow somewhere, such as in `len`, and no vocabulary comes near.
LARGEST_ID = 2**31 - 1
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class AddedToken:
    """A token and how it is matched.

    `single_word`: only between spaces or the ends of the text. `lstrip`, `rstrip`: the match includes the white space
    on that side. `normalized`: lower-casing applies to it; None, the default, means "unless `special`".

    Raises TypeError or ValueError for another type, an empty token or one with a lone surrogate.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    special: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.content, str):
            raise TypeError(f"content: expected str, got {self.content!r:.80}")
        if not self.content:
            raise ValueError("content: expected at least one character, got ''")
        check_unicode(self.content, "content")
        if self.normalized is None:
            object.__setattr__(self, "normalized", not self.special)
        for flag in FLAGS:
            object.__setattr__(self, flag, boolean(flag, getattr(self, flag)))

    def __str__(self) -> str:
        return self.content

    @property
    def takes_neighbours(self) -> bool:
        """Whether a match can change the text next to it."""
        return self.single_word or self.lstrip or self.rstrip

    @classmethod
    def of(cls, value: Any, name: str = "tokens", special: bool = False) -> AddedToken:
        """Convert a string, a mapping as saved in files, or any object with these attributes (transformers' own).

        `special` makes it a special token; this changes `normalized` only for a string. Raises TypeError or ValueError
        that begins with `name`.
        """
        try:
            if special and isinstance(value, str):
                return cls(value, special=True)
            token = cls.convert(value)
            return replace(token, special=True) if special else token
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None

    @classmethod
    def convert(cls, value: Any) -> AddedToken:
        """`of`, without a name for messages."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping) and "content" in value:
            return cls(value["content"], **{flag: value[flag] for flag in FLAGS if flag in value})
        if hasattr(value, "content"):
            return cls(value.content, **{flag: getattr(value, flag) for flag in FLAGS if hasattr(value, flag)})
        raise TypeError(f"expected str or AddedToken, got {value!r:.80}")

    def to_json(self, special: bool = True) -> dict[str, Any]:
        """The mapping in transformers' files; `special=False` omits that key, as special_tokens_map.json does."""
        flags = FLAGS if special else FLAGS[:-1]
        return {"content": self.content, **{flag: getattr(self, flag) for flag in flags}}


def parse_added(pairs: Iterable[tuple[Any, Any]], name: str = "added_tokens_decoder") -> dict[int, AddedToken]:
    """Added tokens by id, from pairs of both, as files hold them: there, ids may be strings.

    Raises TypeError or ValueError, beginning with `name`, for what is no id or no token, or occurs twice.
    """
    found: dict[int, AddedToken] = {}
    contents: set[str] = set()
    for value, given in pairs:
        number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value) else value
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= LARGEST_ID:
            raise ValueError(f"{name}: expected ids of 0 to {LARGEST_ID}, got {value!r:.80}")
        token = AddedToken.of(given, name)
        if number in found:
            raise ValueError(f"{name}: expected each id once, got {number} twice")
        if token.content in contents:
            raise ValueError(f"{name}: expected each token once, got {token.content!r} twice")
        found[number] = token
        contents.add(token.content)
    return found

"""Tokens that are matched in running text before sentencepiece sees it: the special tokens, and those a user adds.

An added token that is in the vocabulary keeps its id; any other takes the next free id after the vocabulary. It matches
anywhere, even inside words. With lower-casing, a plain added token is stored in lower case, so that it matches in any
case; a special one (`normalized` false) must match exactly.

Source: transformers 4.40.2 `tokenization_utils.py`, `PreTrainedTokenizer._add_tokens`; tokenizers `AddedToken`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class AddedToken:
    """A token and how it is matched.

    `single_word`: only between spaces or the ends of the text. `lstrip`, `rstrip`: the match includes the white space
    on that side. `normalized`: lower-casing applies to it; None, the default, means "unless `special`".
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    special: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.content, str):
            raise TypeError(f"AddedToken: content: expected str, got {self.content!r}")
        if self.normalized is None:
            object.__setattr__(self, "normalized", not self.special)

    def __str__(self) -> str:
        return self.content

    @property
    def takes_neighbours(self) -> bool:
        """Whether a match can change the text next to it."""
        return self.single_word or self.lstrip or self.rstrip

    @classmethod
    def of(cls, value: Any, name: str = "tokens", special: bool = False) -> AddedToken:
        """Convert a string, a mapping as saved in files, or any object with these attributes (transformers' own).

        `special` makes it a special token; this changes `normalized` only for a string.
        """
        if special:
            return cls(value, special=True) if isinstance(value, str) else replace(cls.of(value, name), special=True)
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping) and "content" in value:
            return cls(value["content"], **{flag: value[flag] for flag in FLAGS if flag in value})
        if hasattr(value, "content"):
            return cls(value.content, **{flag: getattr(value, flag) for flag in FLAGS if hasattr(value, flag)})
        raise TypeError(f"{name}: expected str or AddedToken, got {value!r}")

    def to_json(self, special: bool = True) -> dict[str, Any]:
        """The mapping in transformers' files; `special=False` omits that key, as special_tokens_map.json does."""
        fields = asdict(self)
        if not special:
            del fields["special"]
        return fields

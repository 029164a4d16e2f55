"""What happens to a text before sentencepiece sees it: lower-casing, and separating the special tokens.

    "Ein [MASK] Tag"  ->  "Ein ", [MASK], " Tag"

Lower-casing works on one character at a time, so Σ becomes σ even at the end of a word. It comes before normalisation,
so 𝐀 or ™ become A or TM afterwards and stay upper case. Special tokens in the text are left as they are.

Special and added tokens are found by their exact characters, anywhere, leftmost first, then longest first. Each
ordinary segment between them goes to sentencepiece separately.

Source: transformers 4.40.2 `tokenization_utils.py`, `PreTrainedTokenizer.tokenize` (which looks for added tokens with
a trie that can miss one if several overlap; `Finder` does not).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .added_tokens import AddedToken

# The only character with a longer lower case: i and U+0307, a combining dot.
DOTTED_I = "İ"


class Segment(NamedTuple):
    """A part of a text: its characters, their start, and whether they are one special or added token."""

    text: str
    start: int
    special: bool


class Finder:
    """Finds any of these strings in a text, leftmost first, then longest first.

    A search looks up every substring that has the first character and the length of one of them, so that a string can
    be added at any time: a pattern of all of them would have to be compiled again.
    """

    def __init__(self, contents: Iterable[str] = ()) -> None:
        self.contents: set[str] = set()
        # By first character, the longest first.
        self.lengths: dict[str, list[int]] = {}
        self.starts: re.Pattern[str] | None = None
        for content in contents:
            self.add(content)

    def add(self, content: str) -> None:
        """Find this string too."""
        self.contents.add(content)
        lengths = self.lengths.get(content[0])
        if lengths is None:
            self.lengths[content[0]] = [len(content)]
            self.starts = None
        elif len(content) not in lengths:
            lengths.append(len(content))
            lengths.sort(reverse=True)

    def may_find(self, text: str) -> bool:
        """Whether `text` has the first character of any of them."""
        if not self.contents:
            return False
        if self.starts is None:
            self.starts = re.compile(f"[{re.escape(''.join(self.lengths))}]")
        return self.starts.search(text) is not None

    def split(self, text: str) -> list[str]:
        """The parts of `text` in order: every second one is a string found, the others, which may be empty, are not."""
        if not self.may_find(text) or self.starts is None:
            return [text]
        parts: list[str] = []
        end = 0
        for match in self.starts.finditer(text):
            at = match.start()
            if at < end:
                continue
            for length in self.lengths[text[at]]:
                found = text[at : at + length]
                if found in self.contents:
                    parts += text[end:at], found
                    end = at + len(found)
                    break
        parts.append(text[end:])
        return parts


def lower(text: str) -> str:
    """Each character in lower case. `str.lower` differs only for Σ, whose lower case depends on the context there."""
    return text.replace("Σ", "σ").lower()


def lower_case(text: str, keep: Finder) -> tuple[str, list[int] | None]:
    """`text` in lower case, except what `keep` finds; and the source index of each new character.

    The indices end with the length of `text`. They are None if they would be 0, 1, 2, ..., that is, without İ.
    """
    parts = keep.split(text)
    parts[0::2] = map(lower, parts[0::2])
    lowered = "".join(parts)
    if len(lowered) == len(text):
        return lowered, None
    source: list[int] = []
    at = 0
    for i, part in enumerate(keep.split(text)):
        for character in part:
            source.extend([at] * (2 if character == DOTTED_I and i % 2 == 0 else 1))
            at += 1
    return lowered, [*source, at]


def split(text: str, finder: Finder, tokens: Mapping[str, AddedToken]) -> list[Segment]:
    """Split `text` at the tokens that `finder` finds. No segment is empty; an empty text has none."""
    parts = finder.split(text)
    if len(parts) == 1:
        return [Segment(text, 0, False)] if text else []
    segments, at = [], 0
    for i, part in enumerate(parts):
        if part:
            segments.append(Segment(part, at, i % 2 == 1))
        at += len(part)
    if any(tokens[segment.text].takes_neighbours for segment in segments if segment.special):
        segments = apply_flags(segments, tokens)
    return segments


def apply_flags(segments: list[Segment], tokens: Mapping[str, AddedToken]) -> list[Segment]:
    """Apply the flags of added tokens to their neighbours.

    `single_word`: if the token touches a neighbour without a space between, it is not a token and becomes part of that
    neighbour, of the left one if both touch. `lstrip`, `rstrip`: if it is a token, it takes the white space on that
    side.
    """
    segments = [*segments, Segment("", 0, False)]  # gives the last one a right neighbour
    for i, (text, start, special) in enumerate(segments):
        flags = tokens[text] if special else None
        if flags is None or not flags.takes_neighbours:
            continue
        left, right = segments[i - 1] if i else Segment("", 0, False), segments[i + 1]
        if flags.single_word and left.text and left.text[-1] != " ":
            segments[i - 1 : i + 1] = [Segment(left.text + text, left.start, False), Segment("", start, False)]
        elif flags.single_word and right.text and right.text[0] != " ":
            segments[i : i + 2] = [Segment("", start, False), Segment(text + right.text, start, False)]
        else:
            if flags.rstrip:
                segments[i + 1] = shortened(right, len(right.text) - len(right.text.lstrip()), None, tokens)
            if flags.lstrip and i:
                segments[i - 1] = shortened(left, 0, len(left.text.rstrip()), tokens)
    return [segment for segment in segments if segment.text]


def shortened(segment: Segment, first: int, end: int | None, tokens: Mapping[str, AddedToken]) -> Segment:
    """The characters from `first` to `end` of a segment; what is left of a token need not be one."""
    text = segment.text[first:end]
    return Segment(text, segment.start + first, segment.special and text in tokens)

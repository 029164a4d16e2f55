"""Tokens back to text: joined, with markers as spaces. What normalisation and rule B removed is not restored.

    ▁The ▁old ▁ships , 2024 中   ->   "The old ships,2024中"

Source: transformers 4.40.2 `tokenization_utils.py`, `PreTrainedTokenizer._decode`; `tokenization_utils_base.py`,
`clean_up_tokenization`.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from .piece_model import MARKER

# For English, and tokenizers that put a space before punctuation; kept because transformers does it by default.
CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def join_tokens(tokens: Iterable[str]) -> str:
    """The text of consecutive tokens."""
    return "".join(tokens).replace(MARKER, " ").strip()


def join_with_added(tokens: Iterable[str], set_off: Set[str], spaces_between_special_tokens: bool = True) -> str:
    """The text of tokens, with spaces around those in `set_off`, the tokens that a user added."""
    texts: list[str] = []
    run: list[str] = []
    for token in tokens:
        if token not in set_off:
            run.append(token)
            continue
        # A blank run adds no text here; at the end of the tokens it adds an empty one.
        texts += [text for text in [join_tokens(run)] if text]
        texts.append(token)
        run = []
    if run:
        texts.append(join_tokens(run))
    return (" " if spaces_between_special_tokens else "").join(texts)


def clean_up(text: str) -> str:
    """Remove the spaces in " .", " ,", " n't" and the like."""
    for found in CLEAN_UP:
        text = text.replace(found, found.strip())
    return text

"""Tokens back to text: joined, markers as spaces. What normalisation and rule B took away does not come back.

    ▁The ▁old ▁ships , 2024 中   ->   "The old ships,2024中"

Source: transformers 4.40.2 `tokenization_utils.py`, `PreTrainedTokenizer._decode`; `tokenization_utils_base.py`,
`clean_up_tokenization`.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from .piece_model import MARKER

# English, and meant for tokenizers that put a space before punctuation; kept because transformers does it by default.
CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def join_tokens(tokens: Iterable[str]) -> str:
    """The text of tokens that follow one another."""
    return "".join(tokens).replace(MARKER, " ").strip()


def join_with_added(tokens: Iterable[str], set_off: Set[str], spaces_between_special_tokens: bool = True) -> str:
    """The text of tokens, in which those in `set_off`, the tokens that a user added, stand between spaces."""
    texts: list[str] = []
    run: list[str] = []
    for token in tokens:
        if token not in set_off:
            run.append(token)
            continue
        # A run that is only white space gives no text here, but does at the end.
        texts += [text for text in [join_tokens(run)] if text]
        texts.append(token)
        run = []
    if run:
        texts.append(join_tokens(run))
    return (" " if spaces_between_special_tokens else "").join(texts)


def clean_up(text: str) -> str:
    """Take out the spaces of " .", " ,", " n't" and the like."""
    for found in CLEAN_UP:
        text = text.replace(found, found.strip())
    return text

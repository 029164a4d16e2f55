"""Joining tokens, and the English clean-up.

Seen red: a replacement missing from `CLEAN_UP`; tokens that a user added joined to their neighbours.
"""

from __future__ import annotations

import pytest

from ernie_m.tokenizer.decoding import clean_up, join_tokens, join_with_added


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a . b ? c ! d , e", "a. b? c! d, e"),
        ("a ' b", "a'b"),
        ("do n't I 'm it 's we 've you 're he 'll", "don't I'm it's we've you're he 'll"),
        ("a  . .", "a .."),
        ("", ""),
    ],
)
def test_clean_up_of_examples(text: str, cleaned: str) -> None:
    assert clean_up(text) == cleaned


def test_join_tokens_writes_spaces_for_markers() -> None:
    assert join_tokens(["▁The", "▁old", "▁ship", "s", ",", "2024", "▁", "中"]) == "The old ships,2024 中"
    assert join_tokens([]) == join_tokens(["▁"]) == ""


def test_join_with_added_puts_spaces_around_tokens() -> None:
    tokens = ["<x>", "▁a", "[MASK]", "▁b", "<x>", "<x>", "▁", "<x>", "▁"]
    assert join_with_added(tokens, {"<x>"}) == "<x> a[MASK] b <x> <x> <x> "
    assert join_with_added(tokens, {"<x>"}, spaces_between_special_tokens=False) == "<x>a[MASK] b<x><x><x>"

"""Rules A and B against the character-by-character loop of transformers and Paddle.

Seen red: each boundary of the isolated block moved by one; a digit class of `\\d` alone; ▁ that ends a run of digits;
the lone marker kept at the end of a text.
"""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.tokenizer.cutting import DIGIT, DROPPED, cut, drop_markers


def walk(piece: str) -> list[str]:
    """Rule B as transformers and Paddle compute it: character by character, with the start of the pending token."""

    def isolated(character: str) -> bool:
        return "\u4e00" <= character <= "\u9fff" or character in ",;:.?!~，；：。？！《》【】"

    tokens, start = [], 0
    for i, character in enumerate(piece):
        if character == "▁":
            continue
        digit_changes = i > 0 and character.isdigit() != piece[i - 1].isdigit()
        if isolated(character) or digit_changes:
            if piece[start:i] not in ("", "▁"):
                tokens.append(piece[start:i])
            start = i
        if isolated(character):
            tokens.append(character)
            start = i + 1
    return tokens + [piece[start:]] * (start < len(piece))


@given(st.text(st.sampled_from("▁▁▁aab12٣²①中文。,~～、々がé½"), max_size=12) | st.text(max_size=8))
def test_cut_is_the_walk_over_characters(piece: str) -> None:
    assert [piece[start:end] for start, end in cut(piece)] == walk(piece)


@pytest.mark.parametrize(
    ("character", "isolated"),
    [("\u4dff", False), ("\u4e00", True), ("\u9fff", True), ("\ua000", False), ("\u3400", False), ("\uf900", False)],
)
def test_isolated_characters_are_the_block_of_han(character: str, isolated: bool) -> None:
    assert cut(f"a{character}b") == ([(0, 1), (1, 2), (2, 3)] if isolated else [(0, 3)])


def test_cut_is_the_walk_over_characters_for_every_character() -> None:
    for character in map(chr, range(sys.maxunicode + 1)):
        piece = f"a{character}b"
        assert [piece[start:end] for start, end in cut(piece)] == walk(piece)


@pytest.mark.parametrize(
    ("piece", "tokens"),
    [
        ("▁2024年", "2024 年"),
        ("▁中", "中"),
        ("▁,", ","),
        ("▁A4", "▁A 4"),
        ("▁10:30", "10 : 30"),
        ("1▁", "1▁"),
        ("1▁2", "1▁ 2"),
        ("1▁a", "1▁a"),
        ("中▁", "中 ▁"),
        ("▁", "▁"),
        ("<0xE9>", "< 0 xE 9 >"),
        ("格是95.5", "格 是 95 . 5"),
        ("", ""),
    ],
)
def test_cut_of_worked_examples(piece: str, tokens: str) -> None:
    assert " ".join(piece[start:end] for start, end in cut(piece)) == tokens


def test_digit_is_str_isdigit() -> None:
    """For every character. Unicode has promised that all further digits will be decimal ones."""
    found = set(re.findall(f"[{DIGIT}]", "".join(map(chr, range(sys.maxunicode + 1)))))
    assert found == {c for c in map(chr, range(sys.maxunicode + 1)) if c.isdigit()}


@pytest.mark.parametrize(
    ("pieces", "huggingface"),
    [
        ("▁a ▁ 中", "▁a ▁ 中"),
        ("▁ 中", "中"),
        ("▁", ""),
        ("a ▁", "a"),
        ("a ▁ ▁b", "a ▁b"),
        ("a ▁ ▁ b", "a ▁ b"),
        ("a ▁ ▁", "a"),
        ("▁ ▁ ▁", ""),
        ("", ""),
    ],
)
def test_drop_markers_by_both_rules(pieces: str, huggingface: str) -> None:
    def kept(rule: str) -> str:
        dropped = drop_markers([*pieces.split()], "▁", rule, lambda piece: str(piece).startswith("▁"))
        assert len(dropped) == len(pieces.split())
        return " ".join(str(piece) for piece in dropped if piece != DROPPED)

    assert kept("huggingface") == huggingface
    assert kept("paddle") == " ".join(piece for piece in pieces.split() if piece != "▁")

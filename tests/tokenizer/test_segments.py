"""Lower-casing with source indices, and splitting at tokens.

Seen red: `str.lower` for the whole text; İ counted once; the shorter of two tokens found at one position; the pattern
of first characters kept after another was added.
"""

from __future__ import annotations

import re
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import texts

from ernie_m.tokenizer.added_tokens import AddedToken
from ernie_m.tokenizer.segments import DOTTED_I, Finder, lower, lower_case, split

SPECIAL = Finder(["[CLS]", "[MASK]"])


@given(texts() | st.text(st.sampled_from("ΑΣσς .İI'"), max_size=9))
def test_lower_is_the_lower_case_of_each_character(text: str) -> None:
    assert lower(text) == "".join(character.lower() for character in text)


def test_only_one_character_is_longer_in_lower_case() -> None:
    assert [c for c in map(chr, range(sys.maxunicode + 1)) if len(c.lower()) != 1] == [DOTTED_I]


@given(st.lists(texts(2) | st.just("İ[MASK]İ")).map("".join))
def test_lower_case_returns_the_source_of_each_character(text: str) -> None:
    lowered, source = lower_case(text, SPECIAL)
    places = list(range(len(text) + 1)) if source is None else source
    assert len(places) == len(lowered) + 1 and places[-1] == len(text) and places == sorted(places)
    assert all(c in (text[i], *text[i].lower()) for c, i in zip(lowered, places, strict=False))
    assert lowered.count("[MASK]") >= text.count("[MASK]")


LETTERS = st.sampled_from("aaab^-]\\[")


@settings(max_examples=300)
@given(st.text(LETTERS, max_size=20), st.lists(st.text(LETTERS, min_size=1, max_size=4)))
def test_finder_splits_as_a_pattern_of_all_strings_does(text: str, contents: list[str]) -> None:
    """Also while strings are added."""
    finder = Finder()
    for i, content in enumerate(contents):
        finder.add(content)
        longest_first = sorted(contents[: i + 1], key=len, reverse=True)
        assert finder.split(text) == re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    assert contents or finder.split(text) == [text]


@given(
    st.text(st.sampled_from("ab<x>[MASK]"), max_size=20), st.lists(st.text("ab<x>", min_size=1, max_size=3), min_size=1)
)
def test_split_loses_nothing_and_finds_the_longest_first(text: str, contents: list[str]) -> None:
    tokens = {content: AddedToken(content) for content in contents}
    segments = split(text, Finder(contents), tokens)
    assert "".join(segment.text for segment in segments) == text
    assert all(text[segment.start :].startswith(segment.text) and segment.text for segment in segments)
    for segment in segments:
        if segment.special:
            assert not any(len(c) > len(segment.text) and text.startswith(c, segment.start) for c in contents)
        else:
            assert not any(content in segment.text for content in contents)


def test_flags_take_white_space_and_reject_matches_inside_words() -> None:
    tokens = {
        t.content: t
        for t in [AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True), AddedToken("<w>", single_word=True)]
    }

    def parts(text: str) -> list[tuple[str, int, bool]]:
        return [tuple(segment) for segment in split(text, Finder(tokens), tokens)]

    assert parts("a <l> b") == [("a", 0, False), ("<l>", 2, True), (" b", 5, False)]
    assert parts("a <r> b") == [("a ", 0, False), ("<r>", 2, True), ("b", 6, False)]
    assert parts("a <w> b") == [("a ", 0, False), ("<w>", 2, True), (" b", 5, False)]
    assert parts("a<w> b") == [("a<w>", 0, False), (" b", 4, False)]
    assert parts("<w>b") == [("<w>b", 0, False)]
    assert parts("<w>") == [("<w>", 0, True)]
    assert parts("<r>  ") == [("<r>", 0, True)]
    assert parts("<w>b<l>c") == [("<w>b", 0, False), ("<l>", 4, True), ("c", 7, False)]


def test_flags_of_one_token_apply_beside_tokens_without() -> None:
    tokens = {"<r>": AddedToken("<r>", rstrip=True), "<x>": AddedToken("<x>")}
    found = [tuple(segment) for segment in split("<r> a <x> b", Finder(tokens), tokens)]
    assert found == [("<r>", 0, True), ("a ", 4, False), ("<x>", 6, True), (" b", 9, False)]


def test_a_single_word_takes_white_space_and_text_beside_it_keeps_its_own() -> None:
    """Seen red with the white space taken first: `<e> x` was "<e>x", and no token."""
    token = AddedToken("<e>", single_word=True, lstrip=True, rstrip=True)

    def parts(text: str) -> list[tuple[str, int, bool]]:
        return [tuple(segment) for segment in split(text, Finder(["<e>"]), {"<e>": token})]

    assert parts("<e> x") == [("<e>", 0, True), ("x", 4, False)]
    assert parts("a  <e>  x") == [("a", 0, False), ("<e>", 3, True), ("x", 8, False)]
    assert parts("a <e>x") == [("a ", 0, False), ("<e>x", 2, False)]
    assert parts("a<e> x") == [("a<e>", 0, False), (" x", 4, False)]
    # As in transformers, only a space makes a word's edge.
    assert parts("a <e>\nx") == [("a ", 0, False), ("<e>\nx", 2, False)]


FLAGGED = st.builds(
    AddedToken, st.sampled_from(["<a>", "<b> ", " <c>", "a"]), st.booleans(), st.booleans(), st.booleans()
)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["<a>", "<b>", "<c>", "a", " ", "\n"]), max_size=12).map("".join),
    st.lists(FLAGGED, min_size=1, unique_by=lambda token: token.content),
)
def test_flags_take_only_white_space(text: str, added: list[AddedToken]) -> None:
    """Whatever the flags, a segment is where it says, and between segments there is nothing else.

    Seen red with a token at an edge of which white space was taken: a KeyError.
    """
    tokens = {token.content: token for token in added}
    at = 0
    for found, start, special in [*split(text, Finder(tokens), tokens), ("", len(text), False)]:
        gap = text[at:start]
        assert text.startswith(found, start) and at <= start and (not gap or gap.isspace())
        assert found in tokens or not special
        assert not gap or any(token.lstrip or token.rstrip for token in added)
        at = start + len(found)

"""From probabilities to spans and labels, against a plain transcription of PaddleNLP's rules 8 to 14.

Seen red: prompts one character off; special tokens that take part; `>=` for `>`; pairs across prompt, text and special
tokens; the later of two probabilities; a vote by the sum alone; spans at the edges of windows kept in both, or lost in
both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uie_vectors import GET_SPAN

from ernie_m.reference import demo
from ernie_m.reference.tasks.decoding import PROMPT, TEXT, label_in, merge_windows, pairs_on, spans_in, vote
from ernie_m.reference.training.rows import RowEncoder, Text
from ernie_m.tokenizer import ErnieMTokenizer

ENCODER = RowEncoder(ErnieMTokenizer.from_pretrained(demo.directory()), 64)
# Exact in binary, so that products are too, and on both sides of every threshold.
EIGHTHS = st.integers(0, 8).map(lambda n: n / 8)


def get_span(starts: list[int], ends: list[int]) -> set[tuple[int, int]]:
    """Rule 9, step by step."""
    found: dict[int, int] = {}
    i = j = 0
    while i < len(starts) and j < len(ends):
        if starts[i] == ends[j]:
            found[ends[j]] = starts[i]
            i, j = i + 1, j + 1
        elif starts[i] < ends[j]:
            found[ends[j]] = starts[i]
            i += 1
        else:
            j += 1
    return {(start, end) for end, start in found.items()}


@pytest.mark.parametrize(("starts", "ends", "expected"), GET_SPAN)
def test_rule_9_vectors(starts: list[int], ends: list[int], expected: list[tuple[int, int]]) -> None:
    assert sorted(get_span(starts, ends)) == expected
    p, q = np.zeros(10), np.zeros(10)
    p[starts], q[ends] = 1, 1
    assert [(s, e) for s, e, _ in pairs_on(TEXT, np.full(10, TEXT), p, q, 0.5)] == expected


@st.composite
def rows(draw: st.DrawFn) -> tuple[Any, Any, Any, Any, float]:
    """Offsets, sides, starts and ends of a row [CLS] prompt [SEP] [SEP] text [SEP] [PAD], one character a token."""
    m, n, padding = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(0, 2))
    sides = [-1, *[PROMPT] * m, -1, -1, *[TEXT] * n, -1, *[-1] * padding]
    places = [(0, 0), *[(i, i + 1) for i in range(m)], (0, 0), (0, 0), *[(i, i + 1) for i in range(n)], (0, 0)]
    places += [(0, 0)] * padding
    starts, ends = (draw(st.lists(EIGHTHS, min_size=len(sides), max_size=len(sides))) for _ in range(2))
    return np.array(places), np.array(sides), np.array(starts), np.array(ends), draw(EIGHTHS)


@given(rows())
def test_rules_8_to_13_agree_with_the_plain_rules(row: Any) -> None:
    """PaddleNLP's pairs over the whole row, without special tokens and without those that cross from prompt to text."""
    offsets, sides, starts, ends, threshold = row
    on = [[i for i, p in enumerate(some) if p > threshold and sides[i] >= 0] for some in (starts, ends)]
    expected = {
        side: [(s, e, starts[s] * ends[e]) for s, e in sorted(get_span(*on)) if sides[s] == sides[e] == side]
        for side in (PROMPT, TEXT)
    }
    for side in (PROMPT, TEXT):
        assert pairs_on(side, sides, starts, ends, threshold) == expected[side]
    text = {(offsets[s, 0], offsets[e, 1]): p for s, e, p in expected[TEXT]}
    assert spans_in(offsets, sides, starts, ends, threshold) == text
    # Every piece of the prompt as a label: the most probable pair in the prompt is the label, of equals the first.
    m = int((sides == PROMPT).sum())
    labels = [(f"{s}:{e}", s, e) for s in range(m) for e in range(s + 1, m + 1)]
    best = max(expected[PROMPT], key=lambda pair: pair[2], default=None)
    found = label_in(labels, offsets, sides, starts, ends, threshold)
    assert found == (None if best is None else (f"{best[0] - 1}:{best[1]}", best[2]))


def test_rule_8_a_span_may_be_just_above_the_threshold_squared() -> None:
    p = np.array([0.5, 0.5 + 2**-20])
    assert spans_in(np.array([[0, 1], [1, 2]]), np.array([TEXT, TEXT]), p, p, 0.5) == {(1, 2): p[1] * p[1]}


def test_rule_10_equal_spans_are_one() -> None:
    """Two tokens of one character, such as ㎏: the higher probability."""
    offsets, sides = np.array([[0, 1], [0, 1]]), np.array([TEXT, TEXT])
    assert spans_in(offsets, sides, np.array([0.75, 1]), np.array([1, 1]), 0.5) == {(0, 1): 1.0}


@st.composite
def words(draw: st.DrawFn) -> tuple[str, Text]:
    """A text and its tokens, of one to three characters each."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    ends = np.cumsum(sizes)
    return "".join(draw(st.sampled_from("ab")) for _ in range(ends[-1])), Text([5] * len(sizes), spans_of(ends))


def spans_of(ends: Any) -> Any:
    return np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)


@given(words(), words())
def test_rule_11_prompts_stand_before_the_text(first: tuple[str, Text], second: tuple[str, Text]) -> None:
    """bias = end of the last prompt token + 1, prompt offsets -= bias; a text's are as they are; special tokens (0, 0).

    So prompt + " " + text, counted from the text's beginning, has each token where its offsets say.
    """
    (prompt, asked), (text, tokens) = first, second
    (row,) = ENCODER.windows(asked, tokens, 0, len(prompt))
    bias = asked.offsets[-1, 1] + 1
    np.testing.assert_array_equal(row.offsets[row.side == PROMPT], asked.offsets - bias)
    np.testing.assert_array_equal(row.offsets[row.side == TEXT], tokens.offsets)
    np.testing.assert_array_equal(row.offsets[row.side < 0], np.zeros((4, 2)))
    joined = f"{prompt} {text}"
    for own, side in ((asked, PROMPT), (tokens, TEXT)):
        source = prompt if side == PROMPT else text
        for (s, e), (start, end) in zip(row.offsets[row.side == side] + len(prompt) + 1, own.offsets, strict=True):
            assert joined[s:e] == source[start:end] != ""


@given(words(), words(), st.data())
def test_rule_11_labels_are_found_at_negative_offsets(
    first: tuple[str, Text], second: tuple[str, Text], data: Any
) -> None:
    """By token, with a longer prompt after the last token too, where PaddleNLP's labels shift (rule 13)."""
    (prompt, asked), (_, tokens) = first, second
    prompt += " " * data.draw(st.integers(0, 2))
    (row,) = ENCODER.windows(asked, tokens, 0, len(prompt))
    s = data.draw(st.integers(0, len(asked) - 1))
    e = data.draw(st.integers(s, len(asked) - 1))
    start, end = int(asked.offsets[s, 0]), int(asked.offsets[e, 1])
    labels = [(prompt[start:end], start - len(prompt) - 1, end - len(prompt) - 1)]
    starts, ends = np.zeros((2, len(row.side)))
    starts[1 + s], ends[1 + e] = 0.75, 1
    assert label_in(labels, row.offsets, row.side, starts, ends, 0.5) == (prompt[start:end], 0.75)
    # A token more or less is another pair.
    other = data.draw(st.integers(0, len(asked) - 1).filter(lambda t: t != e) if len(asked) > 1 else st.none())
    if other is not None:
        ends[1 + e], ends[1 + other] = 0, 1
        assert label_in(labels, row.offsets, row.side, starts, ends, 0.5) is None


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(0, 7, id="[CLS] to the text: a span from 0"),
        pytest.param(1, 7, id="the prompt to the text"),
        pytest.param(3, 4, id="[SEP] to [SEP]: an empty text at 0:0"),
        pytest.param(3, 6, id="[SEP] to the text"),
        pytest.param(7, 8, id="the text to [SEP]: (3, 0), an empty text"),
        pytest.param(0, 2, id="[CLS] to the prompt"),
        pytest.param(9, 9, id="padding: an empty text at 0:0"),
        pytest.param(8, 9, id="[SEP] to padding"),
    ],
)
def test_rule_13_special_tokens_and_padding_take_no_part(start: int, end: int) -> None:
    """Of [CLS] a b [SEP] [SEP] x yz w [SEP] [PAD]: PaddleNLP's plain pair is one; here it is none, in text or prompt.

    And where a real span is there as well, it alone is found.
    """
    sides = np.array([-1, PROMPT, PROMPT, -1, -1, TEXT, TEXT, TEXT, -1, -1])
    places = [(0, 0), (-3, -2), (-2, -1), (0, 0), (0, 0), (0, 1), (1, 3), (3, 4), (0, 0), (0, 0)]
    offsets, labels = np.array(places), [("ab", -3, -1), ("a", -3, -2), ("b", -2, -1)]
    starts, ends = np.zeros((2, 10))
    starts[start], ends[end] = 1, 1
    assert get_span([start], [end]) == {(start, end)}
    assert spans_in(offsets, sides, starts, ends, 0.5) == {}
    assert label_in(labels, offsets, sides, starts, ends, 0.5) is None
    starts[6], ends[6], starts[1], ends[1] = 0.75, 1, 0.75, 1
    assert spans_in(offsets, sides, starts, ends, 0.5) == {(1, 3): 0.75}
    assert label_in(labels, offsets, sides, starts, ends, 0.5) == ("a", 0.75)


def test_rule_12_a_label_must_be_an_option() -> None:
    """A pair that covers more or less than one option, or lies in the name, is none."""
    offsets, sides = np.array([[i, i + 1] for i in range(8)]), np.full(8, PROMPT)
    labels = [("好人", 2, 4), ("坏", 5, 6)]  # x[好人,坏]
    for first, last, expected in [(2, 3, "好人"), (5, 5, "坏"), (2, 2, None), (2, 5, None), (0, 0, None), (1, 3, None)]:
        starts, ends = np.zeros(8), np.zeros(8)
        starts[first], ends[last] = 0.75, 1
        found = label_in(labels, offsets, sides, starts, ends, 0.5)
        assert found == (None if expected is None else (expected, 0.75))


@given(st.lists(st.none() | st.tuples(st.sampled_from("abc"), EIGHTHS)))
def test_rule_14_votes(found: list[tuple[str, float] | None]) -> None:
    """[count, sum of p] decides, of equals the label that came first, and the probability is sum / count."""
    votes = [item for item in found if item is not None]
    chosen = vote(found)
    if not votes:
        assert chosen is None
        return
    totals = {label: [sum(a == label for a, _ in votes), sum(p for a, p in votes if a == label)] for label, _ in votes}
    best = max(totals.values())
    label = next(label for label, _ in votes if totals[label] == best)
    assert chosen == (label, best[1] / best[0])


@given(st.integers(1, 40), st.integers(2, 12), st.data())
def test_spans_of_windows_are_those_of_the_whole_text_that_fit_into_one(n: int, size: int, data: Any) -> None:
    """Starts and ends are at known characters: a window sees those of its own. In order of position."""
    step = data.draw(st.integers(1, size - 1))
    starts, ends = (np.array(data.draw(st.lists(EIGHTHS, min_size=n, max_size=n))) for _ in range(2))
    offsets, sides = np.stack([np.arange(n), np.arange(n) + 1], axis=1), np.full(n, TEXT)
    begins = list(range(0, max(1, n - size + step), step))
    windows = []
    for begin in begins:
        part = slice(begin, begin + size)
        spans = spans_in(offsets[part], sides[part], starts[part], ends[part], 0.5)
        windows.append(((begin, min(n, begin + size)), spans))
    whole = spans_in(offsets, sides, starts, ends, 0.5)
    expected = {(s, e): p for (s, e), p in whole.items() if any(begin <= s and e <= begin + size for begin in begins)}
    assert list(merge_windows(windows).items()) == sorted(expected.items())


def test_a_span_at_the_edge_of_a_window_is_left_to_the_neighbour_that_sees_beyond() -> None:
    first, second = (0, 10), (6, 16)
    assert merge_windows([(first, {(8, 10): 0.9}), (second, {(8, 12): 0.8})]) == {(8, 12): 0.8}
    assert merge_windows([(first, {(4, 8): 0.9}), (second, {(6, 8): 0.8})]) == {(4, 8): 0.9}
    # No window shows more of these.
    assert merge_windows([(first, {(6, 10): 0.9}), (second, {})]) == {(6, 10): 0.9}
    assert merge_windows([(first, {}), (second, {(14, 16): 0.9, (6, 12): 0.7})]) == {(6, 12): 0.7, (14, 16): 0.9}
    # In both: the higher probability, whichever comes first.
    assert merge_windows([(first, {(7, 8): 0.6}), (second, {(7, 8): 0.7})]) == {(7, 8): 0.7}
    assert merge_windows([(first, {(7, 8): 0.7}), (second, {(7, 8): 0.6})]) == {(7, 8): 0.7}

"""What is cut from rows of tokens, and that it is told. The tests of fine-tuning compare rows with the tokenizer."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference import demo
from ernie_m.reference.training.rows import RowEncoder, Text
from ernie_m.tokenizer import ErnieMTokenizer

TOKENIZER = ErnieMTokenizer.from_pretrained(demo.directory())
LONGEST = 24
# Around what fits in a row, and in half of one.
SIZES = st.sampled_from([0, 1, 8, 9, 10, 11, 12, 18, 19, 20, 21, 22, 23, 60])


def text(n: int) -> Text:
    """A text of n tokens, of a character each."""
    return Text([5] * n, np.stack([np.arange(n), np.arange(1, n + 1)], axis=1))


@given(SIZES, SIZES)
def test_notes_count_the_texts_that_lost_tokens(n: int, m: int) -> None:
    """Seen red: a text that just fits counted as cut."""
    for whole, row_of in (
        (n + 2, lambda encoder: encoder.single(text(n), 0)),
        (n + m + 4, lambda encoder: encoder.pair(text(n), text(m), 0)),
    ):
        encoder = RowEncoder(TOKENIZER, LONGEST)
        row = row_of(encoder)
        assert row.tokens == min(whole, LONGEST)
        assert encoder.notes["texts cut to fit"] == (whole > LONGEST)


@given(SIZES, SIZES)
def test_windows_hold_all_of_the_second_text_and_none_is_more_than_needed(n: int, m: int) -> None:
    """Each begins after the one before it, and holds tokens that those before it do not."""
    encoder = RowEncoder(TOKENIZER, LONGEST)
    rows = encoder.windows(text(n), text(m), 0)
    asked = {np.count_nonzero(row.side == 0) for row in rows}
    assert asked == {min(n, (LONGEST - 4) // 2)}
    assert encoder.notes["questions or prompts cut to fit"] == (asked != {n})
    assert encoder.notes["texts in several windows"] == (len(rows) > 1)
    assert all(row.tokens <= LONGEST for row in rows) and all(row.tokens == LONGEST for row in rows[:-1])
    parts = [row.offsets[row.side == 1, 0].tolist() for row in rows]
    assert sorted({token for part in parts for token in part}) == list(range(m))
    for before, after in pairwise(parts):
        assert before[0] < after[0] <= before[-1] < after[-1]

"""Spans and tokens: literals, and UIE's own pairs of starts and ends. Round trips are in the kernels' room."""

from __future__ import annotations

import numpy as np
import pytest
from uie_vectors import GET_SPAN

from ernie_m.reference.training.records import Span
from ernie_m.reference.training.spans import best_span, covering, is_exact, paired, spans_of, tag_names, tags_of

# Ada␣Byron,␣here; ㎏ is two tokens with the same characters.
OFFSETS = np.array([(0, 3), (4, 9), (9, 10), (11, 15), (15, 16), (15, 16)])
NAMES = tag_names(["name", "unit"])


def test_tags_of_a_sentence() -> None:
    assert NAMES == ("O", "B-name", "I-name", "B-unit", "I-unit")
    spans = (Span(0, 9, "name"), Span(11, 15, "name"), Span(15, 16, "unit"))
    tags = tags_of(OFFSETS, spans, NAMES)
    assert tags.tolist() == [1, 2, 0, 1, 3, 4]
    assert spans_of(OFFSETS, tags.tolist(), NAMES) == spans


def test_spans_of_tags_that_do_not_fit() -> None:
    """An inside begins a span after nothing, or after another label; a beginning always does."""
    assert spans_of(OFFSETS[:5], [2, 4, 0, 4, 3], NAMES) == (
        *(Span(0, 3, "name"), Span(4, 9, "unit"), Span(11, 15, "unit"), Span(15, 16, "unit")),
    )


def test_covering_and_is_exact() -> None:
    assert covering(OFFSETS, 3, 4) is None
    assert covering(OFFSETS, 1, 5) == (0, 2)
    assert covering(OFFSETS, 15, 16) == (4, 6)
    assert [is_exact(OFFSETS, *span) for span in [(0, 9), (1, 9), (0, 8), (3, 4), (15, 16)]] == [
        *(True, False, False, False, True),
    ]
    assert tags_of(OFFSETS, [Span(0, 5, "name"), Span(6, 10, "unit")], NAMES).tolist() == [1, 2, 3, 0, 0, 0]


def test_best_span_is_the_best_of_all() -> None:
    """Against a loop over all spans."""
    rng = np.random.default_rng(0)
    for n, longest in [(1, 1), (5, 2), (9, 3), (9, 99)]:
        starts, ends = rng.standard_normal((2, n))
        allowed = rng.random(n) < 0.8
        allowed[n // 2] = True
        every = [
            (starts[i] + ends[j], i, j)
            for i in range(n)
            for j in range(i, min(n, i + longest))
            if allowed[i] and allowed[j]
        ]
        assert best_span(starts, ends, allowed, longest) == pytest.approx(max(every))


@pytest.mark.parametrize(
    ("starts", "ends", "pairs"),
    GET_SPAN,
)
def test_paired_is_as_paddle_pairs(starts: list[int], ends: list[int], pairs: list[tuple[int, int]]) -> None:
    """What paddlenlp's `get_span` returned, run."""
    assert paired(starts, ends) == pairs

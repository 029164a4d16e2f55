"""Figures against answers counted by hand."""

from __future__ import annotations

import pytest

from ernie_m.reference.training.scores import accuracy, answer_f1, exact_match, normalise, span_scores


def test_accuracy_by_hand() -> None:
    assert accuracy("abcd", "abdc") == 0.5


def test_span_scores_by_hand() -> None:
    """Two right of three found and of four wanted; a span found twice counts once."""
    found = [[(0, 1, "x"), (0, 1, "x"), (2, 3, "y")], [], [(0, 5, "x")]]
    wanted = [[(0, 1, "x")], [(1, 2, "x"), (4, 5, "x")], [(0, 5, "x")]]
    assert span_scores(found, wanted) == pytest.approx({"f1": 4 / 7, "precision": 2 / 3, "recall": 1 / 2})
    assert span_scores([[]], [[]]) == {"f1": 1, "precision": 1, "recall": 1}
    assert span_scores([[]], [[1]]) == {"f1": 0, "precision": 0, "recall": 0}
    assert span_scores([[1]], [[]]) == {"f1": 0, "precision": 0, "recall": 0}


def test_answers_by_hand() -> None:
    assert normalise("The  Cat's, a hat!") == "cats hat"
    assert exact_match("the cat.", ["A dog", "Cat"]) == 1
    assert exact_match("the cat", ["cats"]) == 0
    # cat sat / the cat sat down: 2 words in common, of 2 and 3.
    assert answer_f1("cat sat", ["dog", "the cat sat down"]) == pytest.approx(0.8)
    assert answer_f1("cat cat", ["cat"]) == pytest.approx(2 / 3)
    for found, value in [("", 1), ("cat", 0)]:
        assert exact_match(found, []) == answer_f1(found, []) == value
    assert answer_f1("", ["cat"]) == 0

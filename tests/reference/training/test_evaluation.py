"""How well a checkpoint finds translations: what is compared, and the figures of the one that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_texts import segments, write_jsonl

from ernie_m.reference import ErnieMModel, demo
from ernie_m.reference.tasks import Encoder
from ernie_m.reference.training.evaluation import evaluate, found_both_ways, interval, piece_vectors, select
from ernie_m.reference.training.retrieval import normalised
from ernie_m.tokenizer import ErnieMTokenizer

ITEMS = 12


def test_figures_are_those_of_the_vectors_text_by_text(tmp_path: Path) -> None:
    """Seen red: the mean of the other language; a text of the hub among the others; the interval of the accuracy."""
    rows = segments(40)
    figures = evaluate(demo.directory(), write_jsonl(tmp_path / "a.jsonl", rows), "en", ITEMS)
    assert list(figures) == ["en-de", "en-ru"]
    encoder, means = Encoder.from_pretrained(demo.directory()), demo.retrieval()[1]
    for name, pairs in select(rows, "en", ITEMS).items():
        texts = [[pair[side] for pair in pairs] for side in (0, 1)]
        x, y = map(encoder.vectors, texts)
        ids = [encoder.tokenizer(side, add_special_tokens=False)["input_ids"] for side in texts]
        pieces = piece_vectors([*ids[0], *ids[1]], len(encoder.tokenizer))
        both = ((x - means["en"], y - means[name]), (x, y), (pieces[:ITEMS], pieces[ITEMS:]))
        model, raw, tfidf = (found_both_ways([normalised(side) for side in sides]) for sides in both)
        found = figures[f"en-{name}"]
        assert (found.model, found.raw, found.tfidf) == (model.mean(), raw.mean(), tfidf.mean())
        assert (found.low, found.high) == interval(model - tfidf)
        assert found.margin == pytest.approx(found.model - found.tfidf)


def test_a_checkpoint_without_means_is_refused(tmp_path: Path) -> None:
    ErnieMModel.from_pretrained(demo.directory()).save_pretrained(tmp_path / "model")
    ErnieMTokenizer.from_pretrained(demo.directory()).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model: expected a checkpoint with retrieval\.json, got one without"):
        evaluate(tmp_path / "model", tmp_path, "en", 1)


def test_items_of_an_evaluation_are_distinct_and_long_enough() -> None:
    """Seen red: texts that are distinct in the hub language only; words not counted."""
    same = [{"en": f"one two three number {i}", "de": f"Zahl {i // 2}"} for i in range(20)]
    short = [{"en": f"too short {i}", "de": f"kurz {i}"} for i in range(20)]
    (pairs,) = select([*same, *short], "en", 10).values()
    assert len(set(pairs)) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 10
    assert all(a.startswith("one two") for a, _ in pairs)
    with pytest.raises(ValueError, match="en-de: expected at least 11 segments of 4 words, got 10"):
        select([*same, *short], "en", 11)


def test_piece_vectors_and_intervals_in_closed_form() -> None:
    """A piece that is in every text counts nothing; an interval holds the mean."""
    found = piece_vectors([[1, 1, 2], [1, 3], [1, 3, 3]], 4)
    np.testing.assert_allclose(found, [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]], atol=1e-12)
    values = np.random.default_rng(0).random(400)
    low, high = interval(values)
    # The standard error is 0.289 / 20; 1.96 of them on either side, within a fifth.
    assert low < values.mean() < high and 0.8 < (high - low) / (2 * 1.96 * values.std() / 20) < 1.2

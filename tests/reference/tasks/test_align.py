"""`align`: the rules of SimAlign against a slow transcription, units of words and pieces, spans in the callers' texts.

Seen red: α squared where one side is aligned; the last of equal maxima; pairs aligned again when all is aligned; the
spans of one side for the other; words merged across a space; Chinese characters merged; a vector of the first token.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import corpus, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ernie_m.reference import demo
from ernie_m.reference.tasks import METHODS, Encoder, TokenVectors, align
from ernie_m.reference.tasks.align import itermax, units

similarities = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    # Few values, so that there are ties, and 0, which a product may also be.
    lambda shape: arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.25, 0.5, 0.51, 0.55, 0.9, 1.0]))
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.from_pretrained(make_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def trained() -> Encoder:
    return Encoder.from_pretrained(demo.directory(), center=True)


def argmax_transcribed(scores: Any) -> list[tuple[int, int]]:
    """Pairs (i, j) where j is the best of row i and i the best of column j, the first of several."""
    found = []
    for i, row in enumerate(scores):
        for j, value in enumerate(row):
            column = [other[j] for other in scores]
            if row.index(max(row)) == j and column.index(max(column)) == i and value == max(row):
                found.append((i, j))
    return found


def itermax_transcribed(scores: np.ndarray, iterations: int, alpha: float) -> set[tuple[int, int]]:
    """Algorithm 1 of the paper, pair by pair; a product with 0 aligns nothing."""
    aligned: set[tuple[int, int]] = set()
    for _ in range(iterations):
        rows, columns = {i for i, _ in aligned}, {j for _, j in aligned}
        product = [[0.0] * scores.shape[1] for _ in scores]
        allowed = set()
        for i in range(scores.shape[0]):
            for j in range(scores.shape[1]):
                if i not in rows and j not in columns:
                    product[i][j] = float(scores[i, j])
                elif not (i in rows and j in columns):
                    product[i][j] = alpha * float(scores[i, j])
                if not (i in rows and j in columns):
                    allowed.add((i, j))
        aligned |= set(argmax_transcribed(product)) & allowed
    return aligned


@settings(max_examples=300)
@given(similarities, st.integers(1, 4), st.sampled_from([0.5, 0.9, 1.0]))
def test_itermax_is_the_algorithm_of_the_paper(scores: np.ndarray, iterations: int, alpha: float) -> None:
    found = itermax(scores, iterations, alpha)
    assert {(i, j) for i, j in np.argwhere(found).tolist()} == itermax_transcribed(scores, iterations, alpha)
    # Sentence and translation have the same role.
    np.testing.assert_array_equal(itermax(scores.T, iterations, alpha), found.T)
    # One iteration aligns each unit at most once, and another only adds to it.
    once = itermax(scores, 1)
    assert once.any() and once.sum(axis=0).max() <= 1 and once.sum(axis=1).max() <= 1
    assert (found >= once).all()


SPACED, UNSPACED = "añж9éниहि", "ข้าว漢字かな"


PARTS = [*SPACED[:5], "ни", "हि", "ข้าว", "漢", "字か", "な", " ", "  ", ".", "-", "’"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(PARTS), max_size=8))
def test_units_are_words_or_pieces_of_scripts_without_spaces(encoder: Encoder, parts: list[str]) -> None:
    """Units follow each other, hold all tokens once, and their vectors are the means of these."""
    text = "".join(parts)
    tokens = encoder.tokens([text])[0]
    spans, vectors = units(text, tokens)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    held = 0
    for (start, end), vector in zip(spans, vectors, strict=True):
        pairs = zip(tokens.vectors, tokens.spans, strict=True)
        inside = [x for x, (first, last) in pairs if start <= first < last <= end and text[first:last].strip()]
        np.testing.assert_allclose(vector, np.mean(inside, axis=0), rtol=1e-5, atol=1e-6)
        assert set(text[start:end]) <= set(SPACED) or len(inside) == 1
        held += len(inside)
    assert held == sum(text[start:end].strip() != "" for start, end in tokens.spans)
    # No word is cut.
    for (_, end), (start, _) in pairwise(spans):
        assert end < start or (end == start and not {text[end - 1], text[start]} <= set(SPACED))


def test_units_of_words_and_of_pieces_literally() -> None:
    x = np.arange(16.0).reshape(8, 2)
    tokens = TokenVectors(x, [(0, 3), (3, 5), (5, 6), (7, 8), (8, 9), (9, 11), (11, 12), (12, 12)])
    spans, vectors = units("select 表格ab.", tokens)
    assert spans == [(0, 6), (7, 8), (8, 9), (9, 11), (11, 12)]
    np.testing.assert_array_equal(vectors, [x[:3].mean(axis=0), *x[3:7]])


@settings(max_examples=40)
@given(st.lists(st.sampled_from(corpus("en", "ja", "ar", "th")[::7]) | st.text(max_size=15), min_size=2, max_size=2))
def test_align_returns_pairs_of_units_of_the_callers_texts(encoder: Encoder, texts: list[str]) -> None:
    """In order, for any Unicode text; the scores are cosines of units' vectors."""
    sides = [units(text, encoder.tokens([text])[0]) for text in texts]
    by_span = [dict(zip(*side, strict=True)) for side in sides]
    for method in METHODS:
        found = align(*texts, encoder, method)
        assert [pair[:2] for pair in found] == sorted({pair[:2] for pair in found})
        assert bool(found) == all(len(spans) > 0 for spans, _ in sides)
        for source, target, score in found:
            x, y = by_span[0][source], by_span[1][target]
            assert abs(score - float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y))) < 1e-5


def test_align_of_a_sentence_with_itself_is_the_identity(trained: Encoder) -> None:
    for text, language in zip(demo.sentences(), demo.languages(), strict=True):
        found = align(text, text, trained, "argmax", language=language, translation_language=language)
        spans, _ = units(text, trained.tokens([text], language=language)[0])
        assert [pair[:2] for pair in found] == [(span, span) for span in spans]
        assert min(pair.score for pair in found) > 1 - 1e-5


def words(pairs: Any, sentence: str, translation: str) -> set[tuple[str, str]]:
    return {(sentence[slice(*pair.source)], translation[slice(*pair.target)]) for pair in pairs}


def test_align_finds_words_of_the_demo_s_translations(trained: Encoder) -> None:
    """Words that help pages repeat; both directions find the same."""
    texts, languages = demo.sentences(), demo.languages()
    expected = [
        {("Deletes", "删"), (".", "。")},
        {("Objekt", "オブジェクトを"), (".", "。")},
        {("Sélectionnez", "Выберите"), ("options", "параметры"), (".", ".")},
        {("Abre", "Ανοίγει"), ("diálogo", "διαλόγου"), ("selección", "επιλογή"), ("archivo", "αρχείου"), (".", ".")},
    ]
    for i, some in enumerate(expected):
        pair, names = (texts[i], texts[i + 4]), (languages[i], languages[i + 4])
        for method in METHODS:
            found = align(*pair, trained, method, language=names[0], translation_language=names[1])
            assert some <= words(found, *pair)
            back = align(*pair[::-1], trained, method, language=names[1], translation_language=names[0])
            assert sorted((target, source) for source, target, _ in back) == [x[:2] for x in found]


def test_align_names_what_is_wrong(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^method: expected one of itermax, argmax, got 'match'$"):
        align("a", "b", encoder, "match")
    with pytest.raises(TypeError, match=r"^translation: expected a text, got \['b'\]$"):
        align("a", ["b"], encoder)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^language: expected none without center=True"):
        align("a", "b", encoder, translation_language="de")
    strict = Encoder(encoder.model, encoder.tokenizer, long="error")
    with pytest.raises(ValueError, match=r"^translation: expected at most 34 tokens"):
        align("a", " ".join(corpus("de")[:6]), strict)
    assert align("", "b", encoder) == align("a", " ", encoder) == []

"""`search`: the order of a full matrix, ties included, for any block size; corpora on disk; errors.

Seen red: a later equal vector that takes an earlier one's place; float32 products, whose last bits depend on the block;
a row counted from its block; scores that are not divided by the lengths; the whole matrix at once.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import corpus, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ernie_m.reference.cli.program import main
from ernie_m.reference.tasks import Encoder, search
from ernie_m.reference.tasks.search import SCALE, on_grid


def cosines(queries: np.ndarray, kept: np.ndarray) -> np.ndarray:  # (Q, E), (N, E) -> (Q, N)
    a, b = (x.astype(np.longdouble) for x in (queries, kept))
    a, b = (x / np.sqrt((x * x).sum(axis=1, keepdims=True)) for x in (a, b))
    found: np.ndarray = (a[:, None] * b).sum(axis=2)
    return found


@st.composite
def vectors(draw: st.DrawFn, E: int, most: int) -> np.ndarray:
    """(n, E) small whole numbers, so that many rows are equal or parallel, times a power of 2 for each row."""
    n = draw(st.integers(1, most))
    rows = draw(arrays(np.float32, (n, E), elements=st.integers(-2, 2)))
    rows[(rows == 0).all(axis=1), 0] = 1.0
    found: np.ndarray = rows * 2.0 ** draw(arrays(np.int8, (n, 1), elements=st.integers(-60, 60)))
    return found.astype(np.float32)


@settings(max_examples=150)
@given(st.data(), st.integers(1, 5), st.integers(1, 12), st.integers(1, 50))
def test_search_is_the_argsort_of_the_full_matrix(data: Any, E: int, k: int, block: int) -> None:
    """Of whole numbers that Python multiplies and sums without rounding; of equal ones the first is first."""
    queries, kept = data.draw(vectors(E, 5)), data.draw(vectors(E, 40))
    found = search(queries, kept, k, block=block)
    a, b = (on_grid("x", x, 0).astype(np.int64).astype(object) for x in (queries, kept))
    full = a @ b.T
    order = np.argsort(-full, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.indices, order)
    exact = cosines(queries, kept)
    bound = np.sqrt(E) / SCALE + 2.0**-24
    assert found.scores.dtype == np.float32
    assert np.abs(found.scores - np.take_along_axis(exact, order, axis=1)).max() <= bound
    # Parallel vectors are equal, however long.
    unit = kept / np.abs(kept).max(axis=1, keepdims=True)
    same = (unit[:, None] == unit).all(axis=2)
    for row in found.indices.tolist():
        for place, i in enumerate(row):
            assert set(np.flatnonzero(same[i, :i]).tolist()) <= set(row[:place])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 40), (7, 300), (300, 40)]), st.integers(1, 400), st.data())
def test_search_gives_the_same_bits_for_any_block_and_any_queries(
    seed: int, sizes: tuple[int, int], block: int, data: Any
) -> None:
    """Of vectors with as many digits as float32 has; copies of a vector, anywhere in the corpus, stay in order."""
    (Q, N), rng = sizes, np.random.default_rng(seed)
    queries, kept = (rng.standard_normal((n, 96)).astype(np.float32) for n in (Q, N))
    kept = kept[rng.integers(0, N, N)]
    whole = search(queries, kept, 9, block=N)
    part = search(queries, kept, 9, block=block)
    chosen = data.draw(st.integers(0, Q - 1))
    alone = search(queries[[chosen]], kept, 9)
    for x, y, z in zip(whole, part, alone, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(x[[chosen]], z)
    for row in whole.indices:
        runs = kept[row]
        assert all(i < j for i, j, x, y in zip(row, row[1:], runs, runs[1:], strict=False) if (x == y).all())


def test_search_reads_a_memory_mapped_corpus_in_blocks(tmp_path: Path) -> None:
    """200,000 x 16, of which queries x corpus in float32 would take 51 MB, and the corpus in float64 26 MB."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "corpus.npy", rng.standard_normal((200_000, 16)).astype(np.float32))
    kept = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    queries = kept[::3125] + 0.1 * rng.standard_normal((64, 16)).astype(np.float32)
    tracemalloc.start()
    found = search(queries, kept, 5, block=8192)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(0, 200_000, 3125))
    for row in (0, 63):
        exact = cosines(queries[[row]], np.asarray(kept))[0]
        assert np.abs(np.sort(exact)[-5:][::-1] - found.scores[row]).max() <= 4 / SCALE + 2.0**-24
        assert np.abs(exact[found.indices[row]] - found.scores[row]).max() <= 4 / SCALE + 2.0**-24


def test_search_of_texts_is_that_of_their_vectors(tmp_path: Path) -> None:
    """As `ernie-m encode` writes them."""
    directory = make_checkpoint(tmp_path / "model")
    encoder, texts = Encoder.from_pretrained(directory), corpus("en", "ja")[::5]
    output = str(tmp_path / "x.npy")
    assert main(["encode", "--model", str(directory), "--output", output, "--", *texts]) == 0
    kept = np.load(output, mmap_mode="r")
    found = search(texts[3:6], kept, 4, encoder=encoder)
    both = search(texts[3:6], texts, 4, encoder=encoder)
    np.testing.assert_array_equal(found.indices, both.indices)
    assert found.indices[:, 0].tolist() == [3, 4, 5] and found.scores[:, 0].tolist() == [1.0, 1.0, 1.0]


def test_search_centres_queries_and_corpus_by_their_languages() -> None:
    from ernie_m.reference import demo

    encoder = Encoder.from_pretrained(demo.directory(), center=True)
    texts, languages = demo.sentences(), demo.languages()
    sides: dict[str, Any] = {"language": languages[:4], "corpus_language": languages[4:]}
    found = search(texts[:4], texts[4:], 1, encoder=encoder, **sides)
    assert found.indices[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_search_returns_the_wider_dtype_and_all_of_a_small_corpus(dtype: Any) -> None:
    x = np.array([[3, 0], [1, 1], [-1, 0]], dtype)
    found = search(x[:2], x.astype(np.float32), 10)
    assert found.indices.dtype == np.int64 and found.indices.tolist() == [[0, 1, 2], [1, 0, 2]]
    assert found.scores.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(found.scores[0], [1, 0.5**0.5, -1], rtol=0, atol=1e-7)
    assert [part.shape for part in search(x, x[:0])] == [(3, 0), (3, 0)]
    assert [part.shape for part in search(x[:0], x)] == [(0, 3), (0, 3)]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_search_takes_vectors_of_any_length(size: float, dtype: Any) -> None:
    """Lengths whose squares float32 cannot hold; in float64 those whose squares it cannot."""
    x = np.random.default_rng(0).standard_normal((9, 4)).astype(dtype)
    scaled = x * dtype(size if dtype == np.float32 else size**8)
    np.testing.assert_array_equal(search(scaled, x, 3).indices, search(x, x, 3).indices)


ROWS = np.eye(3, 4, dtype=np.float32)


def changed(row: int, value: float) -> np.ndarray:
    found = ROWS.copy()
    found[row] = value
    return found


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((ROWS, ROWS[:, :3]), ValueError, "corpus: expected vectors of width 4, as the queries, got width 3"),
        ((ROWS, changed(2, 0)), ValueError, "corpus: expected finite .*, got a zero vector, .*, in row 2"),
        ((changed(1, np.nan), ROWS), ValueError, "queries: expected finite .*, got nan or inf, in row 1"),
        ((ROWS, changed(2, np.inf)), ValueError, "corpus: expected finite .*, got nan or inf, in row 2"),
        ((ROWS[0], ROWS), ValueError, r"queries: expected shape \(N, E\), got \(4,\)"),
        ((ROWS, ROWS.astype(int)), TypeError, "corpus: expected float16, float32 or float64, got int64"),
        ((ROWS, ROWS, 0), ValueError, "k: expected at least 1, got 0"),
        ((ROWS, ROWS, 1.5), TypeError, "k: expected an integer, got 1.5"),
        ((ROWS, ROWS, "3"), TypeError, "k: expected an integer, got '3'"),
        ((ROWS, ROWS, True), TypeError, "k: expected an integer, got True"),
        ((None, ROWS), TypeError, "queries: expected an array of vectors or a list of texts, got None"),
        ((["a\ud800"], ROWS), ValueError, r"queries\[0\]: expected Unicode text, got lone surrogate U\+D800 at pos"),
        ((np.array(["a"]), ROWS), ValueError, "queries: expected vectors, or an encoder for the texts, got texts with"),
        ((["text"], ROWS), ValueError, "queries: expected vectors, or an encoder for the texts, got texts without one"),
        (("text", ROWS), TypeError, "queries: expected an array of vectors or a list of texts, got 'text'"),
        (([[1.0, 2.0]], ROWS), TypeError, r"queries: expected an array of vectors or a list of texts, got \[\[1.0"),
    ],
)
def test_search_names_what_is_wrong(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        search(*arguments, block=2) if len(arguments) == 2 else search(*arguments)


def test_search_rejects_a_language_of_vectors_and_an_empty_block() -> None:
    with pytest.raises(ValueError, match=r"^language: expected none for corpus that are vectors already, got 'de'$"):
        search(ROWS, ROWS, corpus_language="de")
    with pytest.raises(ValueError, match=r"^block: expected at least 1, got 0$"):
        search(ROWS, ROWS, block=0)

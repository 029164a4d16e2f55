"""Train, dev and test: whole pages, and no text of one again, or nearly, in another.

Near means a Jaccard similarity |A ∩ B| / |A ∪ B| of at least 0.7 between sets of words (in Chinese and Japanese, of
pairs of characters), in any language. The comparison is exact: no pair is skipped.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from .align import Segment
from .text import features

NEAR = 0.7
# Of 1,000 pages: test the first 80, dev the next 40.
TEST, DEV, OF = 80, 120, 1000
# Rows of one block of the product, so that it fits into memory.
ROWS = 512


def part(page: str) -> str:
    """Which split a page belongs to."""
    number = int.from_bytes(hashlib.sha256(page.encode("utf-8")).digest()[:8], "big") % OF
    return "test" if number < TEST else "dev" if number < DEV else "train"


def split(
    segments: Sequence[Segment], languages: Sequence[str], removed: Counter[tuple[str, str]]
) -> dict[str, list[Segment]]:
    """The three splits. Test items are near to no other test item, dev items to no test or dev item, and training
    segments to neither. `removed` counts ("near-duplicate", split).
    """
    parts = {name: [each for each in segments if part(each.page) == name] for name in ("train", "dev", "test")}
    sizes = {name: len(rows) for name, rows in parts.items()}
    parts["test"] = distinct(parts["test"], languages)
    parts["dev"] = distinct(without(parts["dev"], parts["test"], languages), languages)
    parts["train"] = without(parts["train"], [*parts["dev"], *parts["test"]], languages)
    for name, size in sizes.items():
        removed["near-duplicate", name] += size - len(parts[name])
    return parts


def without(rows: Sequence[Segment], others: Sequence[Segment], languages: Sequence[str]) -> list[Segment]:
    """The rows that are near to none of the others."""
    taken = {row for language in languages for row, _ in near(rows, others, language)}
    return [row for i, row in enumerate(rows) if i not in taken]


def distinct(rows: Sequence[Segment], languages: Sequence[str]) -> list[Segment]:
    """The rows without those that are near to an earlier row that stays."""
    earlier: dict[int, set[int]] = {}
    for language in languages:
        for row, other in near(rows, rows, language):
            if other < row:
                earlier.setdefault(row, set()).add(other)
    kept: set[int] = set()
    for i in range(len(rows)):
        if not earlier.get(i, set()) & kept:
            kept.add(i)
    return [rows[i] for i in sorted(kept)]


def near(rows: Sequence[Segment], others: Sequence[Segment], language: str) -> list[tuple[int, int]]:
    """Every (index in rows, index in others) that is near in this language."""
    words: dict[str, int] = {}
    left, left_at = _sets(rows, language, words)
    right, right_at = _sets(others, language, words)
    if not left_at or not right_at:
        return []
    a, b = _matrix(left, len(words)), _matrix(right, len(words))
    size_a, size_b = np.diff(a.indptr), np.diff(b.indptr)
    transposed = b.T.tocsr()
    pairs = []
    for start in range(0, a.shape[0], ROWS):
        shared = (a[start : start + ROWS] @ transposed).tocoo()
        union = size_a[start + shared.row] + size_b[shared.col] - shared.data
        for i in np.flatnonzero(shared.data >= NEAR * union - 1e-9):
            pairs.append((left_at[start + shared.row[i]], right_at[shared.col[i]]))
    return sorted(pairs)


def _sets(rows: Sequence[Segment], language: str, words: dict[str, int]) -> tuple[list[list[int]], list[int]]:
    """The features of each row that has this language, numbered in `words`, and the indices of these rows."""
    at = [i for i, row in enumerate(rows) if language in row.texts]
    sets = [sorted(features(rows[i].texts[language].text, language)) for i in at]
    return [[words.setdefault(word, len(words)) for word in each] for each in sets], at


def _matrix(sets: list[list[int]], columns: int) -> sparse.csr_array:
    """One row of zeros and ones for each set."""
    bounds = np.cumsum([0, *map(len, sets)])
    flat = np.array([number for each in sets for number in each], dtype=np.int64)
    return sparse.csr_array((np.ones(len(flat), np.int32), flat, bounds), shape=(len(sets), columns))

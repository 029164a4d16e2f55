"""Which tokens are masked, and what takes their place.

Source: BERT (Devlin et al., 2019), appendix A.1; the shares are those of XLM too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Array, check_range, is_number
from ..inputs import VOCABULARY, integers

# What becomes of masked tokens: [MASK], a random word, the word itself.
XLM_SHARES = (0.8, 0.1, 0.1)
ONLY_MASKS = (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Vocabulary:
    """The number of words, and the ids of special tokens; those that ERNIE-M's tokenizers have are the defaults."""

    size: int
    mask: int
    cls: int = 0
    pad: int = 1
    sep: int = 2
    unk: int = 3

    def __post_init__(self) -> None:
        if len(set(self.special)) < 5 or not all(0 <= i < self.size for i in self.special):
            raise ValueError(f"special tokens: expected five different ids in [0, {self.size}), got {self.special}")
        if self.size == 5:
            raise ValueError("size: expected at least one word beside the five special tokens, got 5")

    @property
    def special(self) -> tuple[int, ...]:
        """The ids that are no words."""
        return self.cls, self.pad, self.sep, self.unk, self.mask

    def draw(self, count: int, rng: np.random.Generator) -> Array:  # -> (count,)
        """Random words, special tokens excluded."""
        words = rng.integers(0, self.size - len(self.special), count)
        # In ascending order, each special id pushes the words from itself on up by one.
        for i in sorted(self.special):
            words += words >= i
        return words


def check_ids(name: str, ids: Any, vocabulary: Vocabulary) -> Array:  # -> (n,)
    """`ids` as an array of a sentence's words. Raises TypeError or ValueError, naming the argument."""
    if np.shape(ids) == (0,):
        return np.zeros(0, np.int64)
    array = integers(name, ids).astype(np.int64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one sentence, shape (n,), got {array.shape}")
    check_range(name, array, vocabulary.size, VOCABULARY)
    wrong = array[np.isin(array, [vocabulary.cls, vocabulary.pad, vocabulary.sep, vocabulary.mask])]
    if wrong.size:
        raise ValueError(f"{name}: expected words, without special tokens, got {wrong[0]}")
    return array


def choose(candidates: Array, ratio: float, rng: np.random.Generator) -> Array:  # (n,) -> (M,)
    """The places to mask: a `ratio` of the candidates, rounded, and at least one unless the ratio is 0; ascending."""
    if not (is_number(ratio) and 0.0 <= ratio <= 1.0):
        raise ValueError(f"ratio: expected a number from 0 to 1, got {ratio!r:.80}")
    count = min(len(candidates), max(1, round(ratio * len(candidates)))) if ratio else 0
    return np.sort(rng.choice(candidates, count, replace=False))


def replace_tokens(
    tokens: Array, masked: Array, shares: tuple[float, float, float], vocabulary: Vocabulary, rng: np.random.Generator
) -> Array:  # (n,), (M,) -> (n,)
    """A copy in which each masked token is [MASK], a random word or itself, with the probabilities in `shares`."""
    given = list(shares) if isinstance(shares, (list, tuple, np.ndarray)) else []
    if not (len(given) == 3 and all(is_number(x) and x >= 0 for x in given) and abs(sum(given) - 1.0) <= 1e-9):
        raise ValueError(f"shares: expected three numbers of at least 0 whose sum is 1, got {shares!r:.80}")
    replaced, fate = tokens.copy(), rng.random(len(masked))
    words = vocabulary.draw(len(masked), rng)
    to_mask, to_word = fate < shares[0], fate < shares[0] + shares[1]
    replaced[masked] = np.where(to_mask, vocabulary.mask, np.where(to_word, words, tokens[masked]))
    return replaced

"""Batches for pretraining, drawn from tokenised texts: which texts, and what is masked in them.

A batch depends on the seed, the step and its number in the step alone. So training that stopped goes on exactly where
it was, and processes that share the work need not talk about it: each computes its own batches.

    objective of step s    objectives[s % n], in turn
    texts                  a language, or a pair of languages, in proportion to (number of texts)^alpha;
                           then a text of it, all alike, with replacement
    batches                about `tokens` tokens each: a pool of texts, sorted by length and cut into batches

Source: Lample and Conneau (2019), section 3.1, for alpha, which lets small languages take part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import getfullargspec
from numbers import Integral
from typing import Any

import numpy as np

from ..array import Array, is_number
from ..objectives import Example, Vocabulary, btmlm, btmlm_placeholders, camlm, mmlm, tlm
from .shards import Shards

OBJECTIVES = {"mmlm": mmlm, "tlm": tlm, "camlm": camlm, "btmlm": btmlm}
PARALLEL = ("tlm", "camlm")
# Batches of similar lengths are cut from a pool of this many.
POOL = 32
# From placeholders to a pseudo-token for each of them, sentence by sentence.
Pseudo = Callable[[Sequence[Example]], Sequence[Array]]


@dataclass(frozen=True)
class Mixture:
    """What is drawn, and how.

    tokens: about the size of a batch, special tokens included, appended masks not. per_step: the batches of a step.
    pairs_with: the language that one side of each pair is in; None allows all pairs.
    arguments: for each objective, named arguments: {"camlm": {"masked_sides": "one", "ratio": 1.0}}.
    """

    shards: Shards
    vocabulary: Vocabulary
    objectives: tuple[str, ...]
    tokens: int
    per_step: int = 1
    seed: int = 0
    pairs_with: str | None = None
    alpha: float = 0.7  # from 0 to 1
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_mixture(self.vocabulary, self.objectives, self.alpha, self.arguments)
        for name, low in (("tokens", 1), ("per_step", 1), ("seed", 0)):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
                raise ValueError(f"{name}: expected a whole number of at least {low}, got {value!r:.80}")
        for name in set(self.objectives):
            if not self._sources(name):
                raise ValueError(f"{name}: expected texts with translations{self._which()}, found none")
        # A pool is needed by each of its batches.
        object.__setattr__(self, "_cached_pool", lru_cache(maxsize=2 * len(self.objectives))(self._pool))

    def objective(self, step: int) -> str:
        """The objective of a step."""
        return self.objectives[step % len(self.objectives)]

    def batch(self, step: int, i: int = 0, pseudo: Pseudo | None = None) -> list[Example]:
        """The examples of batch i of a step. `pseudo`: predicts the pseudo-tokens of BTMLM."""
        n, name = len(self.objectives), self.objective(step)
        # How many batches of this objective came before.
        steps = step // n * self.objectives.count(name) + self.objectives[: step % n].count(name)
        number = steps * self.per_step + i
        pool: list[list[tuple[int, ...]]] = self._cached_pool(name, number // POOL)  # type: ignore[attr-defined]
        texts = [[self.shards.text(t) for t in row] for row in pool[number % POOL]]
        rng, options = np.random.default_rng((self.seed, 1, step, i)), self.arguments.get(name, {})
        objective: Any = OBJECTIVES[name]
        if name != "btmlm":
            return [objective(*row, self.vocabulary, rng, **options) for row in texts]
        if pseudo is None:
            raise ValueError("btmlm: expected `pseudo`, which predicts pseudo-tokens, got None")
        made = pseudo([btmlm_placeholders(x, self.vocabulary, len(x)) for (x,) in texts])
        return [btmlm(x, y, self.vocabulary, rng, **options) for (x,), y in zip(texts, made, strict=True)]

    def _sources(self, name: str) -> dict[str, Array]:
        if name not in PARALLEL:
            return self.shards.mono
        wanted = self.pairs_with
        return {pair: rows for pair, rows in self.shards.pairs.items() if wanted is None or wanted in pair.split("+")}

    def _which(self) -> str:
        return "" if self.pairs_with is None else f" between {self.pairs_with} and other languages"

    def _pool(self, name: str, number: int) -> list[list[tuple[int, ...]]]:
        """The texts of `POOL` batches of an objective."""
        sources = list(self._sources(name).values())
        shares = np.array([float(len(rows)) for rows in sources]) ** self.alpha
        rng = np.random.default_rng((self.seed, 0, sorted(OBJECTIVES).index(name), number))
        special, copies = (4, 1) if name in PARALLEL else (2, 2 if name == "btmlm" else 1)
        rows: list[tuple[int, ...]] = []
        sizes: list[int] = []
        while sum(sizes) < POOL * self.tokens:
            for k in rng.choice(len(sources), 64, p=shares / shares.sum()):
                row = np.array(sources[k][rng.integers(len(sources[k]))])
                rows.append(tuple(int(t) for t in (row if rng.random() < 0.5 else row[::-1])))
                sizes.append(copies * int(self.shards.lengths(row).sum()) + special)
        order = np.argsort(sizes, kind="stable")
        ends = np.cumsum(np.array(sizes)[order])
        # Each batch takes its share of the tokens, and at least one text.
        cuts = np.searchsorted(ends, ends[-1] * np.arange(1, POOL) / POOL)
        batches = [[rows[j] for j in part] for part in np.split(order, cuts) if len(part)]
        batches += [batches[-1]] * (POOL - len(batches))
        return [batches[j] for j in rng.permutation(POOL)]


def check_mixture(vocabulary: Vocabulary, objectives: Any, alpha: Any, arguments: Any) -> None:
    """Raise ValueError, naming the field, unless a `Mixture` takes these, whatever the texts are."""
    known = ", ".join(OBJECTIVES)
    if not isinstance(objectives, (list, tuple)) or not objectives:
        raise ValueError(f"objectives: expected a list of at least one of {known}, got {objectives!r:.80}")
    if not (is_number(alpha) and 0 <= alpha <= 1):
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha!r:.80}")
    if not isinstance(arguments, Mapping):
        raise ValueError(f"arguments: expected those of each objective by its name, got {arguments!r:.80}")
    for entry, names in (("objectives", objectives), ("arguments", arguments)):
        for name in names:
            if not (isinstance(name, str) and name in OBJECTIVES):
                raise ValueError(f"{entry}: expected some of {known}, got {name!r:.80}")
    for name, options in arguments.items():
        _try(vocabulary, name, options)


def _try(vocabulary: Vocabulary, name: str, options: Any) -> None:
    """Raise ValueError unless an objective takes these named arguments, tried on sentences of one word."""
    objective: Any = OBJECTIVES[name]
    if not isinstance(options, Mapping):
        raise ValueError(f"arguments: {name}: expected arguments by name, got {options!r:.80}")
    known = getfullargspec(objective).kwonlyargs
    for option in options:
        if option not in known:
            raise ValueError(f"arguments: {name}: expected some of {', '.join(known)}, got {option!r:.80}")
    rng = np.random.default_rng(0)
    sentences = [vocabulary.draw(1, rng)] * (1 if name == "mmlm" else 2)
    try:
        example = objective(*sentences, vocabulary, rng, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments: {name}: {error}") from None
    if not example.weights.any():
        raise ValueError(f"arguments: {name}: expected a ratio and a weight above 0, else there is nothing to learn")


def longest_text(name: str, positions: int, options: Mapping[str, Any]) -> int:
    """How many tokens the texts of an objective may have in a model with so many positions."""
    if name == "mmlm" or options.get("positions") == "again":
        return positions - 2
    return (positions - (4 if name in PARALLEL else 2)) // 2

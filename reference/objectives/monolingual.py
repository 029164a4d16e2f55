"""Objectives that need sentences alone: MMLM, and BTMLM, which makes up the other language.

Source: ERNIE-M, section 3.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Array, is_number
from .examples import Example, example, sequence, words_of
from .masking import XLM_SHARES, Vocabulary, check_ids, choose, replace_tokens


def mmlm(
    ids: Any,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    ratio: float = 0.15,
    shares: tuple[float, float, float] = XLM_SHARES,
    weight: float = 1.0,
) -> Example:
    """Multilingual masked language modelling: masked words of one sentence, from the rest of it.

    ratio: the share of tokens that are masked, at least one unless it is 0. 0.15 is BERT's and XLM's.
    shares: of the masked tokens, those replaced by [MASK], by a random word, and not at all.
    weight: what each label counts in the loss.

    Raises TypeError or ValueError, naming the argument.
    """
    x = check_ids("ids", ids, vocabulary)
    tokens, sides = sequence(vocabulary, x)
    masked = choose(words_of(sides, 0), ratio, rng)
    replaced = replace_tokens(tokens, masked, shares, vocabulary, rng)
    return example(replaced, np.arange(len(tokens)), None, masked, tokens[masked], sides, weight)


def btmlm_placeholders(ids: Any, vocabulary: Vocabulary, count: int) -> Example:
    """Back-translation masked language modelling, first stage: placeholders behind a sentence, to be predicted.

    Each of the `count` placeholders, a [MASK], sees the sentence and all placeholders; the sentence sees itself.
    Nothing is learnt here, so there are no labels: what a model trained with CAMLM predicts at `sides` == 1 are the
    pseudo-tokens of `btmlm`. The paper does not say how many there are, nor in which language.
    """
    x = check_ids("ids", ids, vocabulary)
    if count < 1:
        raise ValueError(f"count: expected at least 1 placeholder, got {count}")
    tokens, sides = sequence(vocabulary, x)
    tokens = np.concatenate([tokens, np.full(count, vocabulary.mask)])
    sides = np.concatenate([sides, np.ones(count, int)])
    sees = (sides[:, None] == 1) | (sides[None, :] == 0)
    nothing = np.zeros(0, int)
    return example(tokens, np.arange(len(tokens)), sees, nothing, nothing, sides, 0.0)


def btmlm(
    ids: Any,
    pseudo: Any,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    ratio: float = 0.15,
    shares: tuple[float, float, float] = XLM_SHARES,
    weight: float = 1.0,
) -> Example:
    """Second stage: masked words of a sentence, from the rest of it and from the pseudo-tokens behind it.

    `pseudo` are ids, in the places of the first stage's placeholders; no gradient reaches the model that chose them.
    ratio, shares, weight: as in `mmlm`.
    """
    x, words = check_ids("ids", ids, vocabulary), check_ids("pseudo", pseudo, vocabulary)
    tokens, sides = sequence(vocabulary, x)
    masked = choose(words_of(sides, 0), ratio, rng)
    replaced = np.concatenate([replace_tokens(tokens, masked, shares, vocabulary, rng), words])
    sides = np.concatenate([sides, np.ones(len(words), int)])
    return example(replaced, np.arange(len(replaced)), None, masked, tokens[masked], sides, weight)


def pseudo_tokens(
    logits: Array, vocabulary: Vocabulary, rng: np.random.Generator | None = None, temperature: float = 1.0
) -> Array:  # (n, V) -> (n,)
    """A word for each placeholder: the most probable, or with `rng` one drawn at a temperature; no special token."""
    if not (is_number(temperature) and 0 < temperature < np.inf):
        raise ValueError(f"temperature: expected a number above 0, and finite, got {temperature!r:.80}")
    allowed = logits.astype(np.float64)
    allowed[:, list(vocabulary.special)] = -np.inf
    if rng is not None:
        # The largest of logit / T + Gumbel noise is a draw from softmax(logits / T).
        allowed = allowed / temperature + rng.gumbel(size=allowed.shape)
    return allowed.argmax(axis=-1)

"""A toy in which CAMLM learns to translate and MMLM cannot: two ciphers of one small grammar.

The second language has other words, its adjectives behind nouns and its verb at the end. For each held-out sentence,
the model is asked for the probability of every held-out sentence of the other language, all of it masked, and the most
probable one should be its translation: chance is one in 24.

Masks are appended, as in the paper's figure, so that the answers stand in the sequence too: a rule of attention that
lets masks see their own side's text makes every sentence of the other language as probable as the translation.

What it does not show: text that sees both sides. Then too the model learned to translate. The tests in
test_objectives.py are for that.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

from ernie_m.reference import ErnieMConfig, ErnieMForMaskedLM
from ernie_m.reference.array import Array
from ernie_m.reference.objectives import Vocabulary, camlm, collate, mmlm, pairs
from ernie_m.reference.training import train

ADJECTIVES, NOUNS, VERBS, ADVERBS = range(5), range(5, 14), range(14, 19), range(19, 22)
WORDS, FIRST = 22, 5  # words of a language; the id of the first one
VOCABULARY = Vocabulary(size=FIRST + 2 * WORDS, mask=4)
ITEMS, STEPS, BATCH, RATE = 24, 300, 16, 5e-3
OPTIONS: dict[str, Any] = {"masks": "appended", "masked_sides": "one", "ratio": 1.0, "positions": "again"}
# A seed with which the second side is masked.
SECOND = next(seed for seed in range(99) if np.random.default_rng(seed).integers(2) == 1)
Pair = tuple[tuple[int, ...], tuple[int, ...]]


def pair(rng: np.random.Generator) -> Pair:
    """A sentence, [adjective] noun verb [adjective] noun [adverb], and its translation."""
    nouns = [[int(rng.choice(ADJECTIVES))] * (rng.random() < 0.6) + [int(rng.choice(NOUNS))] for _ in range(2)]
    verb, adverb = int(rng.choice(VERBS)), [int(rng.choice(ADVERBS))] * (rng.random() < 0.5)
    first = [*nouns[0], verb, *nouns[1], *adverb]
    second = [*nouns[0][::-1], *nouns[1][::-1], *adverb, verb]
    return tuple(FIRST + w for w in first), tuple(FIRST + WORDS + w for w in second)


def sentences(seed: int) -> tuple[list[Pair], list[Pair]]:
    """Different pairs to train on and to test on."""
    rng = np.random.default_rng(seed)
    drawn = list(dict.fromkeys(pair(rng) for _ in range(700)))
    return drawn[ITEMS:], drawn[:ITEMS]


def learn(objective: str, seed: int) -> ErnieMForMaskedLM:
    """A model trained in NumPy on the sentences of a seed."""
    config = ErnieMConfig(
        vocab_size=VOCABULARY.size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=34,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
    )
    rng, known = np.random.default_rng(seed + 1), sentences(seed)[0]

    def batches() -> Iterator[dict[str, Array]]:
        while True:
            chosen = [known[i] for i in rng.integers(0, len(known), BATCH)]
            if objective == "camlm":
                yield collate([camlm(x, y, VOCABULARY, rng, **OPTIONS) for x, y in chosen], VOCABULARY)
            else:
                yield collate([mmlm(x, VOCABULARY, rng, ratio=0.3) for both in chosen for x in both], VOCABULARY)

    model = ErnieMForMaskedLM.from_config(config, seed=seed)
    *_, last = train(model, batches(), rate=RATE, total=STEPS, warmup=STEPS // 10)
    return last.model


def retrieval(model: ErnieMForMaskedLM, items: list[Pair]) -> float:
    """How often a sentence's translation is the most probable one, per word; the mean of both directions."""
    found = []
    for a, b in ((0, 1), (1, 0)):
        scores = np.array([[_likelihood(model, x[a], y[b]) for y in items] for x in items])
        found.append((scores.argmax(axis=1) == np.arange(len(items))).mean())
    return float(np.mean(found))


def _likelihood(model: ErnieMForMaskedLM, given: tuple[int, ...], asked: tuple[int, ...]) -> float:
    """The mean log-probability of the words of `asked`, all masked, by CAMLM's rule."""
    e = camlm(given, asked, VOCABULARY, np.random.default_rng(SECOND), **OPTIONS)
    assert (e.sides[e.labels >= 0] == 1).all()
    return -float(model(**collate([e], VOCABULARY))["loss"])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.all) for seed in (1, 2))])
def test_camlm_learns_to_translate_and_mmlm_does_not(seed: int) -> None:
    """By a wide margin, for each seed."""
    held_out = sentences(seed)[1]
    found = {objective: retrieval(learn(objective, seed), held_out) for objective in ("camlm", "mmlm")}
    assert found["camlm"] > 0.8 and found["mmlm"] < 0.3, found


@pytest.mark.all
def test_the_toy_sees_answers_that_were_not_replaced() -> None:
    """The model copies what it should predict, and translates nothing."""
    with mock.patch.object(pairs, "replace_tokens", lambda tokens, *rest: tokens.copy()):
        model = learn("camlm", 0)
    assert retrieval(model, sentences(0)[1]) < 0.3


@pytest.mark.all
def test_the_toy_sees_a_leak_in_attention() -> None:
    """Masks see their own side's text, and so what they should predict."""
    right = pairs.camlm_sees

    def leaking(sides: Array, masked: Array, see_own_masks: bool) -> Array:
        is_mask = np.zeros(len(sides), bool)
        is_mask[masked] = True
        return right(sides, masked, see_own_masks) | (is_mask[:, None] & ~is_mask[None, :])

    with mock.patch.object(pairs, "camlm_sees", leaking):
        assert retrieval(learn("camlm", 0), sentences(0)[1]) < 0.6


@pytest.mark.all
def test_the_toy_sees_a_wrong_gradient() -> None:
    """That of attention's scores has the wrong sign."""
    page = importlib.import_module("ernie_m.reference.attention")
    right = page.softmax_vjp_of
    with mock.patch.object(page, "softmax_vjp_of", lambda *given: -right(*given)):
        model = learn("camlm", 0)
    assert retrieval(model, sentences(0)[1]) < 0.3

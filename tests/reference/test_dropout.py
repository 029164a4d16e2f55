from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from helpers import ids_like, masks, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND, U64

import ernie_m.reference as ernie
from ernie_m.reference import dropout
from ernie_m.reference.dropout import draw_seeds, dropped, philox, random_bits

P = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "act_dropout": 0.0, "classifier_dropout": 0.0}
SEEDS = st.integers(0, 2**64 - 1)
page = import_module("ernie_m.reference.dropout")


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    """Random123's known-answer vectors of philox4x32-10: all zeros, all ones, and digits of pi."""
    low, high = (int(word, 16) for word in key.split())
    words = philox(tuple(np.array([int(word, 16)]) for word in counter.split()), low | high << 32)  # type: ignore[arg-type]
    assert " ".join(f"{int(word[0]):08x}" for word in words) == expected


def test_dropout_without_a_seed_or_rate_returns_its_input() -> None:
    x = np.ones((1, 5))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, 7) is x
    assert not dropout(x, 1.0, 7).any()


def test_dropout_drops_a_fraction_p_and_scales_the_rest() -> None:
    """100,000 elements: the fraction is within 5 standard deviations of p."""
    found = dropout(np.ones((100, 1000)), 0.3, 1)
    assert abs((found == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 100_000)
    np.testing.assert_allclose(found[found != 0], 1 / 0.7, rtol=4 * U64)  # at most two roundings on each side


@given(SEEDS, st.integers(1, 9), st.integers(0, 2**31))
def test_bits_are_a_function_of_the_place_alone(seed: int, columns: int, first: int) -> None:
    """Token by token, head by head, in any width: the same bits. Counted as uniform, they pass for random."""
    tokens, heads = first + np.arange(5), np.arange(3)[:, None]
    bits = random_bits(seed, tokens, columns, heads)
    assert bits.shape == (3, 5, columns)
    assert bits.dtype == np.uint32
    for h in range(3):
        for t in range(5):
            wider = random_bits(seed, np.array(first + t), columns + 6, h)
            np.testing.assert_array_equal(wider[:columns], bits[h, t])


def test_bits_of_different_places_and_seeds_differ() -> None:
    """Of 2 x 3 x 40 x 40 words of 32 bits, two coincide with a probability of 1 %; here none do."""
    bits = np.stack([random_bits(seed, np.arange(40), 40, np.arange(3)[:, None]) for seed in (1, 2)])
    assert len(np.unique(bits)) == bits.size
    assert not np.array_equal(random_bits(1, np.arange(3), 8), random_bits(1 + 2**32, np.arange(3), 8))


@given(masks(), SEEDS)
def test_dropout_counts_real_tokens(mask: np.ndarray, seed: int) -> None:
    """With each token's index, the padded rectangle drops the same elements of the same tokens as the packed array."""
    x = np.random.default_rng(1).standard_normal((*mask.shape, 3))
    valid = mask.astype(bool)
    index = np.maximum(np.cumsum(valid) - 1, 0).reshape(valid.shape)
    np.testing.assert_array_equal(dropout(x, 0.5, seed, index)[valid], dropout(x[valid], 0.5, seed))


@given(SEEDS, st.sampled_from([1, 7, 64]))
def test_dropout_does_not_depend_on_pieces(seed: int, piece: int) -> None:
    x = np.random.default_rng(1).standard_normal((9, 5))
    whole = dropout(x, 0.5, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "PIECE", piece)
        np.testing.assert_array_equal(dropout(x, 0.5, seed), whole)
    np.testing.assert_array_equal(dropout(x[4:], 0.5, seed, np.arange(4, 9)), whole[4:])


@given(SEEDS, st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.sampled_from([1, 2, 63, 129]))
def test_dropout_drops_the_same_places_in_every_dtype(seed: int, p: float, n: int) -> None:
    outs = [dropout(np.ones((n, 3), t), p, seed) for t in "dfe"]
    for out, t in zip(outs, "dfe", strict=True):
        assert out.dtype == t
        np.testing.assert_array_equal(out == 0, outs[0] == 0)


@settings(max_examples=30, deadline=None)
@given(masks(), st.sampled_from([0, 1, 4]))
def test_model_dropout_does_not_depend_on_padding_or_path(mask: np.ndarray, more: int) -> None:
    """Packed or padded, with more or less padding, grouped or not: the same generator drops the same elements."""
    model = random_model(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.4, act_dropout=0.2)
    ids = np.pad(ids_like(mask), ((0, 0), (0, more)), constant_values=1)
    wider = np.pad(mask, ((0, 0), (0, more)))
    outs = [
        model(ids_like(mask), attention_mask=mask, rng=np.random.default_rng(5)),
        model(ids, attention_mask=wider, rng=np.random.default_rng(5)),
        model(ids, attention_mask=wider, rng=np.random.default_rng(5), output_attentions=True),
    ]
    for out in outs[1:]:
        hidden = out.last_hidden_state[:, : mask.shape[1]]
        np.testing.assert_allclose(hidden, outs[0].last_hidden_state, rtol=0, atol=MODEL_BOUND)


def test_model_dropout_does_not_depend_on_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch large enough for several groups, against the same in one."""
    model = random_model(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.4, act_dropout=0.2)
    mask = (np.arange(33) < np.array([33, 5, 20, 33, 1, 30])[:, None]).astype(int)
    monkeypatch.setattr("ernie_m.reference.groups.LEAST_TOKENS", 10)
    many = model(ids_like(mask), attention_mask=mask, rng=np.random.default_rng(5)).last_hidden_state
    monkeypatch.setattr("ernie_m.reference.groups.LEAST_TOKENS", 1000)
    one = model(ids_like(mask), attention_mask=mask, rng=np.random.default_rng(5)).last_hidden_state
    np.testing.assert_allclose(many, one, rtol=0, atol=MODEL_BOUND)


def test_model_dropout_uses_every_rate_of_the_configuration() -> None:
    """Each rate alone changes the output, and only with a generator; with all rates 0 nothing changes."""
    cls = ernie.ErnieMForSequenceClassification
    ids = np.array([[0, 5, 9, 2]])
    plain = random_model(cls, **P)(ids).logits
    np.testing.assert_array_equal(random_model(cls, **P)(ids, rng=np.random.default_rng(0)).logits, plain)
    for name in P:
        model = random_model(cls, **{**P, name: 0.5})
        np.testing.assert_array_equal(model(ids).logits, plain)
        assert not np.allclose(model(ids, rng=np.random.default_rng(0)).logits, plain), name
    # Without rates of their own, the activation and the classifier use the hidden rate.
    for name in ("act_dropout", "classifier_dropout"):
        fallback = random_model(cls, **{**P, "hidden_dropout_prob": 0.5, name: None})
        explicit = random_model(cls, **{**P, "hidden_dropout_prob": 0.5, name: 0.5})
        a, b = (model(ids, rng=np.random.default_rng(0)).logits for model in (fallback, explicit))
        np.testing.assert_array_equal(a, b)


def test_model_dropout_preserves_the_mean() -> None:
    """Without layers, the output is the embeddings after dropout: 4,000 draws, 6 standard errors."""
    model = random_model(num_hidden_layers=0, hidden_dropout_prob=0.25)
    ids, rng = np.array([[0, 5]]), np.random.default_rng(0)
    plain = model(ids).last_hidden_state
    draws = np.stack([model(ids, rng=rng).last_hidden_state for _ in range(4000)])
    error = np.abs(draws.mean(axis=0) - plain)
    assert (error <= 6 * np.abs(plain) * np.sqrt(0.25 / 0.75 / 4000) + 1e-12).all()


@pytest.mark.parametrize("attentions", [False, True])
def test_a_call_draws_its_seeds_and_nothing_else(attentions: bool) -> None:
    """The generator moves on by 4 L + 2 numbers, however much padding there is and whatever the rates are."""
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    for rates in ({}, P):
        model = random_model(ernie.ErnieMForSequenceClassification, **rates)
        rng, other = np.random.default_rng(0), np.random.default_rng(0)
        model(ids_like(mask), attention_mask=mask, rng=rng, output_attentions=attentions)
        assert draw_seeds(other, 2).shape == (10,)
        assert rng.bit_generator.state == other.bit_generator.state


@pytest.mark.parametrize(("name", "p", "seed"), [("p", -0.1, 0), ("p", 1.5, 0), ("p", np.nan, None), ("seed", 0.5, -1)])
def test_what_is_no_rate_or_seed_gets_one_clear_error(name: str, p: float, seed: Any) -> None:
    """Seen red: 1.5 dropped everything, and a seed of 65 bits drew from other bits than a generator's."""
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        dropout(np.ones((2, 3)), p, seed)
    with pytest.raises(ValueError, match=r"^seed: expected an integer from 0 to 2\*\*64 - 1, got"):
        dropout(np.ones((2, 3)), 0.5, 2**64)


@pytest.mark.parametrize("seed", [np.random.default_rng(0), 1.5, "x"])
def test_what_is_no_integer_is_no_seed(seed: Any) -> None:
    """A generator is what release 0.1 took here. Seen red: it ended in Python's own error about `<=`."""
    with pytest.raises(TypeError, match=r"^seed: expected an integer from 0 to 2\*\*64 - 1, got "):
        dropout(np.ones((2, 3)), 0.5, seed)


@pytest.mark.parametrize("rng", [0, 5, np.random.RandomState(0), np.random])
def test_what_is_no_generator_gets_one_clear_error(rng: Any) -> None:
    """A seed, too: every call would drop the same."""
    with pytest.raises(TypeError, match=r"^rng: expected a numpy.random.Generator, such as .*, got "):
        random_model(ernie.ErnieMModel)([[0, 2]], rng=rng)


def test_every_place_has_its_own_seed() -> None:
    """Two places with the same seed would drop the same columns of every token. Seen red with one seed for a layer."""
    seen: list[Any] = []
    original = page.random_bits

    def watched(seed: Any, *arguments: Any) -> np.ndarray:
        seen.append(int(seed))
        return original(seed, *arguments)

    model = random_model(
        ernie.ErnieMForTokenClassification,
        hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.4,
        act_dropout=0.2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "random_bits", watched)
        patch.setattr("ernie_m.reference.layouts.random_bits", watched)
        model(np.array([[0, 5, 9, 2]]), rng=np.random.default_rng(3))
    assert seen == draw_seeds(np.random.default_rng(3), 2).tolist()


@given(st.floats(0.0, 1.0))
def test_dropped_compares_with_p_as_a_share_of_all_words(p: float) -> None:
    bits = np.array([0, round(p * 2**32) - 1, round(p * 2**32), 2**32 - 1]).clip(0, 2**32 - 1).astype(np.uint32)
    np.testing.assert_array_equal(dropped(bits, p), bits.astype(np.int64) < round(p * 2**32))

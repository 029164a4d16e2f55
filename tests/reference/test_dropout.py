from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import ids_like, masks, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND, U64

import ernie_m.reference as ernie
from ernie_m.reference import dropout

P = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "act_dropout": 0.0, "classifier_dropout": 0.0}


def test_dropout_without_a_generator_or_rate_returns_its_input() -> None:
    x = np.ones(5)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, np.random.default_rng(0)) is x


def test_dropout_drops_a_fraction_p_and_scales_the_rest() -> None:
    """100,000 draws: the fraction is within 5 standard deviations of p."""
    found = dropout(np.ones(100_000), 0.3, np.random.default_rng(0))
    assert abs((found == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 100_000)
    np.testing.assert_allclose(found[found != 0], 1 / 0.7, rtol=4 * U64)  # at most two roundings on each side


@given(masks())
def test_dropout_draws_only_for_real_tokens(mask: np.ndarray) -> None:
    """The padded rectangle drops the same elements of the same tokens as the packed array."""
    x = np.random.default_rng(1).standard_normal((*mask.shape, 3))
    valid = mask.astype(bool)
    padded = dropout(x, 0.5, np.random.default_rng(0), valid)
    np.testing.assert_array_equal(padded[valid], dropout(x[valid], 0.5, np.random.default_rng(0)))
    assert padded[~valid].all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.sampled_from([1, 2, 63, 129]))
def test_dropout_drops_the_same_places_in_every_dtype(seed: int, p: float, n: int) -> None:
    """Seen red with random numbers drawn in the array's dtype. The state afterwards is the same too."""
    generators = [np.random.default_rng(seed) for _ in range(3)]
    outs = [dropout(np.ones((n, 3), t), p, rng) for t, rng in zip("dfe", generators, strict=True)]
    for out, rng in zip(outs[1:], generators[1:], strict=True):
        np.testing.assert_array_equal(out == 0, outs[0] == 0)
        assert rng.bit_generator.state == generators[0].bit_generator.state


@settings(max_examples=30)
@given(masks(), st.sampled_from([0, 1, 4]))
def test_model_dropout_does_not_depend_on_padding_or_path(mask: np.ndarray, more: int) -> None:
    """Packed or padded, with more or less padding: the same seed drops the same elements."""
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


class Counting(np.random.Generator):
    """A generator that counts the random numbers drawn."""

    drawn = 0

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        self.drawn += int(np.prod(size))
        return super().random(size, dtype, out)


@pytest.mark.parametrize("attentions", [False, True])
def test_model_dropout_draws_one_random_number_per_element(attentions: bool) -> None:
    """Hidden: the embeddings, and twice in each layer. Attention: every pair of tokens. Padding: nothing."""
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    T, L, H, E, F, B = 6, 2, 3, 24, 40, 2
    expected = {
        "hidden_dropout_prob": (1 + 2 * L) * T * E,
        "attention_probs_dropout_prob": L * H * (4 * 4 + 2 * 2),
        "act_dropout": L * T * F,
        "classifier_dropout": B * E,
    }
    for name, count in expected.items():
        model = random_model(ernie.ErnieMForSequenceClassification, **{**P, name: 0.5})
        rng = Counting(np.random.PCG64(0))
        model(ids_like(mask), attention_mask=mask, rng=rng, output_attentions=attentions)
        assert rng.drawn == count, name

"""The head that predicts words: its logits, its loss, the tied table, and its files.

Seen red: labels at padding counted; weights ignored; a bias that does not follow the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ids_like, masks, random_model
from hypothesis import assume, given
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference.parameters import flatten

MODEL = random_model(ernie.ErnieMForMaskedLM)
IDS = np.array([[0, 7, 9, 2], [0, 8, 2, 1]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])


def test_logits_are_those_of_the_formula() -> None:
    """dense, gelu, LayerNorm, and the table transposed."""
    hidden = ernie.ErnieMModel(MODEL.config, bare(MODEL))(IDS, MASK).last_hidden_state
    p = MODEL.parameters.prediction
    active = ernie.gelu(hidden @ p.dense.weight.T + p.dense.bias)
    centred = active - active.mean(-1, keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + MODEL.config.layer_norm_eps)
    expected = (normed * p.layer_norm.weight + p.layer_norm.bias) @ MODEL.parameters.word_embeddings.T + p.bias
    np.testing.assert_allclose(MODEL(IDS, MASK).logits, expected, rtol=0, atol=1e-12)


def bare(model: Any) -> Any:
    """The parameters of the encoder, with a pooler that nothing here reads."""
    from ernie_m.reference.parameters import unflatten

    E = model.config.hidden_size
    kept = {path: x for path, x in flatten(model.parameters).items() if not path.startswith("prediction")}
    return unflatten(kept | {"pooler.weight": np.zeros((E, E)), "pooler.bias": np.zeros(E)})


@given(masks(), st.integers(0, 2**32 - 1), st.booleans())
def test_the_loss_is_that_of_the_labelled_tokens(mask: np.ndarray, seed: int, weighted: bool) -> None:
    """From the logits of a call without labels; labels at padding do not count."""
    rng = np.random.default_rng(seed)
    ids = ids_like(mask, seed)
    labels = np.where(rng.random(mask.shape) < 0.5, rng.integers(0, 50, mask.shape), -100)
    weights = rng.random(mask.shape) if weighted else None
    counted = (labels != -100) & (mask == 1)
    assume(counted.any())
    logits = MODEL(ids, mask).logits[counted]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), labels[counted]]
    output = MODEL(ids, mask, labels=labels, label_weights=weights)
    assert output.logits is None
    np.testing.assert_allclose(
        output.loss, np.average(losses, weights=None if weights is None else weights[counted]), rtol=1e-12
    )


def test_a_trace_has_logits_and_gradients_in_the_places_of_the_labels() -> None:
    """And 0 elsewhere. Seen red: the rows that are predicted as if they were the batch."""
    labels = np.array([[-100, 7, -100, 2], [0, -100, -100, 5]])
    counted = (labels != -100) & (MASK == 1)
    with ernie.trace() as t:
        ernie.value_and_gradients(MODEL, IDS, MASK, labels=labels)
    logits = np.where(counted[..., None], MODEL(IDS, MASK).logits, 0)
    np.testing.assert_allclose(t["prediction.decoder"].padded(), logits, rtol=0, atol=1e-12)
    assert (t["grad:prediction.decoder"].padded().any(axis=-1) == counted).all()


@pytest.mark.parametrize("weights", [None, np.zeros((2, 4))])
def test_without_anything_to_predict_the_loss_is_nan_and_the_gradient_0(weights: Any) -> None:
    labels = np.full((2, 4), -100) if weights is None else np.full((2, 4), 7)
    output, gradients = ernie.value_and_gradients(MODEL, IDS, MASK, labels=labels, label_weights=weights)
    assert np.isnan(output.loss)
    assert not any(x.any() for x in flatten(gradients).values())


def test_equal_weights_change_nothing_in_float16() -> None:
    """Seen red with weights rounded to float16, which ends at 65,504: the loss was nan."""
    model, labels = MODEL.astype(np.float16), np.where(MASK == 1, IDS, -100)
    alone, slopes = ernie.value_and_gradients(model, IDS, MASK, labels=labels)
    weights = np.full(MASK.shape, 2.0**17)
    output, gradients = ernie.value_and_gradients(model, IDS, MASK, labels=labels, label_weights=weights)
    np.testing.assert_array_equal(output.loss, alone.loss)
    for path, slope in flatten(slopes).items():
        np.testing.assert_allclose(flatten(gradients)[path], slope, rtol=0, atol=2.0**-9 * np.abs(slope).max())


def test_the_table_is_tied(tmp_path: Path) -> None:
    """One array in memory and in the file; the encoder alone can be read from it, and the head is new in others."""
    names = MODEL.state_dict()
    assert not [name for name in names if "decoder" in name]
    MODEL.save_pretrained(tmp_path)
    again = ernie.ErnieMForMaskedLM.from_pretrained(tmp_path, dtype=np.float64)
    for name, x in again.state_dict().items():
        np.testing.assert_array_equal(x, names[name])
    assert again(IDS, MASK).logits.shape == (2, 4, 50)
    classifier, report = ernie.ErnieMForTokenClassification.from_pretrained(tmp_path, strict=False)
    assert not report.unexpected and classifier.config.vocab_size == 50


def test_the_bias_follows_the_vocabulary() -> None:
    for size in (60, 30):
        resized = MODEL.resize_token_embeddings(size)
        p = resized.parameters
        assert p.prediction.bias.shape == (size,) and not p.prediction.bias[50:].any()
        ids = np.minimum(IDS, size - 1)
        np.testing.assert_array_equal(resized(ids).logits[..., :30], MODEL(ids).logits[..., :30])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"labels": np.full((2, 3), 7)}, r"labels: expected shape \(2, 4\), got \(2, 3\)"),
        ({"labels": np.full((2, 4), 50)}, r"labels: expected classes in \[0, 50\), or -100 to ignore, got 50"),
        ({"labels": np.full((2, 4), 0.5)}, "labels: expected integers, got float64"),
        ({"label_weights": np.ones((2, 4))}, r"label_weights: expected together with labels, got \(2, 4\) alone"),
        ({"labels": IDS, "label_weights": -np.ones((2, 4))}, "label_weights: expected numbers of at least 0, got -1.0"),
        ({"labels": IDS, "label_weights": np.full((2, 4), np.nan)}, "label_weights: expected finite numbers, got nan"),
        ({"labels": IDS, "label_weights": np.ones(4)}, r"label_weights: expected shape \(2, 4\), got \(4,\)"),
    ],
)
def test_bad_targets_get_one_clear_error(call: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        MODEL(IDS, MASK, **call)

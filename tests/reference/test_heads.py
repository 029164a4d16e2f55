from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, ids_like, masks, random_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND

import ernie_m.reference as ernie
from ernie_m.reference.dropout import draw_seeds, dropout
from ernie_m.reference.heads import padded_logit
from ernie_m.reference.linear import linear
from ernie_m.reference.model import pool
from ernie_m.reference.parameters import flatten

SEQUENCE = random_model(ernie.ErnieMForSequenceClassification, num_labels=3)
CHOICE = random_model(ernie.ErnieMForMultipleChoice)
TOKEN = random_model(ernie.ErnieMForTokenClassification, num_labels=3)
ANSWER = random_model(ernie.ErnieMForQuestionAnswering)
EXTRACTION = random_model(ernie.ErnieMForInformationExtraction)
LOWEST = padded_logit(np.float64)


def widen(array: np.ndarray, more: int, value: Any = 0) -> np.ndarray:
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, more)], constant_values=value)


@settings(max_examples=25)
@given(masks(), st.integers(0, 2**32 - 1), st.booleans())
def test_heads_do_not_depend_on_the_amount_of_padding(mask: np.ndarray, seed: int, attentions: bool) -> None:
    """Logits and losses of all heads, with five more columns of padding. Seen red with the peers' loss rules."""
    rng = np.random.default_rng(seed)
    B, S = mask.shape
    ids = ids_like(mask, seed)
    options = {"output_attentions": attentions}
    spans = {"start_positions": rng.integers(-2, S + 2, B), "end_positions": rng.integers(0, S, B)}
    flags = {"start_positions": rng.integers(0, 2, (B, S)), "end_positions": rng.random((B, S))}
    wide_flags = {key: widen(value, 5, 1) for key, value in flags.items()}
    tokens = rng.integers(0, 3, (B, S))
    classes = rng.integers(0, 3, B)
    # A target past the end of the narrow row is on padding in the wide one, so it is ignored in both.
    calls = [
        (SEQUENCE, {"labels": classes}, {"labels": classes}),
        (TOKEN, {"labels": tokens}, {"labels": widen(tokens, 5, 2)}),
        (ANSWER, spans, spans),
        (EXTRACTION, flags, wide_flags),
    ]
    for model, targets, wide_targets in calls:
        a = model(ids, attention_mask=mask, **targets, **options)
        b = model(widen(ids, 5), attention_mask=widen(mask, 5), **wide_targets, **options)
        np.testing.assert_allclose(a.loss, b.loss, rtol=0, atol=MODEL_BOUND)
        for name in ("logits", "start_logits", "end_logits", "start_prob", "end_prob"):
            x, y = getattr(a, name, None), getattr(b, name, None)
            if x is not None and x.shape == y.shape:
                np.testing.assert_allclose(x, y, rtol=0, atol=MODEL_BOUND)
            elif x is not None:
                np.testing.assert_allclose(x, y[:, :S], rtol=0, atol=MODEL_BOUND)
    a = CHOICE(ids[None], attention_mask=mask[None], labels=[0], **options)
    b = CHOICE(widen(ids, 5)[None], attention_mask=widen(mask, 5)[None], labels=[0], **options)
    np.testing.assert_allclose(a.logits, b.logits, rtol=0, atol=MODEL_BOUND)
    np.testing.assert_allclose(a.loss, b.loss, rtol=0, atol=MODEL_BOUND)


@settings(max_examples=25)
@given(masks())
def test_heads_logits_at_padded_positions(mask: np.ndarray) -> None:
    ids, padded = ids_like(mask), mask == 0
    logits = TOKEN(ids, attention_mask=mask).logits
    bias = TOKEN.parameters.head["classifier"].bias
    np.testing.assert_array_equal(logits[padded], np.broadcast_to(bias, logits[padded].shape))
    for model in (ANSWER, EXTRACTION):
        out = model(ids, attention_mask=mask)
        for span in (out.start_logits, out.end_logits):
            assert (span[padded] == LOWEST).all() and np.isfinite(span[padded] + span[padded]).all()
            rows = mask.any(axis=1)
            assert not padded[rows, span[rows].argmax(axis=1)].any()
    assert not out.start_prob[padded].any() and not out.end_prob[padded].any()


@settings(max_examples=25)
@given(masks(), st.integers(0, 2**32 - 1))
def test_losses_are_means_over_valid_positions(mask: np.ndarray, seed: int) -> None:
    """Recomputes each loss from the logits at valid positions only."""
    assume(mask.any())
    rng = np.random.default_rng(seed)
    B, S = mask.shape
    ids, valid = ids_like(mask), mask.astype(bool)
    labels = rng.integers(0, 3, (B, S))
    out = TOKEN(ids, attention_mask=mask, labels=labels)
    chosen = out.logits[valid]
    expected = np.log(np.exp(chosen).sum(axis=1)) - chosen[np.arange(len(chosen)), labels[valid]]
    np.testing.assert_allclose(out.loss, expected.mean(), rtol=0, atol=MODEL_BOUND)

    flags = rng.random((2, B, S))
    out = EXTRACTION(ids, attention_mask=mask, start_positions=flags[0], end_positions=flags[1])
    terms = []
    for probs, targets in ((out.start_prob, flags[0]), (out.end_prob, flags[1])):
        p, t = probs[valid], targets[valid]
        terms.append(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())
    np.testing.assert_allclose(out.loss, np.mean(terms), rtol=0, atol=MODEL_BOUND)

    rows = np.flatnonzero(mask.any(axis=1))
    targets = np.array([rng.choice(np.flatnonzero(row)) if row.any() else 0 for row in mask])
    out = ANSWER(ids, attention_mask=mask, start_positions=targets, end_positions=targets)
    terms = []
    for logits in (out.start_logits, out.end_logits):
        each = [np.log(np.exp(logits[b, valid[b]]).sum()) - logits[b, targets[b]] for b in rows]
        terms.append(np.mean(each))
    np.testing.assert_allclose(out.loss, np.mean(terms), rtol=0, atol=MODEL_BOUND)


@settings(max_examples=25)
@given(masks(), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_dropout_of_heads_leaves_padding_out(mask: np.ndarray, more: int, seed: int) -> None:
    """With the same generator, more padding gives the same logits, and padding the bias. Seen red without `valid`."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "act_dropout": 0.0}
    ids = ids_like(mask)
    for cls, per_token in ((ernie.ErnieMForTokenClassification, True), (ernie.ErnieMForSequenceClassification, False)):
        model = random_model(cls, num_labels=3, classifier_dropout=0.5, **rates)
        narrow = model(ids, attention_mask=mask, rng=np.random.default_rng(seed))
        wide = model(widen(ids, more), attention_mask=widen(mask, more), rng=np.random.default_rng(seed))
        kept = wide.logits[:, : mask.shape[1]] if per_token else wide.logits
        np.testing.assert_allclose(kept, narrow.logits, rtol=0, atol=MODEL_BOUND)
        if per_token:
            padding = wide.logits[widen(mask, more) == 0]
            np.testing.assert_array_equal(
                padding, np.broadcast_to(model.parameters.head["classifier"].bias, padding.shape)
            )


def test_dropout_of_heads_counts_real_tokens_from_0() -> None:
    """With the last of a call's seeds; a text's vector has the number of its first token. Seen red: the same entries of
    every vector dropped."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "act_dropout": 0.0}
    mask = np.array([[0, 1, 1], [0, 0, 0], [0, 1, 1]])
    for cls in (ernie.ErnieMForTokenClassification, ernie.ErnieMForSequenceClassification):
        model = random_model(cls, num_labels=3, classifier_dropout=0.5, **rates)
        encoded = model.encode((np.full((3, 3), 5), mask), {})
        seed = draw_seeds(np.random.default_rng(0), model.config.num_hidden_layers)[-1]
        logits = model(np.full((3, 3), 5), mask, rng=np.random.default_rng(0)).logits
        if cls is ernie.ErnieMForTokenClassification:
            found, x, index = logits[mask == 1], encoded.hidden[mask == 1], np.arange(4)
        else:
            found, x, index = logits[[0, 2]], pool(encoded, model.parameters.pooler)[[0, 2]], np.array([0, 2])
        expected = linear(dropout(x, 0.5, seed, index), model.parameters.head["classifier"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=MODEL_BOUND)


def test_which_models_have_a_pooler() -> None:
    """As in transformers, where information extraction does not use its own."""
    found = {cls for cls in CLASSES if any("pooler" in path for path in flatten(random_model(cls).parameters))}
    assert found == {
        ernie.ErnieMModel,
        ernie.ErnieMForSequenceClassification,
        ernie.ErnieMForMultipleChoice,
        ernie.ErnieMForInformationExtraction,
    }


def test_losses_are_nan_if_no_target_counts() -> None:
    ids, nothing = np.full((2, 3), 5), np.zeros((2, 3), int)
    assert np.isnan(TOKEN(ids, labels=np.full((2, 3), -100)).loss)
    assert np.isnan(TOKEN(ids, attention_mask=nothing, labels=np.zeros((2, 3), int)).loss)
    assert np.isnan(ANSWER(ids, start_positions=[3, 4], end_positions=[3, 9]).loss)
    assert np.isnan(ANSWER(ids, attention_mask=nothing, start_positions=[0, 0], end_positions=[0, 0]).loss)
    assert np.isnan(EXTRACTION(ids, attention_mask=nothing, start_positions=nothing, end_positions=nothing).loss)
    assert np.isnan(SEQUENCE(ids, attention_mask=nothing, labels=[0, 0]).loss)
    assert np.isnan(SEQUENCE(ids, labels=[-100, -100]).loss)
    assert np.isnan(CHOICE(ids[None], attention_mask=nothing[None], labels=[0]).loss)


def test_sequence_classification_ignores_rows_without_tokens() -> None:
    ids, mask = np.full((2, 3), 5), np.array([[1, 1, 1], [0, 0, 0]])
    for fields, labels in (
        ({"num_labels": 3}, np.array([1, 2])),
        ({"num_labels": 1}, np.array([0.5, 9.0])),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, np.array([[1, 0, 1], [0, 0, 1]])),
    ):
        model = random_model(ernie.ErnieMForSequenceClassification, **fields)
        both, one = model(ids, attention_mask=mask, labels=labels), model(ids[:1], labels=labels[:1])
        np.testing.assert_allclose(both.loss, one.loss, rtol=0, atol=MODEL_BOUND)
        head = model.parameters.head["classifier"]
        pooled = np.tanh(model.parameters.pooler.bias)
        np.testing.assert_allclose(both.logits[1], head.weight @ pooled + head.bias, rtol=0, atol=MODEL_BOUND)


def test_multiple_choice_never_picks_a_choice_without_tokens() -> None:
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(2, 50, (2, 3, 4)), np.ones((2, 3, 4), int)
    mask[0, 1] = 0
    out = CHOICE(ids, attention_mask=mask, labels=[2, 0])
    assert out.logits[0].argmin() == 1 and out.logits[0, 1] == LOWEST
    two = CHOICE(ids[:1, [0, 2]], labels=[1])
    np.testing.assert_allclose(out.logits[0, [0, 2]], two.logits[0], rtol=0, atol=MODEL_BOUND)
    one = CHOICE(ids[1:], labels=[0])
    np.testing.assert_allclose(out.loss, (two.loss + one.loss) / 2, rtol=0, atol=MODEL_BOUND)
    # An example whose label is the choice without tokens is ignored.
    np.testing.assert_allclose(CHOICE(ids, attention_mask=mask, labels=[1, 0]).loss, one.loss, rtol=0, atol=MODEL_BOUND)


def test_multiple_choice_accepts_structured_masks_vectors_and_positions() -> None:
    rng = np.random.default_rng(0)
    ids, positions = rng.integers(2, 50, (2, 3, 4)), rng.integers(0, 9, (2, 3, 4))
    plain = CHOICE(ids, position_ids=positions)
    square = CHOICE(ids, attention_mask=np.ones((2, 3, 4, 4), bool), position_ids=positions)
    vectors = CHOICE(inputs_embeds=CHOICE.parameters.word_embeddings[ids], position_ids=positions)
    np.testing.assert_allclose(square.logits, plain.logits, rtol=0, atol=MODEL_BOUND)
    np.testing.assert_allclose(vectors.logits, plain.logits, rtol=0, atol=MODEL_BOUND)


def test_question_answering_requires_two_labels() -> None:
    with pytest.raises(ValueError, match=r"num_labels: expected 2 for question answering .*, got 3"):
        random_model(ernie.ErnieMForQuestionAnswering, num_labels=3)


IDS = np.full((2, 3), 5)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (SEQUENCE, {"labels": [0, 3]}, r"labels: expected classes in \[0, 3\), or -100 to ignore, got 3"),
        (SEQUENCE, {"labels": [0, -1]}, r"labels: expected classes .* got -1"),
        (SEQUENCE, {"labels": [0, 1, 2]}, r"labels: expected shape \(2,\), got \(3,\)"),
        (SEQUENCE, {"labels": [0.5, 1.0]}, r"labels: expected shape \(2, 3\), got \(2,\)"),
        (SEQUENCE, {"labels": np.full((2, 3), 1.5)}, "labels: expected numbers from 0 to 1, got 1.5"),
        (SEQUENCE, {"labels": ["a", "b"]}, "labels: expected"),
        (CHOICE, {"labels": [2]}, r"labels: expected classes in \[0, 2\), or -100 to ignore, got 2"),
        (TOKEN, {"labels": [0, 1]}, r"labels: expected shape \(2, 3\), got \(2,\)"),
        (TOKEN, {"labels": np.zeros((2, 3))}, "labels: expected integers, got float64"),
        (ANSWER, {"start_positions": [0, 1]}, "end_positions: expected together with start_positions, got None"),
        (ANSWER, {"end_positions": [0, 1]}, "start_positions: expected together with end_positions, got None"),
        (ANSWER, {"start_positions": [0], "end_positions": [0, 1]}, r"start_positions: expected shape \(2,\), got"),
        (ANSWER, {"start_positions": [0, 1], "end_positions": [0, 1.0]}, "end_positions: expected integers, got float"),
        (EXTRACTION, {"start_positions": IDS, "end_positions": IDS}, "start_positions: expected numbers from 0 to 1"),
        (EXTRACTION, {"start_positions": [0, 1], "end_positions": IDS}, r"start_positions: expected shape \(2, 3\)"),
        (EXTRACTION, {"start_positions": IDS * np.nan, "end_positions": IDS}, "start_positions: expected finite"),
    ],
)
def test_heads_reject_bad_targets(model: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        model(IDS[None] if model is CHOICE else IDS, **given)


def test_heads_reject_bad_options() -> None:
    with pytest.raises(TypeError, match="attention_masks"):
        SEQUENCE(IDS, attention_masks=IDS)
    with pytest.raises(ValueError, match=r"input_ids: expected shape \(B, C, S\)"):
        CHOICE(IDS)
    with pytest.raises(ValueError, match="got neither"):
        CHOICE()
    with pytest.raises(
        ValueError, match=r"attention_mask: expected shape \(B, C, ...\) = \(2, 3, ...\), got \(2, 4, 5\)"
    ):
        CHOICE(np.full((2, 3, 5), 5), attention_mask=np.ones((2, 4, 5)))


@pytest.mark.parametrize("cls", CLASSES)
def test_a_model_that_learnt_without_cls_warns_once_of_a_mask_that_shows_it(cls: Any) -> None:
    """Every class: the mask is the encoder's. The result is what the mask asks for, as from a model without it."""
    ids, shown = np.array([[0, 5, 2, 1], [0, 5, 6, 2]]), np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    if cls is ernie.ErnieMForMultipleChoice:
        ids, shown = ids[None], shown[None]
    hidden = shown * (ids != 0)
    model, plain = random_model(cls, default_mask="cls_token"), random_model(cls)
    right: tuple[Any, ...] = (None, hidden)
    if ids.ndim == 2:
        right = (*right, np.broadcast_to(shown[:, None] == 1, (2, 4, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mask in right:
            model(ids, attention_mask=mask)
        plain(ids, attention_mask=shown)
        if ids.ndim == 2:
            model(inputs_embeds=np.zeros((2, 4, 24)), attention_mask=shown)
    with pytest.warns(UserWarning, match=r"^attention_mask: .*\(input_ids != 0\)$") as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            found = model(ids, attention_mask=shown)
    assert len(caught) == 1
    np.testing.assert_array_equal(found[0], plain(ids, attention_mask=shown)[0])

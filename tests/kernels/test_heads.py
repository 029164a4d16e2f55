"""The torch heads against the reference: logits, losses, padding rules, and what the last layer computes."""

from __future__ import annotations

import warnings
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import ids_like, masks
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND, U32
from torch_models import BY_NAME, CLASSES, WAYS, assert_same, pair, tensors, three_errors, way

from ernie_m.reference import trace

HEADS = tuple(cls.__name__ for cls in CLASSES[1:])
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification", None)
# One pair of models for each head, and one for each loss of sequence classification.
PAIRS = {
    (name, problem): pair(BY_NAME[name], **({"num_labels": 3} if "Sequence" in name or "Token" in name else {}), **more)
    for name in HEADS
    for problem, more in [(p, {"problem_type": p}) for p in PROBLEMS]
    if problem is None or "Sequence" in name
}


def targets(name: str, problem: str | None, mask: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Targets of every kind: some ignored, some past the row, some at padding."""
    B, S = mask.shape
    if "Sequence" in name:
        if problem in ("regression", "multi_label_classification"):
            return {"labels": rng.random((B, 3))}
        return {"labels": np.where(rng.random(B) < 0.2, -100, rng.integers(0, 3, B))}
    if "Choice" in name:
        return {"labels": rng.integers(0, B, 1)}
    if "Token" in name:
        return {"labels": np.where(rng.random((B, S)) < 0.2, -100, rng.integers(0, 3, (B, S)))}
    if "Masked" in name:
        return {"labels": np.where(rng.random((B, S)) < 0.5, -100, rng.integers(0, 50, (B, S)))}
    if "Question" in name:
        return {"start_positions": rng.integers(-2, S + 2, B), "end_positions": rng.integers(0, S, (B, 1))}
    return {"start_positions": rng.integers(0, 2, (B, S)), "end_positions": rng.random((B, S))}


@settings(max_examples=150)
@given(st.data())
def test_heads_float64_equal_the_reference(data: st.DataObject) -> None:
    """Logits and losses (nan if no target counts), with and without options that rule out the fast path."""
    name, problem = data.draw(st.sampled_from(sorted(PAIRS, key=str)))
    twin, model = PAIRS[name, problem]
    mask = data.draw(masks())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch = {"input_ids": ids_like(mask), "attention_mask": mask, **targets(name, problem, mask, rng)}
    if data.draw(st.booleans()):
        batch["head_mask"] = rng.random((2, 1))
    if "Choice" in name:
        batch |= {key: batch[key][None] for key in ("input_ids", "attention_mask")}
    asked = {key: data.draw(st.booleans()) for key in ("output_hidden_states", "output_attentions")}
    with way(data.draw(st.sampled_from(["without kernels", "gradients"]))):
        ours = model(**tensors(batch), **asked)
    assert_same(ours, twin(**batch, **asked))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", HEADS)
def test_heads_float32_errors_are_close_to_the_references(name: str, how: str) -> None:
    """The largest error is at most twice the reference's + 16 u of the largest number. Padded logits are equal."""
    mask = np.array([[1, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    batch = {"input_ids": ids_like(mask), "attention_mask": mask, **targets(name, None, mask, np.random.default_rng(0))}
    if "Choice" in name:
        batch |= {"input_ids": batch["input_ids"][None], "attention_mask": mask[None], "labels": np.array([1])}
    more = {"num_labels": 3} if "Sequence" in name or "Token" in name else {}
    for field, (ours, theirs, truth) in three_errors(BY_NAME[name], batch, 3, how, **more).items():
        lowest = np.abs(truth) > 1e30
        assert lowest.any() == (field in ("start_logits", "end_logits") or ("Choice" in name and field == "logits"))
        ours, theirs, truth = (np.where(np.abs(x) > 1e30, 0, x) for x in (ours, theirs, truth))
        assert ours.max() <= 2 * theirs.max() + 16 * U32 * np.abs(truth).max(), field


@pytest.mark.parametrize("how", ["without kernels", "gradients"])
@pytest.mark.parametrize("labels", [[0, 1], [0, 0], [1, 1], [1, 0], [-100, 1]])
def test_multiple_choice_ignores_choices_without_tokens(labels: list[int], how: str) -> None:
    """Choice 1 of row 0 and choice 0 of row 1 are empty: they have the lowest logits and do not count as targets."""
    twin, model = PAIRS["ErnieMForMultipleChoice", None]
    mask = np.ones((2, 3, 4), np.int64)
    mask[0, 1] = mask[1, 0] = 0
    batch = {"input_ids": ids_like(mask), "attention_mask": mask, "labels": np.array(labels)}
    with way(how):
        out = model(**tensors(batch))
    assert_same(out, twin(**batch))
    lowest = torch.finfo(torch.float64).min / 4
    assert out.logits[0, 1].item() == out.logits[1, 0].item() == lowest
    # If both targets are empty choices, nothing counts.
    assert bool(out.loss.isnan()) == (labels == [1, 0])


@pytest.mark.parametrize("name", ["ErnieMForSequenceClassification", "ErnieMForMultipleChoice"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_heads_that_read_the_first_token_compute_only_that_in_the_last_layer(name: str, dtype: Any) -> None:
    """In the last layer, keys and values have a row per token, everything else a row per text. If hidden states are
    requested, the whole layer is computed, with the same result. float32 runs the kernels."""
    mask = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    batch = {"input_ids": ids_like(mask), "attention_mask": mask}
    batch = {key: x[None] for key, x in batch.items()} if "Choice" in name else batch
    batch["head_mask"] = np.array([[0.5], [0.25]])
    model = pair(BY_NAME[name], dtype=dtype)[1]
    with way("kernels"), trace() as lean:
        logits = model(**tensors(batch)).logits
    with way("kernels"), trace() as whole:
        same = model(**tensors(batch), output_hidden_states=True).logits
    if dtype == np.float64:
        np.testing.assert_allclose(logits, same, rtol=0, atol=MODEL_BOUND)
    layer = "ernie_m.encoder.layers.1."
    rows = {entry.removeprefix(layer): lean[entry].value.shape[0] for entry in lean if entry.startswith(layer)}
    attention = "self_attn.self_attn."
    expected = {f"{attention}{part}_proj": 5 for part in "kv"}
    expected |= dict.fromkeys((f"{attention}q_proj", f"{attention}context", "norm1", "activation", "norm2"), 2)
    if dtype == np.float64:
        expected |= dict.fromkeys(("self_attn.out_proj", "linear1", "linear2"), 2)
    assert rows == expected
    products = []
    linear = torch.nn.functional.linear
    with (
        way("kernels"),
        mock.patch("torch.nn.functional.linear", lambda *x: products.append(linear(*x)) or products[-1]),
    ):
        model(**tensors(batch))
    # Layer 0: 5 tokens. Layer 1: keys and values of 5 rows, the rest of 3. Then pooler and classifier. On a CPU,
    # queries, keys and values are products of their own.
    shapes = [tuple(x.reshape(-1, x.shape[-1]).shape) for x in products]
    outputs = 1 if "Choice" in name else 2
    first, last = [*3 * [(5, 16)], (5, 16), (5, 24), (5, 16)], [*2 * [(5, 16)], *2 * [(3, 16)], (3, 24), (3, 16)]
    assert shapes == [*first, *last, (3, 16), (3, outputs)]
    assert whole[f"{layer}norm2"].value.shape[0] == 5
    assert lean["ernie_m.encoder.layers.0.norm2"].value.shape[0] == 5


@pytest.mark.parametrize("name", HEADS)
def test_heads_call_a_model_that_was_hooked(name: str) -> None:
    """As a module, so that hooks run; the result is the same, of ids and of vectors, with a mask and without one."""
    model, shape = PAIRS[name, None][1], (1, 2, 7) if "Choice" in name else (2, 7)
    ids, padded = torch.full(shape, 5), torch.ones(shape, dtype=torch.int64)
    padded[..., -2:] = 0
    vectors = {"inputs_embeds": model.ernie_m.embeddings.word_embeddings(ids).detach()}
    wanted = tensors(targets(name, None, np.ones((2, 7), int), np.random.default_rng(0)))
    for batch in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": padded}, vectors):
        plain, calls = model(**batch, **wanted), []
        handle = model.ernie_m.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        try:
            hooked = model(**batch, **wanted)
        finally:
            handle.remove()
        assert len(calls) == 1 and list(hooked) == list(plain) and "loss" in plain
        for key, x in plain.items():
            torch.testing.assert_close(hooked[key], x, rtol=0, atol=MODEL_BOUND, equal_nan=True)


def message(call: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    return str(caught.value)


IDS, CHOICES = np.full((2, 7), 5), np.full((2, 3, 7), 5)
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
WRONG: list[tuple[str, str | None, dict[str, Any]]] = [
    ("ErnieMForSequenceClassification", SINGLE, {"labels": np.array([0, 3])}),
    ("ErnieMForSequenceClassification", SINGLE, {"labels": np.array([0, 1, 2])}),
    ("ErnieMForSequenceClassification", MULTI, {"labels": np.full((2, 3), 1.5)}),
    ("ErnieMForSequenceClassification", "regression", {"labels": np.full((2, 3), np.nan)}),
    ("ErnieMForSequenceClassification", "regression", {"labels": np.zeros(2)}),
    ("ErnieMForTokenClassification", None, {"labels": np.full((2, 7), -1)}),
    ("ErnieMForTokenClassification", None, {"labels": np.zeros((2, 6), int)}),
    ("ErnieMForQuestionAnswering", None, {"start_positions": np.array([0, 1])}),
    ("ErnieMForQuestionAnswering", None, {"start_positions": np.zeros(3, int), "end_positions": np.zeros(2, int)}),
    ("ErnieMForInformationExtraction", None, {"start_positions": np.ones((2, 7)), "end_positions": np.ones((2, 6))}),
    (
        "ErnieMForInformationExtraction",
        None,
        {"start_positions": np.ones((2, 7)), "end_positions": np.full((2, 7), -0.5)},
    ),
    ("ErnieMForMultipleChoice", None, {"input_ids": IDS}),
    ("ErnieMForMultipleChoice", None, {"input_ids": CHOICES, "attention_mask": np.ones((3, 2, 7), int)}),
    ("ErnieMForMultipleChoice", None, {"input_ids": CHOICES, "labels": np.array([0, 3])}),
    ("ErnieMForMultipleChoice", None, {"input_ids": None}),
    ("ErnieMForTokenClassification", None, {"output_attentions": "no"}),
]


@pytest.mark.parametrize(("name", "problem", "given"), WRONG)
def test_heads_error_messages_are_the_references(name: str, problem: str | None, given: dict[str, Any]) -> None:
    twin, model = PAIRS[name, problem]
    batch = {"input_ids": IDS, **given}
    assert message(lambda: model(**tensors(batch))) == message(lambda: twin(**batch))


def test_heads_reject_wrong_types() -> None:
    model = PAIRS["ErnieMForTokenClassification", None][1]
    assert message(lambda: model(torch.tensor(IDS), labels=IDS)) == "labels: expected a torch.Tensor, got ndarray"
    found = message(lambda: model(torch.tensor(IDS), labels=torch.ones(2, 7)))
    assert found == "labels: expected integers, got torch.float32"
    spans, right = PAIRS["ErnieMForInformationExtraction", None][1], torch.ones(2, 7)
    for name, other in (("start_positions", "end_positions"), ("end_positions", "start_positions")):
        found = message(lambda: spans(torch.tensor(IDS), **{name: np.ones((2, 7)), other: right}))  # noqa: B023
        assert found == f"{name}: expected a torch.Tensor, got ndarray"
        found = message(lambda: spans(torch.tensor(IDS), **{name: right.to("meta"), other: right}))  # noqa: B023
        assert found.startswith(f"{name}: expected a tensor on cpu")
    with pytest.raises(TypeError, match="ErnieMForTokenClassification: unexpected argument 'past_key_values'"):
        model(torch.tensor(IDS), past_key_values=None)
    with pytest.raises(ValueError, match="token_type_ids: ERNIE-M has no token types: expected none, or all 0"):
        model(torch.tensor(IDS), token_type_ids=torch.tensor(IDS))


@pytest.mark.parametrize("name", ["ErnieMModel", *HEADS])
def test_a_model_that_learnt_without_cls_warns_once_of_a_mask_that_shows_it(name: str) -> None:
    """Every class, in training too; not while compiling, which stays one graph."""
    model = pair(BY_NAME[name], default_mask="cls_token", num_hidden_layers=1)[1]
    ids, shown = torch.tensor([[0, 5, 2, 1], [0, 5, 6, 2]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    if "Choice" in name:
        ids, shown = ids[None], shown[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("error", message="attention_mask")
        model(ids)
        model(ids, attention_mask=shown * (ids != 0))
        if "Model" in name or "Extraction" in name:
            compiled = torch.compile(model, fullgraph=True, backend="eager")(ids, attention_mask=shown)
            torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [model.train(i == 1)(ids, attention_mask=shown)[0] for i in range(3)]
    assert len([x for x in caught if issubclass(x.category, UserWarning) and "!= 0" in str(x.message)]) == 1
    if "Model" in name or "Extraction" in name:
        torch.testing.assert_close(compiled[0], found[0].detach(), rtol=1e-12, atol=1e-12)

"""The reference's gradients against torch's autograd through transformers 4.40.2, all six classes, losses included.

In float64, with all weights random, every parameter by name. Padding enters transformers' losses for spans, and not
ours; there, ragged batches are compared with transformers run row by row and combined by our rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import SMALL, ids_like, masks, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference import value_and_gradients, value_and_vjp
from ernie_m.reference.checkpoint.names import to_huggingface
from ernie_m.reference.parameters import flatten

torch = pytest.importorskip("torch", reason="torch is not installed: there is nothing to compare the reference with")
transformers = pytest.importorskip(
    "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
)

# Relative to the largest gradient of all parameters; measured: 1e-13.
BOUND = 1e-10
ACTIVATIONS = ("gelu", "relu", "gelu_new", "silu", "mish", "quick_gelu", "laplace", "leaky_relu")


def twin(model: Any) -> Any:
    """The class of the same name in transformers, with the same weights, in float64."""
    fields = {"num_labels": model.config.num_labels, "hidden_act": model.config.hidden_act}
    config = transformers.ErnieMConfig(**SMALL, **fields, problem_type=model.config.problem_type)
    hf = getattr(transformers, type(model).__name__)(config).double().eval()
    weights = {name: torch.tensor(array) for name, array in model.state_dict().items()}
    missing, unexpected = hf.load_state_dict(weights, strict=False)
    assert not [name for name in missing if "position_ids" not in name]
    assert not unexpected
    return hf


def gradients_of(hf: Any, loss: Any) -> dict[str, np.ndarray]:
    hf.zero_grad()
    loss.backward()
    return {name: np.zeros(p.shape) if p.grad is None else p.grad.numpy().copy() for name, p in hf.named_parameters()}


def assert_same(ours: Any, theirs: dict[str, np.ndarray]) -> None:
    found = to_huggingface(flatten(ours))
    assert found.keys() == theirs.keys()
    largest = max(1.0, *(float(np.abs(g).max()) for g in theirs.values()))
    for name, g in theirs.items():
        np.testing.assert_allclose(found[name], g, rtol=0, atol=BOUND * largest, err_msg=name)


def tensors(call: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.tensor(value) for name, value in call.items()}


@settings(max_examples=12, deadline=None)
@given(
    mask=masks(lengths=(2, 7, 17)),
    seed=st.integers(0, 2**32 - 1),
    act=st.sampled_from(ACTIVATIONS),
    kind=st.sampled_from(["regression", "single_label_classification", "multi_label_classification"]),
)
def test_classification_heads_have_transformers_gradients(mask: np.ndarray, seed: int, act: str, kind: str) -> None:
    mask[:, 0] = 1  # transformers pools column 0
    rng = np.random.default_rng(seed)
    B, S = mask.shape
    ids = ids_like(mask, seed)
    labels: Any = rng.integers(0, 3, B)
    if kind != "single_label_classification":
        labels = rng.random((B, 3))
    fields = {"hidden_act": act, "num_labels": 3}
    calls = [
        (ernie.ErnieMForSequenceClassification, ids, mask, labels, {"problem_type": kind}),
        (ernie.ErnieMForTokenClassification, ids, mask, np.where(mask, rng.integers(0, 3, (B, S)), -100), {}),
        (ernie.ErnieMForMultipleChoice, ids[None], mask[None], rng.integers(0, B, 1), {}),
    ]
    for cls, own_ids, own_mask, own_labels, more in calls:
        model = random_model(cls, seed=seed, **fields, **more)
        call = {"input_ids": own_ids, "attention_mask": own_mask, "labels": own_labels}
        output, gradients = value_and_gradients(model, **call)
        hf = twin(model)
        loss = hf(**tensors(call)).loss
        np.testing.assert_allclose(output.loss, loss.item(), rtol=1e-10)
        assert_same(gradients, gradients_of(hf, loss))


@settings(max_examples=12, deadline=None)
@given(
    mask=masks(lengths=(2, 7, 17)),
    seed=st.integers(0, 2**32 - 1),
    act=st.sampled_from(ACTIVATIONS),
    ragged=st.booleans(),
)
def test_span_heads_have_transformers_gradients(mask: np.ndarray, seed: int, act: str, ragged: bool) -> None:
    """Ragged: each row without its padding, alone; weighted by rows for answers, by tokens for extraction.

    Rows have two tokens or more, because transformers squeezes a row of one.
    """
    rng = np.random.default_rng(seed)
    B, S = mask.shape
    lengths = rng.integers(2, S + 1, B) if ragged else np.full(B, S)
    mask = (np.arange(S) < lengths[:, None]).astype(np.int64)
    ids = ids_like(mask, seed)
    targets: list[tuple[Any, dict[str, Any], np.ndarray]] = [
        (
            ernie.ErnieMForQuestionAnswering,
            {"start_positions": rng.integers(0, lengths), "end_positions": rng.integers(0, lengths)},
            np.full(B, 1 / B),
        ),
        (
            ernie.ErnieMForInformationExtraction,
            {"start_positions": rng.random((B, S)), "end_positions": rng.random((B, S))},
            lengths / lengths.sum(),
        ),
    ]
    for cls, spans, shares in targets:
        model = random_model(cls, seed=seed, hidden_act=act)
        _, gradients = value_and_gradients(model, ids, attention_mask=mask, **spans)
        hf = twin(model)
        loss = 0.0
        for b, n in enumerate(lengths):
            own = {name: value[b : b + 1, :n] if value.ndim == 2 else value[b : b + 1] for name, value in spans.items()}
            loss = loss + shares[b] * hf(**tensors({"input_ids": ids[b : b + 1, :n], **own})).loss
        assert_same(gradients, gradients_of(hf, loss))


@settings(max_examples=12, deadline=None)
@given(mask=masks(lengths=(2, 7, 17)), seed=st.integers(0, 2**32 - 1), act=st.sampled_from(ACTIVATIONS))
def test_the_bare_model_has_transformers_gradients(mask: np.ndarray, seed: int, act: str) -> None:
    mask[:, 0] = 1
    rng = np.random.default_rng(seed)
    model, ids = random_model(seed=seed, hidden_act=act), ids_like(mask, seed)
    cotangents = {
        "last_hidden_state": rng.standard_normal((*mask.shape, SMALL["hidden_size"])) * mask[..., None],
        "pooler_output": rng.standard_normal((len(mask), SMALL["hidden_size"])),
    }
    _, gradients = value_and_vjp(model, cotangents, ids, attention_mask=mask)
    hf = twin(model)
    out = hf(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    loss = sum((torch.tensor(value) * out[name]).sum() for name, value in cotangents.items())
    assert_same(gradients, gradients_of(hf, loss))

"""`compare` on training steps: right backward passes agree, and a fault is found where it is, going back."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, SMALL, ids_like, masks, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference import activation_vjp, compare, layer_norm_vjp, linear_vjp, trace, value_and_gradients
from ernie_m.reference.attention import attention_by_sequence_vjp
from ernie_m.reference.trace import GRADIENT, Trace
from ernie_m.reference.trace_torch import trace_torch

INNER = "self_attn.self_attn."
SIZES = [(24, 3, 40), (16, 1, 24), (96, 4, 200)]


def call_of(cls: Any, mask: np.ndarray, seed: int = 0) -> dict[str, Any]:
    rng, (B, S), ids = np.random.default_rng(seed), mask.shape, ids_like(mask, seed)
    if cls is ernie.ErnieMForMultipleChoice:
        return {"input_ids": ids[None], "attention_mask": mask[None], "labels": np.zeros(1, int)}
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if cls is ernie.ErnieMForQuestionAnswering:
        return {**call, "start_positions": mask.argmax(axis=1), "end_positions": mask.argmax(axis=1)}
    if cls is ernie.ErnieMForInformationExtraction:
        return {**call, "start_positions": rng.random((B, S)), "end_positions": rng.random((B, S))}
    if cls is ernie.ErnieMForMaskedLM:
        return {**call, "labels": np.where(rng.random((B, S)) < 0.5, ids, -100), "label_weights": rng.random((B, S))}
    shape = (B, S) if cls is ernie.ErnieMForTokenClassification else (B,)
    return {**call, "labels": rng.integers(0, 2, shape)}


def traced(model: Any, call: dict[str, Any], **more: Any) -> Trace:
    with trace() as found:
        value_and_gradients(model, **call, **more)
    return found


@settings(max_examples=40, deadline=None)
@given(
    masks(), st.sampled_from([0, 1, 2, 5, 12]), st.sampled_from(SIZES), st.integers(0, 99), st.sampled_from(CLASSES[1:])
)
def test_right_gradients_agree(mask: np.ndarray, layers: int, size: tuple[int, int, int], seed: int, cls: Any) -> None:
    """Float32 against float64, packed against padded, dropout on."""
    mask[:, 0] = 1
    E, H, F = size
    sizes = {"hidden_size": E, "num_attention_heads": H, "intermediate_size": F, "num_hidden_layers": layers}
    model = random_model(cls, seed, np.float32, **sizes, hidden_dropout_prob=0.1)
    call = call_of(cls, mask, seed)
    truth = traced(model.astype(np.float64), call, rng=np.random.default_rng(seed))
    names = [name for name in truth if name.startswith(GRADIENT)]
    assert names
    for options in ({}, {"output_attentions": True}):
        other = traced(model, call, **options, rng=np.random.default_rng(seed))
        found = compare(truth, other, mask)
        assert found, found
        assert found.ratios.keys() == truth.keys()


def scaled(function: Any, factor: float) -> Any:
    """The same function with its first result, or its only one, multiplied."""

    def faulty(*arguments: Any, **options: Any) -> Any:
        found = function(*arguments, **options)
        return (found[0] * factor, *found[1:]) if isinstance(found, tuple) else found * factor

    return faulty


def without_means(dy: np.ndarray, x: np.ndarray, gamma: np.ndarray, eps: float) -> Any:
    """LayerNorm's vjp as if mean and variance did not depend on x."""
    _, dgamma, dbeta = layer_norm_vjp(dy, x, gamma, eps)
    return dy * gamma / np.sqrt(x.var(axis=-1, keepdims=True) + eps), dgamma, dbeta


# What is replaced, by what, and the first cotangent that shows it: in the last layer, or in the head.
FAULTS: dict[str, tuple[str, Any, str]] = {
    "constant mean and variance": ("encoder.layer_norm_vjp", without_means, "linear2"),
    "a slope that is 1 % off": ("encoder.activation_vjp", lambda name: scaled(activation_vjp(name), 1.01), "linear1"),
    "a weight that is 1 % off": ("encoder.linear_vjp", scaled(linear_vjp, 1.01), "activation"),
    "softmax's vjp without its sum": ("attention.softmax_vjp_of", lambda dy, probs: dy * probs, INNER + "scores"),
    "queries scaled twice": (
        "layouts.attention_by_sequence_vjp",
        scaled(attention_by_sequence_vjp, 0.5),
        INNER + "q_proj",
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_faulty_backward_is_found_where_it_is(fault: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    place, replacement, name = FAULTS[fault]
    model = random_model(ernie.ErnieMForTokenClassification, dtype=np.float32, num_hidden_layers=3)
    mask = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
    call = call_of(type(model), mask)
    truth = traced(model.astype(np.float64), call)
    module, _, attribute = place.partition(".")
    monkeypatch.setattr(import_module(f"ernie_m.reference.{module}"), attribute, replacement)
    found = compare(truth, traced(model.astype(dtype), call), mask)
    assert found.name == f"grad:ernie_m.encoder.layers.2.{name}", found
    assert found.ratio > 3


def test_torch_records_gradients_too() -> None:
    """transformers' backward pass agrees, in float32; a gradient that a hook changes is found. Seen red without."""
    torch = pytest.importorskip("torch", reason="torch is not installed: there is nothing to compare with")
    transformers = pytest.importorskip(
        "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
    )
    model = random_model(ernie.ErnieMForTokenClassification, dtype=np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    call = {**call_of(type(model), mask), "labels": np.where(mask, 1, -100)}
    hf = transformers.ErnieMForTokenClassification(transformers.ErnieMConfig(**SMALL)).eval()
    hf.load_state_dict({name: torch.tensor(array) for name, array in model.state_dict().items()}, strict=False)
    ours = traced(model.astype(np.float64), call)

    def theirs() -> Trace:
        with trace_torch(hf) as found:
            hf(**{name: torch.tensor(value) for name, value in call.items()}).loss.backward()
        return found

    right = compare(ours, theirs(), mask)
    assert right, right
    assert len([name for name in right.ratios if name.startswith(GRADIENT)]) > 15
    layer = hf.ernie_m.encoder.layers[0]
    layer.linear1.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 1.01,))
    wrong = compare(ours, theirs(), mask)
    assert wrong.name == "grad:ernie_m.encoder.layers.0.norm1", wrong

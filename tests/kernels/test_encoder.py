"""Layers and embeddings: activations, where dropout applies, half precision on every path, autocast."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import ids_like
from rounding import MODEL_BOUND, U64
from torch_models import CLASSES, WAYS, assert_same, pair, tensors, way

import ernie_m.reference as ernie
from ernie_m.kernels import activations, dropping, head
from ernie_m.kernels import model as kernel_model
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.runtime.dtypes import TORCH_DTYPES
from ernie_m.reference.activations import ACTIVATIONS
from ernie_m.reference.parameters import flatten, unflatten

OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "act_dropout": 0.0, "classifier_dropout": 0.0}
SEQUENCE = CLASSES[1]
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activate_equals_the_reference(name: str) -> None:
    assert set(activations.ACTIVATIONS) == set(ACTIVATIONS)
    x = np.concatenate([np.linspace(-12, 12, 997), [0.0, -0.0, 40.0, -40.0]])
    ours = activations.activate(name, torch.tensor(x)).numpy()
    expected = ACTIVATIONS[name](x)
    # As against transformers: both sides round a few times.
    assert (np.abs(ours - expected) <= 16 * U64 * np.maximum(np.maximum(1.0, np.abs(x)), np.abs(expected))).all()
    half = torch.tensor(x).to(torch.bfloat16)
    rounded = activations.activate(name, half.float()).to(torch.bfloat16)
    assert torch.equal(activations.activate(name, half), rounded)


def test_activate_accepts_functions_and_rejects_unknown_names() -> None:
    assert torch.equal(activations.activate(torch.exp, torch.zeros(2)), torch.ones(2))
    with pytest.raises(ValueError, match=r"activation: expected a callable or one of .*, got 'gelo'"):
        activations.activate("gelo", torch.zeros(2))


@pytest.mark.parametrize("hidden_act", ["gelu_new", "relu", "gelu_python"])
@pytest.mark.parametrize("how", ["without kernels", "gradients"])
def test_layers_use_the_activation_of_the_configuration(hidden_act: str, how: str) -> None:
    twin, model = pair(hidden_act=hidden_act)
    with way(how):
        assert_same(model(torch.tensor([[0, 5, 9]])), twin([[0, 5, 9]]))


def dropout_calls(model: Any, **options: Any) -> list[tuple[tuple[int, ...], float]]:
    """(shape, p) of each dropout that drops something, in order."""
    found = []

    def dropout(x: torch.Tensor, p: float, *_: Any) -> torch.Tensor:
        found.append((tuple(x.shape), p))
        return x

    with contextlib.ExitStack() as patches:
        for module, name in (
            (dropping, "dropout_unchecked"),
            (dropping, "drop_probabilities"),
            (head, "dropout_unchecked"),
        ):
            patches.enter_context(mock.patch.object(module, name, dropout))
        model(**tensors({"input_ids": ids_like(MASK), "attention_mask": MASK}), **options)
    return found


def test_dropout_is_applied_where_the_configuration_says() -> None:
    """On embeddings; in each layer on probabilities, attention output, activation and layer output; before a head.

    Tokens are packed, T of them, and the probabilities of one length are together. With dropout the last layer computes
    every token, also for a head that reads only the first.
    """
    (B, T), H, E, F = (2, 6), 2, 32, 24
    sizes = {"hidden_size": E, "num_attention_heads": H, "intermediate_size": F, "num_hidden_layers": 2}
    p = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "act_dropout": 0.3, "classifier_dropout": 0.4}
    layer = [*[((1, H, n, n), 0.2) for n in (2, 4)], ((T, E), 0.1), ((T, F), 0.3), ((T, E), 0.1)]
    model = pair(SEQUENCE, **sizes, **p)[1]
    assert dropout_calls(model) == []
    assert dropout_calls(model.train()) == [((T, E), 0.1), *layer, *layer, ((B, E), 0.4)]
    # Without rates of their own, the activation and the classifier use the hidden rate.
    fallback = pair(SEQUENCE, **{**sizes, **p, "act_dropout": None, "classifier_dropout": None})[1].train()
    assert [q for _, q in dropout_calls(fallback)] == [0.1, *[0.2, 0.2, 0.1, 0.1, 0.1] * 2, 0.1]


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("grad", [False, True])
def test_dropout_changes_the_output_only_in_train(name: str, grad: bool) -> None:
    """With and without gradients. The same seed drops the same elements; with all rates 0, train() changes nothing."""
    batch = tensors({"input_ids": ids_like(MASK), "attention_mask": MASK})
    with torch.set_grad_enabled(grad):
        twin, off = pair(SEQUENCE, **OFF)
        plain = twin(ids_like(MASK), attention_mask=MASK).logits
        np.testing.assert_allclose(off.train()(**batch).logits.detach(), plain, rtol=0, atol=MODEL_BOUND)
        model = pair(SEQUENCE, **{**OFF, name: 0.5})[1]
        np.testing.assert_allclose(model(**batch).logits.detach(), plain, rtol=0, atol=MODEL_BOUND)
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            drawn.append(model.train()(**batch).logits.detach())
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
    assert not np.allclose(drawn[0], plain)


def test_dropout_in_a_packed_call() -> None:
    """Attention probabilities are dropped there too; the rectangle's padding takes no part."""
    model = pair(**{**OFF, "attention_probs_dropout_prob": 0.5})[1].train()
    ids, cu = torch.arange(2, 9), torch.tensor([0, 2, 2, 7], dtype=torch.int32)
    torch.manual_seed(0)
    first, second = (model.packed(ids, cu, 5).last_hidden_state for _ in range(2))
    assert not torch.allclose(first, second)
    model.eval()
    assert torch.equal(*(model.packed(ids, cu, 5).last_hidden_state for _ in range(2)))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_statistics_and_softmax_in_float32(dtype: str, how: str) -> None:
    """The truth is float64 with rounded weights.

    The RMS error of 8,192 outputs is at most 1.25 x 0.42 u √k, the bound of checking/verdicts.py for one operation.
    There are k = 10 roundings on the way: embeddings, projections, probabilities, context, two more products, their
    normalisations, the activation and its product. Seen red: statistics in half precision, which lose digits here
    because the mean is large.
    """
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1}
    twin, _ = pair(**sizes)
    arrays = {path: FORMATS[dtype].round(array) for path, array in flatten(twin.parameters).items()}
    # Embeddings far from 0: a sum in half precision would lose the deviation, a fiftieth of the mean.
    arrays["word_embeddings"] = FORMATS[dtype].round(arrays["word_embeddings"] + 0.5)
    twin = ernie.ErnieMModel(twin.config, unflatten(arrays))
    model = type(pair()[1]).from_reference(twin, dtype=TORCH_DTYPES[dtype])
    ids = np.random.default_rng(0).integers(2, 50, (1, 16))
    truth = twin(ids).last_hidden_state
    with way(how), ernie.trace() as t:
        out = model(torch.tensor(ids)).last_hidden_state
    assert out.dtype == TORCH_DTYPES[dtype]
    if how == "gradients":
        assert t["encoder.layers.0.self_attn.self_attn.scores"].value.dtype == np.float32
    error = out.detach().double().numpy() - truth
    u = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert error.size >= 8192
    assert np.sqrt(np.mean(error**2) / np.mean(truth**2)) <= 1.25 * 0.42 * u * 10**0.5


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_autocast_rounds_products_alone(packed: bool, dtype: torch.dtype, how: str) -> None:
    """The output keeps the weights' dtype. In plain torch, the scores of a packed call are in half precision, whose
    numbers the mask must not leave. (`test_autocast.py` has training, and the errors.)"""
    model = pair(dtype=np.float32)[1]
    cu = torch.tensor([0, 2, 2, 7], dtype=torch.int32)
    batch = tensors({"input_ids": ids_like(MASK), "attention_mask": MASK})
    call = (lambda: model.packed(torch.arange(2, 9), cu, 5)) if packed else (lambda: model(**batch))
    with way(how):
        exact = call().last_hidden_state
        with torch.autocast("cpu", dtype):
            found = call().last_hidden_state
    assert found.dtype == torch.float32
    # More than float32 rounding explains: half precision was computed in.
    assert 1e-5 < float((found - exact).detach().abs().max()) < 0.25


@pytest.mark.parametrize("how", WAYS)
def test_ids_outside_the_tables_give_rows_of_nan(how: str) -> None:
    """Where no value is checked, as on a GPU or in a compiled graph; the other rows and all gradients stay finite."""
    _, model = pair()
    ids, positions = torch.tensor([[0, 5, 9], [0, 99, 9]]), torch.tensor([[0, 1, 2], [0, 1, 999]])
    ids[0, 1] = -3
    with mock.patch.object(kernel_model, "should_validate", return_value=False), way(how):
        embedded = model(ids, position_ids=positions, output_hidden_states=True).hidden_states[0]
    outside = torch.tensor([[False, True, False], [False, True, True]])
    assert torch.equal(embedded.isnan().all(dim=2), outside) and torch.equal(embedded.isnan().any(dim=2), outside)
    if embedded.requires_grad:
        embedded.masked_fill(outside[..., None], 0).square().sum().backward()
        assert all(bool(x.grad.isfinite().all()) for x in model.parameters() if x.grad is not None)

"""The torch head that predicts words, beyond what all heads are tested for: weights, transforms, wrapped tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rounding import MODEL_BOUND
from torch.func import functional_call, grad
from torch_models import pair, tensors

from ernie_m import kernels

IDS = np.array([[0, 7, 9, 2], [0, 8, 2, 1]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
LABELS = np.where(MASK * [[0, 1, 1, 0]], IDS, -100)
GIVEN = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS, "label_weights": np.array([[1, 2, 0.5, 1]] * 2)}


def test_transforms_find_the_same_gradients() -> None:
    """`torch.func` cannot see through the chunked loss, so that is computed otherwise there."""
    _, model = pair(kernels.ErnieMForMaskedLM)
    given = tensors(GIVEN)
    weights = {name: x.detach() for name, x in model.named_parameters()}
    found = grad(lambda w: functional_call(model, w, (), given).loss)(weights)
    model(**given).loss.backward()
    for name, x in model.named_parameters():
        np.testing.assert_allclose(found[name].numpy(), x.grad.numpy(), rtol=0, atol=1e-12, err_msg=name)


def test_a_hook_on_the_words_reaches_both_uses() -> None:
    """Twice the vectors, as those that are read and as those that are predicted with."""
    twin, model = pair(kernels.ErnieMForMaskedLM)
    _, doubled = pair(kernels.ErnieMForMaskedLM)
    with torch.no_grad():
        doubled.get_input_embeddings().weight.mul_(2)
    model.get_input_embeddings().register_forward_hook(lambda module, given, output: 2 * output)
    given = tensors({name: x for name, x in GIVEN.items() if "label" not in name})
    torch.testing.assert_close(model(**given).logits, doubled(**given).logits, rtol=0, atol=MODEL_BOUND)
    assert not np.allclose(model(**given).logits.detach().numpy(), twin(**{k: GIVEN[k] for k in given}).logits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"labels": torch.full((2, 4), 50)}, r"labels: expected classes in \[0, 50\), or -100 to ignore, got 50"),
        ({"label_weights": torch.ones(2, 4)}, r"label_weights: expected together with labels, got \(2, 4\) alone"),
        (
            {"labels": torch.tensor(LABELS), "label_weights": -torch.ones(2, 4)},
            "label_weights: expected numbers of at least 0, got -1.0",
        ),
        ({"labels": torch.tensor(LABELS), "label_weights": torch.ones(4)}, r"label_weights: expected shape \(2, 4\)"),
    ],
)
def test_bad_targets_get_one_clear_error(call: dict[str, Any], message: str) -> None:
    _, model = pair(kernels.ErnieMForMaskedLM)
    with pytest.raises((TypeError, ValueError), match=message):
        model(torch.tensor(IDS), torch.tensor(MASK), **call)

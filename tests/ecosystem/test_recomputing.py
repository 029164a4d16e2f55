"""Layers that are computed again in the backward pass: our own switch and torch's wrapper."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from ecosystem_helpers import (
    batch,
    close,
    gradients,
    infer,
    small,
)
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch_models import CLASSES

from ernie_m.kernels.encoder import EncoderLayer


def recomputations(model: Any, given: dict[str, Tensor]) -> int:
    """How often the first `linear1` is called in one forward and backward pass."""
    seen = Counter[str]()
    layer = next(module for module in model.modules() if isinstance(module, EncoderLayer))
    handle = layer.linear1.register_forward_hook(lambda *_: seen.update(["call"]))
    gradients(model, given)
    handle.remove()
    return seen["call"]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing(cls: Any, options: Any) -> None:
    """The same gradients, from intermediates that are computed again; off in evaluation, and when disabled."""
    config = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model, plain, given = small(cls, **config).train(), small(cls, **config).train(), batch(cls)
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    assert model.is_gradient_checkpointing
    found = []
    for net in (model, plain):
        torch.manual_seed(0)
        found.append(gradients(net, given))
    close(*found)
    assert (recomputations(model, given), recomputations(plain, given)) == (2, 1)
    assert recomputations(model.eval(), given) == 1
    model.train().gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert recomputations(model, given) == 1


@pytest.mark.parametrize("cls", CLASSES)
def test_activation_checkpointing_wrapper(cls: Any) -> None:
    model, plain, given = small(cls).train(), small(cls).train(), batch(cls)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, EncoderLayer))
    found = {name.replace("_checkpoint_wrapped_module.", ""): x for name, x in gradients(model, given).items()}
    close(found, gradients(plain, given))
    assert recomputations(model, given) == 2
    close(infer(model.eval(), given), infer(plain.eval(), given))


def test_reentrant_checkpointing_of_a_frozen_model_needs_inputs_that_require_gradients() -> None:
    model = small().train()
    model.ernie_m.embeddings.requires_grad_(False)
    expected = gradients(model, batch())
    model.gradient_checkpointing_enable({"use_reentrant": True})
    for _ in range(2):
        model.enable_input_require_grads()
    close(gradients(model, batch()), expected)
    model.disable_input_require_grads()
    assert not model.get_input_embeddings()._forward_hooks
    model.disable_input_require_grads()

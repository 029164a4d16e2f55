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
@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_gradient_checkpointing(cls: Any, options: Any, name: str) -> None:
    """By both names: the same gradients, from what is computed again; off in evaluation, and when disabled."""
    config = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model, plain, given = small(cls, **config).train(), small(cls, **config).train(), batch(cls)
    assert not getattr(model, f"is_{name}")
    getattr(model, f"{name}_enable")(**{f"{name}_kwargs": options})
    assert getattr(model, f"is_{name}")
    found = []
    for net in (model, plain):
        torch.manual_seed(0)
        found.append(gradients(net, given))
    close(*found)
    assert (recomputations(model, given), recomputations(plain, given)) == (2, 1)
    assert recomputations(model.eval(), given) == 1
    getattr(model.train(), f"{name}_disable")()
    assert not getattr(model, f"is_{name}")
    assert recomputations(model, given) == 1


def test_every_layer_is_computed_again_and_nothing_offloaded() -> None:
    """transformers 5 has both as options; it passes their defaults too."""
    model = small()
    model.activation_checkpointing_enable(every_n_layers=1, offload=False)
    for option, value, words in (("every_n_layers", 2, "expected 1, "), ("offload", True, "expected False, ")):
        with pytest.raises(ValueError, match=f"{option}: {words}.*, got {value}"):
            model.activation_checkpointing_enable(**{option: value})


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

"""A changed output of any module takes effect, whatever changes it: hooks, wrappers, subclasses, replaced methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ecosystem_doublings import DOUBLINGS, by_hook, doubled
from ecosystem_helpers import (
    CONTAINERS,
    FIRST,
    LEAVES,
    batch,
    both,
    close,
    infer,
    leaves,
    numbers,
    small,
    without_targets,
)
from torch.nn.modules import module as torch_module
from torch_models import CLASSES

from ernie_m.kernels import ErnieMModel

GIVEN = batch()


@pytest.mark.parametrize("how", DOUBLINGS)
def test_a_changed_output_of_any_linear_norm_or_embedding_takes_effect(how: str) -> None:
    """Doubling a module's output is doubling its weights: the truth needs no hooks."""
    for name in LEAVES:
        model = small()
        DOUBLINGS[how](model, name)
        try:
            found = both(model, GIVEN)
        finally:
            torch_module._global_forward_hooks.clear()
        close(found, both(doubled(name), GIVEN))


@pytest.mark.parametrize("how", DOUBLINGS)
@pytest.mark.parametrize("cls", CLASSES[1:])
def test_a_changed_output_of_any_head_takes_effect(cls: Any, how: str) -> None:
    """At padding too, where a token classifier's logits are what it makes of a hidden state of 0."""
    given = batch(cls)
    heads = [name for name in leaves(small(cls)) if not name.startswith("ernie_m.")]
    assert heads
    for name in heads:
        model, twin = small(cls), small(cls)
        with torch.no_grad():
            for x in twin.get_submodule(name).parameters():
                x.mul_(2)
        DOUBLINGS[how](model, name)
        try:
            found = both(model, given)
        finally:
            torch_module._global_forward_hooks.clear()
        close(found, both(twin, given))


@pytest.mark.parametrize("how", DOUBLINGS)
def test_a_changed_output_of_any_container_takes_effect(how: str) -> None:
    """Of layers, attention, embeddings, encoder, pooler and the encoder model; the same with and without gradients."""
    before = both(small(), GIVEN)
    for name in CONTAINERS:
        model = small()
        DOUBLINGS[how](model, name)
        try:
            found = both(model, GIVEN)
        finally:
            torch_module._global_forward_hooks.clear()
        close(found["inference"], found["training"])
        assert float((found["inference"] - before["inference"]).abs().max()) > 1e-6, name


def test_inputs_embeds_take_the_same_way() -> None:
    """Vectors in place of ids, as for integrated gradients or soft prompts: changed modules count there as well."""
    model = small()
    vectors = model.ernie_m.embeddings.word_embeddings(GIVEN["input_ids"]).detach()
    given = {"inputs_embeds": vectors, "attention_mask": GIVEN["attention_mask"]}
    close(infer(model, given), infer(model, without_targets(GIVEN)))
    for name in FIRST:
        if "word_embeddings" not in name:
            other = small()
            by_hook(other, name)
            close(both(other, given), both(doubled(name), given))


def test_packed_calls_take_the_same_way() -> None:
    model, twin = small(ErnieMModel), small(ErnieMModel)
    ids = torch.tensor([3, 4, 5, 6, 7])
    arguments = (ids, torch.tensor([0, 2, 5], dtype=torch.int32), 3)
    for name in leaves(model):
        model, twin = small(ErnieMModel), small(ErnieMModel)
        by_hook(model, name)
        with torch.no_grad():
            for x in twin.get_submodule(name).parameters():
                x.mul_(2)
            close(numbers(model.packed(*arguments)), numbers(twin.packed(*arguments)))

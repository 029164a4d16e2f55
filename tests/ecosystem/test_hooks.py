"""Hooks fire once for every module, in both modes, and may change what they see."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from ecosystem_helpers import (
    CONTAINERS,
    FIRST,
    LEAVES,
    LINEARS,
    batch,
    both,
    close,
    containers,
    gradients,
    leaves,
    small,
    without_targets,
)
from torch import Tensor
from torch.nn import Embedding, Linear
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_map
from torch_models import PUBLISHED

GIVEN = batch()


@pytest.mark.parametrize("name", FIRST)
def test_a_pre_hook_may_change_the_input(name: str) -> None:
    """Doubled inputs are doubled weights; equal ids are a table of equal rows; inputs of 0 are weights of 0."""
    model, plain = small(), small()
    module, twin = model.get_submodule(name), plain.get_submodule(name)
    if isinstance(module, Embedding):
        module.register_forward_pre_hook(lambda module, args: (torch.full_like(args[0], 3),))
        with torch.no_grad():
            twin.weight[:] = twin.weight[3].clone()
    elif isinstance(module, Linear):
        module.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        with torch.no_grad():
            twin.weight.mul_(2)
    else:
        module.register_forward_pre_hook(lambda module, args: (0 * args[0],))
        with torch.no_grad():
            twin.weight.zero_()
    close(both(model, GIVEN), both(plain, GIVEN))


@pytest.mark.parametrize("grad", [False, True])
# In a masked language model, the words' module is called twice.
@pytest.mark.parametrize("cls", PUBLISHED)
def test_every_module_s_hooks_fire_once_a_call(cls: Any, grad: bool) -> None:
    """Each on its own, so that a hook on one does not switch another's on."""
    given = without_targets(batch(cls))
    for name in [*leaves(small(cls)), *containers(small(cls))]:
        model, seen = small(cls), Counter()
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, seen=seen: seen.update(["before"]))
        module.register_forward_hook(lambda *_, seen=seen: seen.update(["after"]))
        with torch.set_grad_enabled(grad):
            model(**given)
        assert seen == {"before": 1, "after": 1}, name


@pytest.mark.parametrize("grad", [False, True])
# In a masked language model, the words' module is called twice.
@pytest.mark.parametrize("cls", PUBLISHED)
def test_global_hooks_fire_for_every_module(cls: Any, grad: bool) -> None:
    """As profilers and `torch.utils.module_tracker` use them."""
    model = small(cls)
    names = {module: name for name, module in [*leaves(model).items(), *containers(model).items()]}
    before, after = Counter[str](), Counter[str]()
    torch_module.register_module_forward_pre_hook(lambda module, *_: before.update([names[module]]))
    torch_module.register_module_forward_hook(lambda module, *_: after.update([names[module]]))
    with torch.set_grad_enabled(grad):
        model(**without_targets(batch(cls)))
    assert before == after == Counter(names.values())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_backward_hooks_fire_and_may_change_the_gradient() -> None:
    """A gradient doubled behind the classifier is doubled everywhere before it."""
    wanted = gradients(small(), GIVEN)
    for name in LINEARS:
        model, seen = small(), Counter()
        model.get_submodule(name).register_full_backward_hook(lambda *_, seen=seen: seen.update(["after"]))
        model.get_submodule(name).register_full_backward_pre_hook(lambda *_, seen=seen: seen.update(["before"]))
        close(gradients(model, GIVEN), wanted)
        assert seen == {"before": 1, "after": 1}, name
    model = small()
    model.classifier.register_full_backward_hook(lambda module, inner, outer: (2 * inner[0],))
    found = gradients(model, GIVEN)
    close({name: x / (1 if "classifier" in name else 2) for name, x in found.items()}, wanted)


def test_global_backward_hooks_fire() -> None:
    model = small()
    names = {module: name for name, module in leaves(model).items()}
    seen = Counter[str]()
    torch_module.register_module_full_backward_hook(
        lambda module, *_: seen.update([names[module]] if module in names else [])
    )
    gradients(model, GIVEN)
    # The hook of a module whose inputs need no gradient (ids) does not fire in torch either.
    assert set(seen) >= set(LEAVES) - {name for name in LEAVES if "embeddings" in name and "layer_norm" not in name}


def test_a_hook_may_bring_in_a_tensor_that_needs_a_gradient() -> None:
    """On a frozen model, as for soft prompts and perturbations: no parameter of the model says so."""
    for name in CONTAINERS + LEAVES:
        model, factor = small().requires_grad_(False), torch.ones((), dtype=torch.float64, requires_grad=True)
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, factor=factor: tree_map(
                lambda x: factor * x if isinstance(x, Tensor) and x.is_floating_point() else x, output
            )
        )
        loss = model(**GIVEN).loss
        (found,) = torch.autograd.grad(loss, factor)
        # The derivative along the factor, by central differences.
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                factor.fill_(1 + step)
                losses.append(model(**GIVEN).loss)
        close(found, (losses[0] - losses[1]) / 2e-5, 1e-6)

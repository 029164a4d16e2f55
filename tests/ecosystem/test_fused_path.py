"""The control: where nothing was put on or in place of a module, the fused operations run."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_doublings import by_hook
from ecosystem_helpers import (
    batch,
    both,
    close,
    gradients,
    infer,
    small,
    without_targets,
)
from torch import Tensor
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from ernie_m.kernels import ErnieMModel, attention, embedding, first_token, gelu, layer_norm
from ernie_m.kernels.runtime import dispatch


class Recorder(TorchDispatchMode):
    """Counts the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func).removesuffix(".default")] += 1
        return func(*args, **(kwargs or {}))


def operations(model: Any, given: dict[str, Tensor]) -> Counter[str]:
    """The project's own operations in a call without gradients."""
    with torch.no_grad(), Recorder() as recorder:
        model(**given)
    return Counter({name: n for name, n in recorder.seen.items() if name.startswith("ernie_m.")})


FUSED = {"ernie_m.embed": 1, "ernie_m.packed_attention": 2, "ernie_m.bias_gelu": 2, "ernie_m.add_layer_norm": 4}


def test_untouched_models_take_the_fused_path() -> None:
    """The control: the rule costs nothing where it is not needed; training and forgotten hooks do not spoil it."""
    given = without_targets(batch(ErnieMModel))
    model = small(ErnieMModel, np.float32)
    wanted = operations(model, given)
    assert {name: wanted[name] for name in FUSED} == FUSED
    for register in (
        model.encoder.layers[0].linear1.register_forward_hook,
        model.encoder.layers[0].linear1.register_forward_pre_hook,
        torch_module.register_module_forward_hook,
        torch_module.register_module_forward_pre_hook,
    ):
        handle = register(lambda *_: None)
        assert operations(model, given)["ernie_m.bias_gelu"] < 2
        handle.remove()
        assert operations(model, given) == wanted
    gradients(model, given)
    assert operations(copy.deepcopy(model), given) == wanted
    frozen = small(ErnieMModel, np.float32).requires_grad_(False)
    assert operations(frozen, given) == wanted


# The operation that a module is part of.
PART_OF = {
    "embeddings.position_embeddings": "ernie_m.embed",
    "encoder.layers.0.linear1": "ernie_m.bias_gelu",
    "encoder.layers.0.linear2": "ernie_m.add_layer_norm",
    "encoder.layers.0.norm1": "ernie_m.add_layer_norm",
    "encoder.layers.0.self_attn": "ernie_m.add_layer_norm",
    "encoder.layers.0.self_attn.out_proj": "ernie_m.add_layer_norm",
    "encoder.layers.0.self_attn.self_attn.k_proj": "none",
    "encoder.layers.1": "none",
    "pooler": "none",
}


@pytest.mark.parametrize("name", PART_OF)
def test_a_hook_on_one_module_leaves_the_others_fused(name: str) -> None:
    given, model = without_targets(batch(ErnieMModel)), small(ErnieMModel, np.float32)
    model.get_submodule(name).register_forward_hook(lambda *_: None)
    found = operations(model, given)
    assert {key: found[key] for key in FUSED} == {key: n - (key == PART_OF[name]) for key, n in FUSED.items()}


@pytest.mark.parametrize("name", ["", "q_proj", "out_proj", "linear1", "linear2", "norm1", "word_embeddings"])
def test_the_kernels_run_beside_called_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels themselves, wherever they can run, around one module that is called."""
    for page in (attention, embedding, first_token, gelu, layer_norm):
        monkeypatch.setattr(page, "runs_triton", dispatch.runs_triton)
    given, options = without_targets(batch(ErnieMModel)), {"num_hidden_layers": 1}
    model, twin = small(ErnieMModel, np.float32, **options), small(ErnieMModel, **options)
    path = next(own for own, _ in model.named_modules() if name and own.endswith(name)) if name else ""
    if path:
        by_hook(model, path)
        by_hook(twin, path)
    found, wanted = infer(model, given), both(twin, given)["training"]
    close(found.double(), wanted, 1e-4)

"""A model's weights: each has one name, the one that transformers uses, wherever torch or another library asks."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_helpers import LAYER, QKV, batch, close, copied, gradients, infer, small, step, without_targets
from safetensors.torch import load_model, save_model
from torch_models import CLASSES, PUBLISHED

from ernie_m.kernels import ErnieMModel


@pytest.mark.parametrize("cls", PUBLISHED)
def test_every_weight_has_one_name_and_it_is_transformers(cls: Any) -> None:
    """In this order too, which optimisers number their states by."""
    oracle = pytest.importorskip("transformers.models.ernie_m", reason="transformers 4.40.2 has it, 5 has not")
    model = small(cls, pruned_heads={1: (0,)})
    parameters = [name for name, _ in model.named_parameters()]
    hf = getattr(oracle, cls.__name__)(oracle.ErnieMConfig.from_dict(model.config.to_dict()))
    assert list(model.state_dict()) == parameters
    assert set(parameters) == set(hf.state_dict())
    assert {name: x.shape for name, x in model.state_dict().items()} == {
        name: x.shape for name, x in hf.state_dict().items()
    }
    modules = dict(model.named_modules())
    linears = {name for name, module in hf.named_modules() if isinstance(module, torch.nn.Linear)}
    assert all(isinstance(modules[name], torch.nn.Linear) for name in linears)


@pytest.mark.parametrize("cls", CLASSES)
def test_no_two_weights_share_memory(cls: Any) -> None:
    """`safetensors.torch.save_model` and accelerate drop all but one of those that do."""
    model = small(cls)
    for tensors in (dict(model.named_parameters()), model.state_dict()):
        assert len({x.untyped_storage().data_ptr() for x in tensors.values()}) == len(tensors)
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in tensors.values())


@pytest.mark.parametrize("cls", CLASSES)
def test_a_training_step_changes_queries_keys_and_values(cls: Any) -> None:
    model = small(cls).train()
    before = copied(model.state_dict())
    step(model, batch(cls))
    after = model.state_dict()
    names = [name for name in before if any(part in name for part in QKV) and name.endswith("weight")]
    assert len(names) == 6
    assert not [name for name in names if torch.equal(before[name], after[name])]


def through_parameters(model: Any, fresh: Any, folder: Path) -> None:
    fresh.load_state_dict(dict(model.named_parameters()))


def through_safetensors(model: Any, fresh: Any, folder: Path) -> None:
    save_model(model, str(folder / "model.safetensors"))
    load_model(fresh, str(folder / "model.safetensors"))


def through_torch(model: Any, fresh: Any, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "weights.pt")
    fresh.load_state_dict(torch.load(folder / "weights.pt", weights_only=True, mmap=True))


def through_a_vector(model: Any, fresh: Any, folder: Path) -> None:
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(vector.detach(), fresh.parameters())


WAYS = {"named_parameters": through_parameters, "safetensors": through_safetensors, "torch.save": through_torch}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", [*WAYS, "parameters_to_vector"])
def test_weights_survive_a_round_trip(cls: Any, name: str, tmp_path: Path) -> None:
    model, fresh = small(cls, seed=1), small(cls, seed=2)
    given = batch(cls)
    wanted = infer(model, given)
    infer(fresh, given)
    {**WAYS, "parameters_to_vector": through_a_vector}[name](model, fresh, tmp_path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], tensor), key
    close(infer(fresh, given), wanted)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("grad", [False, True])
def test_functional_call_takes_the_state_dict(cls: Any, grad: bool) -> None:
    """The weights of the call are used, inside and outside of autograd; the model's own come back afterwards."""
    model, other = small(cls, seed=1), small(cls, seed=2)
    given = without_targets(batch(cls))
    before, wanted = infer(model, given), infer(other, given)
    with torch.set_grad_enabled(grad):
        for state in (other.state_dict(), dict(other.named_parameters())):
            found = torch.func.functional_call(model, state, (), given)
            close(torch.cat([x.flatten() for x in found.values()]).detach(), wanted)
    close(infer(model, given), before)


@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_whole_and_independent(duplicate: str) -> None:
    """Made after a call, when whatever a call prepares has been prepared."""
    model, given = small(), batch()
    before = infer(model, given)
    if duplicate == "deepcopy":
        other = copy.deepcopy(model)
    elif duplicate == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        other = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    close(infer(other, given), before)
    step(other, given)
    assert not torch.equal(infer(other, given), before)
    assert torch.equal(infer(model, given), before)


def test_a_copy_costs_no_more_than_its_weights() -> None:
    """Nothing that a call prepares is saved with a model."""
    model = small()
    fresh = len(pickle.dumps(model))
    infer(model, batch())
    assert len(pickle.dumps(model)) <= fresh + 1000


@pytest.mark.parametrize("cls", CLASSES)
def test_a_model_made_on_the_meta_device_is_filled(cls: Any) -> None:
    source = small(cls)
    given = batch(cls)
    for assign in (False, True):
        with torch.device("meta"):
            model = cls(source.config, dtype=torch.float64)
        assert {x.device.type for x in model.parameters()} == {"meta"}
        if not assign:
            model = model.to_empty(device="cpu")
        assert not model.load_state_dict(copied(source.state_dict()), assign=assign).missing_keys
        close(infer(model.eval(), given), infer(source, given))
        assert set(gradients(model, given)) == set(gradients(source, given))


def test_parts_may_differ_in_dtype_and_requires_grad() -> None:
    """Freezing the keys alone is what one does with a module; so is a half-precision value projection, loaded."""
    model, given = small(), batch()
    attention = model.get_submodule(f"{LAYER}.self_attn.self_attn")
    full = gradients(model, given)
    attention.k_proj.requires_grad_(False)
    part = gradients(model, given)
    missing = {f"{LAYER}.self_attn.self_attn.k_proj.{kind}" for kind in ("weight", "bias")}
    assert set(full) - set(part) == missing
    close(part, {name: x for name, x in full.items() if name not in missing})


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_to_changes_every_weight(kind: torch.dtype) -> None:
    model = small(dtype=np.float32)
    infer(model, batch())
    model.to(kind)
    assert {x.dtype for x in model.state_dict().values()} == {kind}
    assert infer(model, batch()).dtype == kind


def test_share_memory_keeps_every_weight() -> None:
    """As for Hogwild training: `share_memory()` moves the storages, and the model computes the same."""
    model, given = small(), batch()
    before = infer(model, given)
    model.share_memory()
    assert all(x.is_shared() for x in model.parameters())
    assert torch.equal(infer(model, given), before)
    with torch.no_grad():
        for x in model.parameters():
            x.mul_(1.5)
    assert not torch.equal(infer(model, given), before)


def test_tied_weights_are_still_one() -> None:
    """Two layers that share their query projection train it together."""
    model = small(ErnieMModel)
    first, second = (layer.self_attn.self_attn for layer in model.encoder.layers)
    second.q_proj = first.q_proj
    given = batch(ErnieMModel)
    found = gradients(model, given)
    assert "encoder.layers.0.self_attn.self_attn.q_proj.weight" in found
    assert "encoder.layers.1.self_attn.self_attn.q_proj.weight" not in found
    before = infer(model, given)
    step(model, given)
    assert not torch.equal(infer(model, given), before)
    assert first.q_proj.weight is second.q_proj.weight

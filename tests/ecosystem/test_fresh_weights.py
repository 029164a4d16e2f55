"""Whatever changes a weight, the next call sees it: with the fast path's own memory of weights, if it has one.

Version counters miss writes through `.data` and through NumPy views, and inference tensors have none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ecosystem_helpers import LAYER, QKV, batch, close, copied, infer, small, step
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

GIVEN = batch()
NAMES = tuple(small().state_dict())
WEIGHTS = tuple(f"{LAYER}.self_attn.self_attn.{part}.weight" for part in QKV) + (
    f"{LAYER}.self_attn.out_proj.weight",
    f"{LAYER}.linear1.weight",
    f"{LAYER}.linear2.bias",
    f"{LAYER}.norm1.weight",
    "ernie_m.embeddings.word_embeddings.weight",
    "ernie_m.pooler.dense.weight",
    "classifier.weight",
)


def expected(model: Any) -> Tensor:
    """What the reference computes with the weights of the `state_dict`."""
    out = model.to_reference()(**{key: x.numpy() for key, x in GIVEN.items()})
    return torch.cat([torch.as_tensor(x).flatten() for x in out.values()])


def in_place(module: Any, name: str, new: Tensor) -> None:
    with torch.no_grad():
        getattr(module, name).copy_(new)


def add_in_place(module: Any, name: str, new: Tensor) -> None:
    with torch.no_grad():
        getattr(module, name).add_(new - getattr(module, name))


def one_row(module: Any, name: str, new: Tensor) -> None:
    with torch.no_grad():
        for i in range(len(new)):
            getattr(module, name)[i] = new[i]


def data_copy(module: Any, name: str, new: Tensor) -> None:
    getattr(module, name).data.copy_(new)


def data_swap(module: Any, name: str, new: Tensor) -> None:
    getattr(module, name).data = new.clone()


def numpy_view(module: Any, name: str, new: Tensor) -> None:
    getattr(module, name).detach().numpy()[...] = new.numpy()


def storage(module: Any, name: str, new: Tensor) -> None:
    getattr(module, name).untyped_storage().copy_(new.contiguous().untyped_storage())


def new_parameter(module: Any, name: str, new: Tensor) -> None:
    setattr(module, name, Parameter(new.clone()))


def swap(module: Any, name: str, new: Tensor) -> None:
    torch.utils.swap_tensors(getattr(module, name), Parameter(new.clone()))


def state_dict_view(module: Any, name: str, new: Tensor) -> None:
    module.state_dict()[name].copy_(new)


def load(module: Any, name: str, new: Tensor) -> None:
    module.load_state_dict({**module.state_dict(), name: new.clone()})


def load_assign(module: Any, name: str, new: Tensor) -> None:
    module.load_state_dict({**module.state_dict(), name: new.clone()}, assign=True)


def under_inference_mode(module: Any, name: str, new: Tensor) -> None:
    with torch.inference_mode():
        getattr(module, name).data.copy_(new)


def inference_tensor(module: Any, name: str, new: Tensor) -> None:
    """A weight that has no version counter."""
    with torch.inference_mode():
        weight = Parameter(new.clone(), requires_grad=False)
    module._parameters[name] = weight
    with torch.inference_mode():
        weight.add_(0.0)


def optimiser(module: Any, name: str, new: Tensor) -> None:
    """A step of size 1 along the difference."""
    weight = getattr(module, name)
    weight.requires_grad_(True)
    weight.grad = weight.detach() - new
    torch.optim.SGD([weight], lr=1.0, foreach=True).step()
    weight.grad = None


CHANGES: dict[str, Callable[[Any, str, Tensor], None]] = {
    "copy_": in_place,
    "add_": add_in_place,
    "rows": one_row,
    ".data.copy_": data_copy,
    ".data =": data_swap,
    "NumPy view": numpy_view,
    "storage": storage,
    "new Parameter": new_parameter,
    "swap_tensors": swap,
    "state_dict view": state_dict_view,
    "load_state_dict": load,
    "load_state_dict(assign=True)": load_assign,
    "inference_mode": under_inference_mode,
    "inference tensor": inference_tensor,
    "optimiser": optimiser,
}


def change(model: Any, name: str, how: str, seed: int = 0) -> None:
    """Set the parameter `name` to random numbers, in the way `how`."""
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, own).detach()
    noise = torch.randn(old.shape, dtype=old.dtype, generator=torch.Generator().manual_seed(seed))
    CHANGES[how](module, own, old.clone() + 0.3 * noise)


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_next_call_sees_a_changed_weight(how: str, mode: Any) -> None:
    model = small()
    model.requires_grad_(how != "storage")
    for i, name in enumerate(WEIGHTS):
        with mode():
            before = model(**GIVEN).logits.clone()
        change(model, name, how, seed=i)
        with mode():
            after = model(**GIVEN)
        assert float((after.logits - before).abs().max()) > 1e-6, name
        close(torch.cat([x.flatten() for x in after.values()]), expected(model))


@settings(max_examples=25)
@drawn(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(sorted(CHANGES))), min_size=1, max_size=4))
def test_any_series_of_changes_is_seen(series: list[tuple[str, str]]) -> None:
    """Also after a change that makes the weight a different tensor, and in training."""
    model = small()
    infer(model, GIVEN)
    for i, (name, how) in enumerate(series):
        change(model, name, how, seed=i)
        close(infer(model, GIVEN), expected(model))


def test_weights_created_in_inference_mode_are_read_at_every_call() -> None:
    with torch.inference_mode():
        model = small()
    assert all(x.is_inference() for x in model.parameters())
    for name in WEIGHTS:
        with torch.inference_mode():
            before = infer(model, GIVEN)
            model.get_parameter(name).mul_(1.5)
            after = infer(model, GIVEN)
        assert not torch.equal(before, after), name
    with torch.inference_mode():
        close(after.clone(), expected(model))


@pytest.mark.parametrize("swap", [data_swap, data_copy, in_place])
def test_evaluating_with_averaged_weights_and_going_back(swap: Any) -> None:
    """The usual exponential moving average: shadow weights in for evaluation, the trained ones back in afterwards."""
    model = small().train()
    shadow = copied(model.state_dict())
    for seed in range(2):
        step(model, batch(seed=seed))
        for name, x in model.state_dict().items():
            shadow[name].mul_(0.5).add_(x, alpha=0.5)
    trained = copied(model.state_dict())
    model.eval()
    for state in (shadow, trained, shadow, trained):
        for name, x in state.items():
            owner, _, own = name.rpartition(".")
            swap(model.get_submodule(owner), own, x)
        fresh = small(seed=3)
        fresh.load_state_dict(state)
        close(infer(model, GIVEN), infer(fresh, GIVEN))


@pytest.mark.parametrize("kind", ["mean", "ema", "swa"])
def test_averaged_model(kind: str) -> None:
    """torch's own averages, for each of its functions: evaluated between updates."""
    function = {"mean": None, "ema": get_ema_multi_avg_fn(0.6), "swa": get_swa_multi_avg_fn()}[kind]
    model = small().train()
    averaged = AveragedModel(model, multi_avg_fn=function)
    states: list[dict[str, Tensor]] = []
    for seed in range(3):
        step(model, batch(seed=seed))
        averaged.update_parameters(model)
        averaged.eval()
        found = infer(averaged, GIVEN)
        states.append(copied(model.state_dict()))
        if kind == "ema":
            mean = states[0]
            for state in states[1:]:
                mean = {name: 0.6 * x + 0.4 * state[name] for name, x in mean.items()}
        else:
            mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
        fresh = small(seed=3)
        fresh.load_state_dict(mean)
        # torch divides by the number of models in float32.
        close(found, infer(fresh, GIVEN), 1e-6)


def test_changes_between_the_calls_of_a_loop() -> None:
    """Train a little, look, train a little: looking never sees old weights."""
    model = small()
    for seed in range(3):
        step(model.train(), batch(seed=seed))
        close(infer(model.eval(), GIVEN), expected(model))
        close(infer(copy.deepcopy(model), GIVEN), expected(model))

"""Tensors that have a shape but no values: on the meta device, in torch's FakeTensorMode, and recorded by `make_fx`.

People count memory, operations and parameters with them, and plan how to split a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_helpers import batch, close, infer, numbers, small, without_targets
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode
from torch_models import CLASSES

from ernie_m.kernels import ErnieMForMaskedLM, ErnieMModel

DROPS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "act_dropout": 0.1}
Given = dict[str, Any]


def given_to(cls: Any) -> Given:
    """A batch with targets."""
    given: Given = batch(cls)
    if cls is ErnieMForMaskedLM:
        given["labels"] = given["input_ids"].masked_fill(given["input_ids"] % 2 == 0, -100)
    return given


def on_meta(cls: Any, config: Any, given: Given, train: bool) -> Any:
    moved = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in given.items()}
    with torch.device("meta"):
        model = cls(config).train(train)
    return model(**moved)


def everything_on_meta(cls: Any, config: Any, given: Given, train: bool) -> Any:
    with torch.device("meta"):
        moved = {name: torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x for name, x in given.items()}
        return cls(config).train(train)(**moved)


def fake(cls: Any, config: Any, given: Given, train: bool) -> Any:
    with FakeTensorMode() as mode:
        model = cls(config).train(train)
        return model(**{name: mode.from_tensor(x) if isinstance(x, Tensor) else x for name, x in given.items()})


def fake_ids(cls: Any, config: Any, given: Given, train: bool) -> Any:
    """The weights have values, the inputs have none, and the mode has been left."""
    model = cls(config).train(train)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return model(**{name: mode.from_tensor(x) if isinstance(x, Tensor) else x for name, x in given.items()})


WAYS = {way.__name__: way for way in (on_meta, everything_on_meta, fake, fake_ids)}
OPTIONS: dict[str, Given] = {
    "plain": {},
    "states and maps": {"output_hidden_states": True, "output_attentions": True},
    "no mask": {"attention_mask": None},
}


def shapes(output: Any) -> dict[str, Any]:
    """Shape and dtype of everything that a model returns."""
    found = {name: value if isinstance(value, tuple) else (value,) for name, value in output.items()}
    return {name: [(tuple(x.shape), x.dtype) for x in values] for name, values in found.items()}


@pytest.mark.parametrize(
    ("cls", "options"),
    [*((cls, "plain") for cls in CLASSES), *((ErnieMModel, name) for name in OPTIONS if name != "plain")],
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("train", "grad"), [(True, True), (False, False)])
def test_shapes_are_those_of_a_call_with_values(cls: Any, options: str, way: str, train: bool, grad: bool) -> None:
    config = small(cls, **DROPS).config
    given = {**given_to(cls), **OPTIONS[options]}
    with torch.set_grad_enabled(grad):
        found, wanted = WAYS[way](cls, config, given, train), cls(config).train(train)(**given)
    assert shapes(found) == shapes(wanted)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("mask", ["pad_token", "cls_token"])
def test_a_step_on_the_meta_device(cls: Any, mask: str) -> None:
    """Every weight that gets a gradient with values gets one without, of its shape."""
    config = small(cls, default_mask=mask, **DROPS).config
    real, given = cls(config).train(), given_to(cls)
    shadow = cls(config, device="meta").train()
    for model, batch_of in ((real, given), (shadow, {name: x.to("meta") for name, x in given.items()})):
        out = model(**batch_of)
        (out.loss if "loss" in out else out.last_hidden_state.sum() + out.pooler_output.sum()).backward()
    found, wanted = (
        {name: None if x.grad is None else x.grad.shape for name, x in model.named_parameters()}
        for model in (shadow, real)
    )
    assert found == wanted


@pytest.mark.parametrize("way", ["meta", "fake"])
@pytest.mark.parametrize("grad", [True, False])
def test_packed_sequences_on_the_meta_device(way: str, grad: bool) -> None:
    config = small(ErnieMModel).config
    with FakeTensorMode() if way == "fake" else torch.device("meta"), torch.set_grad_enabled(grad):
        ids, ends = torch.ones(9, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
        out = ErnieMModel(config).packed(ids, ends, 5)
    assert [tuple(x.shape) for x in out.values()] == [(9, 32), (3, 32)]


def test_operations_are_counted_without_values() -> None:
    """Two for each multiplication of a product: four projections, two of the feed-forward network, scores, context."""
    config, (B, S) = small(ErnieMModel).config, (3, 6)
    ids = torch.ones(B, S, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        ErnieMModel(config, device="meta")(ids)
    E, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layer = B * S * (4 * E * E + 2 * E * F + 2 * S * E)
    assert counter.get_total_flops() == 2 * (L * layer + B * E * E)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("grad", [True, False])
def test_make_fx_records_a_graph_for_other_values(cls: Any, grad: bool) -> None:
    model, given = small(cls), without_targets(batch(cls))
    other = without_targets(batch(cls, seed=7))
    other["attention_mask"][..., 0, -2] = 1

    def call(*values: Tensor) -> Tensor:
        return numbers(model(**dict(zip(given, values, strict=True))))

    with torch.set_grad_enabled(grad):
        graph = make_fx(call)(*given.values())
        close(graph(*other.values()).detach(), infer(model, other))


def test_make_fx_records_the_loss_of_words() -> None:
    """Which tokens have a label, and count, is not known when the graph is recorded."""
    model, given = small(ErnieMForMaskedLM), given_to(ErnieMForMaskedLM)
    weights = torch.linspace(0.5, 2.0, 18, dtype=torch.float64).view(3, 6)
    for more in ({}, {"label_weights": weights}):
        call: dict[str, Tensor] = {**given, **more}
        other = {**call, "labels": call["input_ids"].masked_fill(call["input_ids"] % 3 == 0, -100)}

        def loss(*values: Tensor, names: tuple[str, ...] = tuple(call)) -> Tensor:
            found: Tensor = model(**dict(zip(names, values, strict=True))).loss
            return found

        with torch.no_grad():
            close(make_fx(loss)(*call.values())(*other.values()), model(**other).loss)


def calls(model: Any) -> dict[str, Callable[[], Any]]:
    ids, ends = torch.ones(2, 3, dtype=torch.int64), torch.tensor([0, 3], dtype=torch.int32)
    base = getattr(model, "ernie_m", model)
    return {"forward": lambda: model(ids), "packed": lambda: base.packed(ids[0], ends, 3)}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["forward", "packed"])
def test_a_model_that_was_never_filled_is_an_error(cls: Any, name: str) -> None:
    """Seen red: "Tensor on device meta is not on the expected device cpu!", from inside torch."""
    model = cls(small(cls).config, device="meta")
    call = calls(model)[name]
    if "MultipleChoice" in cls.__name__ and name == "forward":
        call = lambda: model(torch.ones(1, 2, 3, dtype=torch.int64))  # noqa: E731
    expected = r"model: expected weights on cpu like the inputs, got some on the meta device, without values"
    with pytest.raises(ValueError, match=expected):
        call()


def test_inputs_without_values_for_a_model_with_some_are_an_error() -> None:
    with pytest.raises(ValueError, match="input_ids: expected a tensor on cpu like the model, got one on meta"):
        small(dtype=np.float32)(torch.ones(2, 3, dtype=torch.int64, device="meta"))

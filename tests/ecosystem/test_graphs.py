"""`torch.export`, `torch.jit.trace` and `torch.func` take the models and their outputs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_helpers import LAYER, batch, close, gradients, infer, numbers, small, without_targets
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn import Module
from torch_models import CLASSES, PUBLISHED

from ernie_m.kernels import ErnieMModel
from ernie_m.kernels.activations import ACTIVATIONS, activate


def with_less_padding(given: dict[str, Any]) -> dict[str, Any]:
    """Another number of tokens in a batch of the same shape."""
    given["attention_mask"][..., 0, -2] = 1
    given["input_ids"][..., 0, -2] = 9
    return given


@pytest.mark.parametrize(("cls", "mask"), [*((cls, True) for cls in CLASSES), (ErnieMModel, False)])
def test_export(cls: Any, mask: bool) -> None:
    """Without gradients: the graph gives the same for other ids, and is saved and loaded."""
    model, given = small(cls), without_targets(batch(cls))
    other = with_less_padding(without_targets(batch(cls, seed=7)))
    if not mask:
        given, other = ({"input_ids": x["input_ids"].clamp(min=2)} for x in (given, other))
    with torch.no_grad():
        program = torch.export.export(model, (), given, strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    for exported in (program, torch.export.load(io.BytesIO(buffer.getvalue()))):
        found = exported.module()(**other)
        assert type(found).__name__ == type(model(**other)).__name__
        close(numbers(found).detach(), infer(model, other))


def test_export_of_any_batch_size() -> None:
    model, given = small(), without_targets(batch())
    rows = {0: torch.export.Dim("rows", min=2, max=64)}
    shapes = {name: rows for name in given}  # noqa: C420
    with torch.no_grad():
        program = torch.export.export(model, (), given, dynamic_shapes=shapes, strict=False)
    other = without_targets(batch(B=7))
    close(numbers(program.module()(**other)).detach(), infer(model, other))


def test_export_for_training() -> None:
    model, given = small(), without_targets(batch())
    program = torch.export.export(model, (), given, strict=False)
    close(numbers(program.module()(**given)).detach(), infer(model, given))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("grad", [False, True])
def test_trace(cls: Any, grad: bool) -> None:
    """`strict=False`, as for every model that returns a dictionary; the traced module returns a plain one."""
    model, given = small(cls), without_targets(batch(cls))
    other = with_less_padding(without_targets(batch(cls, seed=7)))
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, tuple(given.values()), strict=False)
        found, wanted = traced(*other.values()), model(*other.values())
    assert list(found) == list(wanted)
    close({name: x.detach() for name, x in found.items()}, {name: x.detach() for name, x in wanted.items()})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_model_traced_with_gradients_is_saved_and_has_them(cls: Any, dtype: Any) -> None:
    """Seen red: "Could not export Python function call '_BothWays'", the derivative of an activation; and in float32
    '_WithoutRow', the table of words, whose row for padding gets no gradient."""
    model, given = small(cls, dtype), without_targets(batch(cls))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, tuple(given.values()), strict=False), buffer)
    loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
    sums = [numbers(call(*given.values())).sum() for call in (loaded, model)]
    found, wanted = (
        torch.autograd.grad(total, tuple(weights.parameters()), allow_unused=True)
        for total, weights in zip(sums, (loaded, model), strict=True)
    )
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in loaded.named_parameters()] == names
    both = ({name: x for name, x in zip(names, grads, strict=True) if x is not None} for grads in (found, wanted))
    close(*both, 1e-9 if dtype is np.float64 else 1e-3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_traced(name: str) -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    traced = torch.jit.trace(lambda x: activate(name, x), (x,))
    close(traced(x), activate(name, x))
    close(*(torch.autograd.grad(call(x).sum(), x) for call in (traced, lambda x: activate(name, x))))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("grad", [False, True])
def test_a_traced_model_takes_other_shapes(cls: Any, grad: bool) -> None:
    """More and longer rows than the batch that was traced, and fewer and shorter ones."""
    model, given = small(cls), without_targets(batch(cls))
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, tuple(given.values()), strict=False, check_trace=False)
        for B, S in ((5, 11), (1, 4)):
            other = without_targets(batch(cls, 7, B, S))
            found, wanted = traced(*other.values()), model(*other.values())
            close({name: x.detach() for name, x in found.items()}, {name: x.detach() for name, x in wanted.items()})


class Positional(Module):
    """A model whose arguments are all positional, and whose output is a tuple: what the exporter takes."""

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model(input_ids, attention_mask).values())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_operation_has_one_in_onnx(cls: Any, dtype: Any) -> None:
    """Of batches of any size. Where the package onnx is missing, the exporter says so at its last step.

    Seen red: "Failed to export a node", the shape of a normalisation; aten::mT; aten::erfc.
    """
    given = without_targets(batch(cls))
    axes = {name: {x.dim() - 2: "rows", x.dim() - 1: "columns"} for name, x in given.items()}
    options: dict[str, Any] = {"input_names": list(given), "dynamic_axes": axes, "dynamo": False}
    try:
        torch.onnx.export(Positional(small(cls, dtype)), tuple(given.values()), io.BytesIO(), **options)
    except torch.onnx.OnnxExporterError as error:
        assert "onnx is not installed" in str(error)


@pytest.mark.parametrize("cls", PUBLISHED)
def test_grad_of_a_function_of_the_weights(cls: Any) -> None:
    model, given = small(cls), batch(cls)

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        out = functional_call(model, weights, (), given)
        return out["loss"] if "loss" in out else out.last_hidden_state.square().sum()

    weights = {name: x.detach() for name, x in model.named_parameters()}
    found = grad(loss)(weights)
    if cls is not ErnieMModel:
        wanted = gradients(model, given)
        close({name: found[name] for name in wanted}, wanted)


def test_a_frozen_model_in_grad() -> None:
    """The weights of `functional_call` need gradients, whatever the model's own say."""
    model, given = small(), batch()
    wanted = gradients(model, given)
    weights = {name: x.detach() for name, x in model.named_parameters()}
    model.requires_grad_(False)
    found = grad(lambda w: functional_call(model, w, (), given).loss)(weights)
    close({name: found[name] for name in wanted}, wanted)


def test_jvp_is_the_directional_derivative() -> None:
    model, given = small(), batch()
    weights = {name: x.detach() for name, x in model.named_parameters()}
    direction = {name: torch.ones_like(x) for name, x in weights.items()}
    loss, derivative = jvp(lambda w: functional_call(model, w, (), given).loss, (weights,), (direction,))
    wanted = gradients(model, given)
    close(derivative, sum((wanted[name] * x).sum() for name, x in direction.items() if name in wanted))
    close(loss, model(**given).loss.detach())


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_forward_mode_needs_no_gradient_recording(dtype: Any) -> None:
    """Dual numbers in a frozen model, also under `no_grad`: nothing in the model says that a derivative is taken."""
    model, given = small(dtype=dtype).requires_grad_(False), batch()
    bias = model.ernie_m.encoder.layers[0].linear1.bias
    direction = torch.linspace(-1, 1, len(bias), dtype=bias.dtype)
    with torch.no_grad(), forward_ad.dual_level():
        loss = functional_call(model, {f"{LAYER}.linear1.bias": forward_ad.make_dual(bias, direction)}, (), given).loss
        found = forward_ad.unpack_dual(loss).tangent
    wanted = gradients(model.requires_grad_(True), given)[f"{LAYER}.linear1.bias"] @ direction
    close(found, wanted, 1e-9 if dtype is np.float64 else 1e-4)


def test_vmap_over_frozen_models() -> None:
    """Without gradients too: the kernels have no rule for a batch of weights."""
    models, given = [small(seed=seed).requires_grad_(False) for seed in range(2)], without_targets(batch())
    weights, buffers = stack_module_state(models)
    with torch.no_grad():
        found = vmap(lambda w, b: functional_call(models[0], (w, b), (), given).logits)(weights, buffers)
    close(found, torch.stack([infer(model, given).reshape(3, 2) for model in models]))


def test_hessian_of_the_head() -> None:
    model, given = small(), batch()
    found = hessian(lambda bias: functional_call(model, {"classifier.bias": bias}, (), given).loss)(
        model.classifier.bias.detach()
    )
    assert found.shape == (2, 2)
    close(found, found.T)
    assert float(torch.linalg.eigvalsh(found.detach()).min()) > -1e-12


def test_an_ensemble_by_vmap() -> None:
    """Stacked weights of three models, one call."""
    models, given = [small(seed=seed) for seed in range(3)], without_targets(batch())
    weights, buffers = stack_module_state(models)
    base = small(dtype=np.float64)

    def call(w: Any, b: Any) -> torch.Tensor:
        return functional_call(base, (w, b), (), given).logits

    found = vmap(call)(weights, buffers)
    close(found.detach(), torch.stack([infer(model, given).reshape(3, 2) for model in models]))


def test_gradients_of_each_row_by_vmap() -> None:
    """Per-sample gradients, as for differential privacy."""
    model, given = small(), batch()
    weights = {name: x.detach() for name, x in model.named_parameters()}

    def loss(w: Any, ids: torch.Tensor, mask: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return functional_call(model, w, (ids[None], mask[None]), {"labels": label[None]}).loss

    found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, *given.values())
    for i in range(3):
        wanted = gradients(model, {key: x[i : i + 1] for key, x in given.items()})
        close({name: found[name][i] for name in wanted}, wanted)

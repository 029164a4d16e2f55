"""Autocast: a model in float32 whose products are in half precision, on the kernels and in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ids_like
from rounding import U32
from torch_models import CLASSES, pair, tensors, way
from training_pairs import MASKS, RATES, batch_of, by_name, models, seeds_of

from ernie_m.kernels import (
    attention,
    attention_vjp,
    dropped_layer_norm,
    dropped_layer_norm_backward,
    embedding,
    embedding_backward,
    first_token,
    gelu,
    gelu_backward,
    layer_norm,
    layer_norm_backward,
)
from ernie_m.kernels.dropped_layer_norm import dropped_layer_norm_unchecked
from ernie_m.kernels.gelu import bias_gelu_unchecked
from ernie_m.kernels.layer_norm import add_layer_norm_unchecked
from ernie_m.kernels.linear_cross_entropy import linear_cross_entropy
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.reference.gradients import value_and_gradients

PAGES = (
    *(attention, attention_vjp, dropped_layer_norm, dropped_layer_norm_backward, embedding, embedding_backward),
    *(first_token, gelu, gelu_backward, layer_norm, layer_norm_backward),
)
HALVES = [torch.bfloat16, torch.float16]
# Heads for whose size there is a kernel; vectors long enough for an rms to mean something.
HEADS = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 160}
OFF = dict.fromkeys(RATES, 0.0)
on_kernels = pytest.mark.skipif(
    not INTERPRETED, reason="the model is on the CPU, where kernels run only in the interpreter"
)


@contextmanager
def launches() -> Iterator[list[tuple[str, torch.dtype]]]:
    """Each launch of one of our kernels inside: its name, and the dtype of the tensor that decides about it."""
    found: list[tuple[str, torch.dtype]] = []
    original: Callable[..., None] = attention.launch

    def launch(kernel: Any, grid: Any, x: torch.Tensor, *more: Any, **options: Any) -> None:
        found.append((kernel.fn.__name__.removesuffix("_kernel"), x.dtype))
        original(kernel, grid, x, *more, **options)

    patches = [mock.patch.object(page, "launch", launch) for page in PAGES]
    for patch in patches:
        patch.start()
    try:
        yield found
    finally:
        for patch in patches:
            patch.stop()


def step(model: Any, batch: dict[str, Any], half: torch.dtype, seeds: torch.Tensor) -> dict[str, np.ndarray]:
    """The loss and the gradients of a training step as people write it, with a gradient scaler for float16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=half == torch.float16)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.autocast("cpu", half):
        loss = model(**batch, dropout_seeds=seeds).loss
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.unscale_(optimiser)
    own = [(name, x.grad) for name, x in model.named_parameters() if x.grad is not None]
    assert own and all(x.dtype == torch.float32 and bool(x.isfinite().all()) for _, x in own)
    found = {"loss": loss.detach().double().numpy(), **{name: x.double().numpy() for name, x in own}}
    model.zero_grad()
    return found


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


def assert_as_close(ours: dict[str, Any], plain: dict[str, Any], exact: dict[str, Any], last: float) -> None:
    """The three-way rule, for each array by its rms error: twice that of plain torch's autocast, and 16 u of float32 of
    the largest number of all.

    Plain torch may hit a single number. So for the loss, and the gradient of a classifier's few biases, also `last`.
    """
    largest = max(float(np.abs(x).max()) for x in exact.values())
    assert ours.keys() == plain.keys() and len(ours) > 1
    for name, x in ours.items():
        own, other = (rms(y - exact[name]) for y in (x, plain[name]))
        assert own <= 2 * other + 16 * U32 * largest + (last if x.size < 32 else 0.0), (name, own, other)


@on_kernels
@pytest.mark.parametrize(
    ("cls", "rates", "half"),
    [
        (CLASSES[3], RATES, torch.float16),
        (CLASSES[3], OFF, torch.bfloat16),
        (CLASSES[6], RATES, torch.bfloat16),
        pytest.param(CLASSES[1], OFF, torch.float16, marks=pytest.mark.all),
        pytest.param(CLASSES[1], RATES, torch.bfloat16, marks=pytest.mark.all),
        pytest.param(CLASSES[6], OFF, torch.float16, marks=pytest.mark.all),
    ],
)
def test_a_step_is_as_close_as_in_plain_torch(cls: Any, rates: dict[str, Any], half: torch.dtype) -> None:
    """The loss and every gradient against the reference in float64; kernels run in one case, and not in the other.

    Rounding the logits to half precision alone moves the loss by up to 2 u of the largest, and the gradient of their
    bias, a mean of probabilities, by no more.
    """
    twin = models(cls, **HEADS, **rates)[0].astype(np.float32)
    model, batch, seeds = cls.from_reference(twin).train(), batch_of(cls, MASKS["right"]), seeds_of(twin, 3)
    with launches() as launched:
        ours = step(model, tensors(batch), half, seeds)
    assert launched
    with way("without kernels"), torch.enable_grad(), launches() as launched:
        plain = step(model, tensors(batch), half, seeds)
    assert not launched
    twin = twin.astype(np.float64)
    output, gradients = value_and_gradients(twin, **batch, rng=np.random.default_rng(3))
    unlabelled = {key: batch[key] for key in ("input_ids", "attention_mask")}
    logits = twin(**unlabelled, rng=np.random.default_rng(3)).logits
    last = 2 * torch.finfo(half).eps / 2 * float(np.abs(logits[np.abs(logits) < 1e30]).max())
    assert_as_close(ours, plain, by_name(gradients, cls) | {"loss": output.loss}, last)


@on_kernels
@pytest.mark.parametrize(("p", "half"), [(0.0, torch.bfloat16), (0.2, torch.float16)])
def test_every_step_runs_on_the_kernels(p: float, half: torch.dtype) -> None:
    """Two layers, forward and backward: attention and GELU in half precision; embeddings in float32; normalisations
    read a product in half precision, and what a layer returns is float32. Seen red: `linear2` not fused."""
    model = pair(dtype=np.float32, hidden_dropout_prob=p, attention_probs_dropout_prob=p)[1].train()
    ids, mask = torch.tensor(ids_like(MASKS["right"])), torch.tensor(MASKS["right"])
    with launches() as launched, torch.autocast("cpu", half):
        out = model(ids, attention_mask=mask)
        assert out.last_hidden_state.dtype == torch.float32 and out.pooler_output.dtype == half
        norm = "dropped_layer_norm" if p else "add_layer_norm"
        layer = [("packed_attention", half), (norm, half), ("bias_gelu", half), (norm, half)]
        assert launched == [("embed", torch.float32), *layer, *layer]
        launched.clear()
        out.last_hidden_state.sin().sum().backward()
    layer = [(f"{norm}_vjp", half), ("bias_gelu_vjp", half), (f"{norm}_vjp", half), ("short", half)]
    ours = [found for found in launched if found in layer]
    assert ours == [*layer, *layer]
    assert launched[-1][1] == torch.float32 and "embed" in {name.partition("_")[0] for name, _ in launched}


def mixed(half: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A product in half precision, and the rest in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"bias": (33,), "residual": (7, 33), "gamma": (33,), "beta": (33,)}
    rest = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return torch.randn(7, 33, generator=generator).to(half), rest


def operations() -> dict[str, Callable[..., torch.Tensor]]:
    """The fused operations that read a product."""
    seed, tokens = torch.tensor(5), torch.arange(7)
    return {
        "bias_gelu": lambda x, bias, residual, gamma, beta: bias_gelu_unchecked(x, bias),
        "add_layer_norm": lambda *given: add_layer_norm_unchecked(*given, 1e-5)[0],
        "dropped_layer_norm": lambda *given: dropped_layer_norm_unchecked(*given, 1e-5, 0.3, seed, tokens),
    }


@pytest.mark.parametrize("how", ["kernels", "plain operations"])
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", operations())
def test_operations_take_a_product_in_half_precision(name: str, half: torch.dtype, how: str) -> None:
    """Widening is exact, so the bits are those of float32 throughout; only what has the product's dtype is rounded: its
    gradient, and GELU. Seen red: the sum or the residual's gradient rounded to the product's dtype."""
    function, (x, rest) = operations()[name], mixed(half)
    found = []
    for product in (x, x.float()):
        leaves = [t.clone().requires_grad_() for t in (product, *rest.values())]
        with way(how), torch.enable_grad():
            y = function(*leaves)
            y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(half).to(y.dtype))
        found.append([y.detach(), *(t.grad for t in leaves)])
    rounded = (0, 1) if name == "bias_gelu" else (1,)
    for i, (ours, wide) in enumerate(zip(*found, strict=True)):
        if wide is None:
            assert ours is None
            continue
        assert ours.dtype == (half if i in rounded else torch.float32)
        assert torch.equal(ours, wide.to(ours.dtype)), i


@on_kernels
@pytest.mark.parametrize("name", operations())
def test_operations_on_two_dtypes_pass_opcheck(name: str) -> None:
    """The dtypes that graphs are compiled for are those of the results, forward and backward. Seen red: each."""
    x, rest = mixed(torch.bfloat16)
    dropped = (0.3, torch.tensor(5), torch.arange(7)) if name == "dropped_layer_norm" else ()
    given = (x, rest["bias"]) if name == "bias_gelu" else (x, *rest.values(), 1e-5, *dropped)
    forward, backward = (getattr(torch.ops.ernie_m, f"{name}{end}").default for end in ("", "_vjp"))
    found = forward(*given)
    y, *statistics = found if isinstance(found, tuple) else (found,)
    torch.library.opcheck(backward, (y, *given[:4], *statistics, *dropped), test_utils="test_faketensor")
    leaves = [t.requires_grad_() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in given]
    torch.library.opcheck(forward, tuple(leaves))


@on_kernels
@pytest.mark.parametrize("part", ["encoder.layers.0.linear2", "encoder.layers.0.norm1", "encoder.layers.0.self_attn"])
def test_modules_with_hooks_are_called(part: str) -> None:
    """And their neighbours are as close as ever; the rest stays on the kernels."""
    twin, model = pair(dtype=np.float32, **HEADS)
    batch = tensors({"input_ids": ids_like(MASKS["right"]), "attention_mask": MASKS["right"]})
    exact, called = type(model).from_reference(twin.astype(np.float64))(**batch).last_hidden_state.detach(), []
    model.get_submodule(part).register_forward_hook(lambda *_: called.append(1))
    errors = []
    for how in ("gradients", "without kernels"):
        with way(how), launches() as launched, torch.autocast("cpu", torch.bfloat16):
            found = model(**batch).last_hidden_state
        assert found.dtype == torch.float32 and bool(launched) == (how == "gradients")
        errors.append(rms((found.double() - exact).detach().numpy()))
    assert len(called) == 2 and errors[0] <= 2 * errors[1] + 16 * U32


@on_kernels
@pytest.mark.parametrize("form", ["padded", pytest.param("packed", marks=pytest.mark.all)])
def test_a_compiled_step_is_one_graph_with_the_same_gradients(form: str) -> None:
    """The compiler may round elsewhere, so the two are compared by the three-way rule."""
    cls, off = CLASSES[0], {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    twin, model = pair(cls, dtype=np.float32, num_hidden_layers=1, **HEADS, **off)
    ids, mask = torch.tensor(ids_like(MASKS["right"])), torch.tensor(MASKS["right"])
    cu = torch.tensor([0, *np.cumsum(MASKS["right"].sum(axis=1))], dtype=torch.int32)
    given = (ids[mask == 1], cu, ids.shape[1]) if form == "packed" else (ids, mask)
    torch._dynamo.reset()

    def gradients(model: Any, call: Any, autocast: bool = True) -> dict[str, np.ndarray]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = call(*given)
        (out.last_hidden_state[..., :5].cos().sum() + out.pooler_output.double().sin().sum()).backward()
        found = {name: x.grad.double().numpy().copy() for name, x in model.named_parameters()}
        model.zero_grad()
        return found

    def method(model: Any) -> Any:
        return model.packed if form == "packed" else model

    with launches() as launched:
        ours = gradients(model, torch.compile(method(model), fullgraph=True, backend="aot_eager"))
    assert {"embed", "packed_attention", "bias_gelu", "add_layer_norm", "short"} <= {name for name, _ in launched}
    double = cls.from_reference(twin.astype(np.float64))
    assert_as_close(ours, gradients(model, method(model)), gradients(double, method(double), False), 0.0)


def test_words_are_judged_in_the_dtype_of_the_product() -> None:
    """Under autocast to bfloat16, the loss of a large vocabulary and its gradients are as close as those of the product
    and the loss one after the other. Under autocast to float16 they are those of float32: divided by the number of all
    processes' rows, the gradients of logits would be below its range. Seen red: float16, and products of other dtypes.
    """
    generator, N, V, E, count = torch.Generator().manual_seed(0), 64, 64, 16, 2.0**16
    arrays = [torch.randn(shape, generator=generator) for shape in ((N, E), (V, E), (V,))]
    labels = torch.randint(0, V, (N,), generator=generator)
    functions = {
        "ours": partial(linear_cross_entropy, count=count),
        "apart": lambda x, w, b, labels: F.cross_entropy(F.linear(x, w, b), labels, reduction="sum") / count,
    }

    def run(name: str, half: torch.dtype, dtype: torch.dtype = torch.float32) -> list[np.ndarray]:
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in arrays]
        with torch.autocast("cpu", half, enabled=dtype == torch.float32):
            # As what precedes it would return.
            x = leaves[0].to(half) if dtype == torch.float32 else leaves[0]
            loss = functions[name](x, *leaves[1:], labels)
        loss.backward()
        assert loss.dtype == dtype and all(x.grad is not None and x.grad.dtype == dtype for x in leaves)
        return [x.grad.double().numpy() for x in leaves if x.grad is not None]

    exact = run("apart", torch.bfloat16, torch.float64)
    for ours, apart, truth in zip(run("ours", torch.bfloat16), run("apart", torch.bfloat16), exact, strict=True):
        assert rms(ours - truth) <= 2 * rms(apart - truth)
    for ours, truth in zip(run("ours", torch.float16), exact, strict=True):
        assert rms(ours - truth) <= 2.0**-10 * rms(truth)

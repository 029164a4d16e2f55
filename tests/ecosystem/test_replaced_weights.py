"""Weights that are made anew at each call, modules of another kind, and modules that are missing."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_helpers import (
    FIRST,
    LAYER,
    LINEARS,
    batch,
    both,
    close,
    copied,
    gradients,
    infer,
    numbers,
    small,
    without_targets,
)
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Linear, Module, Parameter
from torch.nn.utils import parametrizations, parametrize, prune
from torch_models import CLASSES

GIVEN = batch()


@pytest.mark.parametrize("name", LINEARS)
def test_pruned_weights(name: str) -> None:
    """`torch.nn.utils.prune` keeps `weight_orig`, and masks it before each call."""
    model, plain = small(), small()
    prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.5)
    prune.random_unstructured(model.get_submodule(name), "bias", amount=0.5)
    with torch.no_grad():
        for kind in ("weight", "bias"):
            getattr(plain.get_submodule(name), kind).mul_(getattr(model.get_submodule(name), f"{kind}_mask"))
    close(both(model, GIVEN), both(plain, GIVEN))
    assert f"{name}.weight_orig" in gradients(model, GIVEN)
    # An optimiser changes `weight_orig`; the masked weight is made from it in the next call.
    with torch.no_grad():
        model.get_parameter(f"{name}.weight_orig").mul_(2)
        plain.get_parameter(f"{name}.weight").mul_(2)
    close(both(model, GIVEN), both(plain, GIVEN))
    prune.remove(model.get_submodule(name), "weight")
    prune.remove(model.get_submodule(name), "bias")
    close(both(model, GIVEN), both(plain, GIVEN))


class Symmetric(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@pytest.mark.parametrize("name", FIRST)
def test_parametrized_weights(name: str) -> None:
    model, plain = small(), small()
    parametrize.register_parametrization(model.get_submodule(name), "weight", Symmetric())
    with torch.no_grad():
        plain.get_parameter(f"{name}.weight").abs_()
    close(both(model, GIVEN), both(plain, GIVEN))
    assert f"{name}.parametrizations.weight.original" in gradients(model, GIVEN)
    with parametrize.cached():
        close(both(model, GIVEN), both(plain, GIVEN))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "kind", [parametrizations.weight_norm, torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm]
)
def test_normalised_weights(kind: Any) -> None:
    """torch's own reparametrisations, the old ones by pre-hook among them."""
    model = small()
    for name in ("q_proj", "v_proj"):
        kind(model.get_submodule(f"{LAYER}.self_attn.self_attn.{name}"))
    kind(model.get_submodule(f"{LAYER}.linear1"))
    found = both(model.eval(), GIVEN)
    close(found["inference"], found["training"])


def test_layers_may_be_dropped_or_replaced() -> None:
    """A shorter stack, and a layer that something else stands in for."""
    model = small()
    first = copied({name: x for name, x in model.state_dict().items() if "layers.1." not in name})
    del model.ernie_m.encoder.layers[1]
    shorter = type(model)(model.config.replace(num_hidden_layers=1), dtype=torch.float64).eval()
    shorter.load_state_dict(first)
    close(both(model, GIVEN), both(shorter, GIVEN))

    class Skip(Module):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            return x, None

    model = small()
    model.ernie_m.encoder.layers[1] = Skip()
    close(both(model, GIVEN), both(shorter, GIVEN))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("cls", CLASSES)
def test_dynamic_quantization(cls: Any) -> None:
    """Eight bits for every Linear: close to the full precision, and not equal to it."""
    model, given = small(cls, np.float32), without_targets(batch(cls))
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {Linear}, dtype=torch.qint8)
    kinds = Counter(type(module).__module__ for module in quantized.modules() if type(module).__name__ == "Linear")
    assert list(kinds) == ["torch.ao.nn.quantized.dynamic.modules.linear"]
    found, wanted = infer(quantized, given), infer(model, given)
    kept = wanted > -1e30  # padded logits
    assert not torch.equal(found, wanted)
    error = (found - wanted)[kept].abs().max() / wanted[kept].abs().max()
    assert float(error) < 0.1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["qint8", "float16", "words"])
def test_a_quantised_model_is_not_saved(kind: str, tmp_path: Path) -> None:
    """Seen red: "zero_point: expected a tensor of floats, got torch.int64", and an AttributeError."""
    model = small(dtype=np.float32)
    what: Any = {Linear}
    if kind == "words":
        what = {Embedding: torch.ao.quantization.float_qparams_weight_only_qconfig}
    dtype = torch.quint8 if kind == "words" else getattr(torch, kind)
    quantised: Any = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), what, dtype=dtype)
    name = "embeddings.word_embeddings" if kind == "words" else "encoder.layers.0.self_attn.self_attn.q_proj"
    expected = f"^ernie_m.{name}: expected floating-point weights, got a quantised module: use the model from before"
    for call in (
        lambda: quantised.save_pretrained(tmp_path / "new"),
        lambda: model.save_pretrained(tmp_path / "new", state_dict=quantised.state_dict()),
        quantised.to_reference,
    ):
        with pytest.raises(TypeError, match=expected):
            call()
    assert not (tmp_path / "new").exists()


def test_a_new_parameter_in_place_of_a_weight_is_trained() -> None:
    model = small()
    model.ernie_m.encoder.layers[0].linear1.weight = Parameter(torch.zeros(40, 32, dtype=torch.float64))
    assert f"{LAYER}.linear1.weight" in gradients(model, GIVEN)


def test_norms_without_bias_or_weight() -> None:
    """torch's own options of these modules."""
    model, twin = small(), small()
    model.ernie_m.encoder.layers[0].norm1 = LayerNorm(32, 1e-5, bias=False, dtype=torch.float64)
    model.ernie_m.encoder.layers[0].linear2 = Linear(40, 32, bias=False, dtype=torch.float64)
    model.ernie_m.encoder.layers[1].norm2 = LayerNorm(32, 1e-5, elementwise_affine=False, dtype=torch.float64)
    model.ernie_m.encoder.layers[0].self_attn.self_attn.k_proj = Linear(32, 32, bias=False, dtype=torch.float64)
    with torch.no_grad():
        first, second = twin.ernie_m.encoder.layers
        first.norm1.weight.fill_(1)
        first.norm1.bias.zero_()
        second.norm2.weight.fill_(1)
        second.norm2.bias.zero_()
        first.linear2.weight.copy_(model.ernie_m.encoder.layers[0].linear2.weight)
        first.linear2.bias.zero_()
        first.self_attn.self_attn.k_proj.weight.copy_(model.ernie_m.encoder.layers[0].self_attn.self_attn.k_proj.weight)
        first.self_attn.self_attn.k_proj.bias.zero_()
    close(both(model, GIVEN), both(twin, GIVEN))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16, torch.float64])
def test_norms_in_float32(half: torch.dtype) -> None:
    """As libraries that quantise or train in half precision keep them."""
    model, plain = small().to(half), small().to(half)
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.float()
    found, wanted = both(model, GIVEN), both(plain, GIVEN)
    for name, x in found.items():
        assert x.dtype == half
        assert float((x - wanted[name]).abs().max()) < max(2e-5, 8 * torch.finfo(half).eps), name


def test_another_table_of_words(tmp_path: Path) -> None:
    """Its size is that of the vocabulary: ids are checked against it, and the checkpoint has it."""
    model = small()
    model.set_input_embeddings(Embedding(200, 32, dtype=torch.float64))
    assert model.config.vocab_size == model.ernie_m.config.vocab_size == 200
    assert numbers(model(torch.tensor([[0, 150, 199]]))).isfinite().all()
    with pytest.raises(ValueError, match=r"input_ids.*200"):
        model(torch.tensor([[0, 200]]))
    model.save_pretrained(tmp_path)
    close(infer(type(model).from_pretrained(tmp_path), GIVEN), infer(model, GIVEN))
    with pytest.raises(ValueError, match=r"value: expected word vectors of 32 numbers, got Embedding\(200, 31\)"):
        model.set_input_embeddings(Embedding(200, 31))


@pytest.mark.parametrize(
    ("heads", "error"),
    [
        ({"0": [0]}, r"layer: expected an integer from 0 to 1, got '0'"),
        ({0: 0}, "expected a list of heads for layer 0, got 0"),
        ([0], r"expected a mapping, got \[0\]"),
        ({0: [1.0]}, "layer 0: expected an integer from 0 to 1, got 1.0"),
        ({2: [0]}, "layer: expected an integer from 0 to 1, got 2"),
        ({0: [0, 1]}, "layer 0: expected one head to remain"),
    ],
)
def test_heads_that_cannot_be_pruned(heads: Any, error: str) -> None:
    model = small()
    for one in (model, model.to_reference()):
        with pytest.raises((TypeError, ValueError), match=f"pruned_heads: {error}"):
            one.prune_heads(heads)
    assert not model.config.pruned_heads


def test_models_that_cannot_be_saved_yet(tmp_path: Path) -> None:
    pruned, offloaded = small(), small()
    prune.l1_unstructured(pruned.ernie_m.encoder.layers[0].linear1, "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"linear1.weight_(orig|mask): expected .* remove pruning before saving"):
        pruned.save_pretrained(tmp_path / "pruned")
    offloaded.ernie_m.encoder.layers[1].to("meta")
    with pytest.raises(ValueError, match=r"encoder.layers.1.*: expected values, got none: pass state_dict="):
        offloaded.save_pretrained(tmp_path / "offloaded")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [Linear, LayerNorm, Embedding])
def test_a_method_replaced_for_all_modules_of_a_class(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As profilers do."""
    model, original, called = small(), kind.forward, []

    def forward(self: Any, x: Tensor) -> Tensor:
        called.append(self)
        return original(self, x)

    expected = infer(model, GIVEN)
    monkeypatch.setattr(kind, "forward", forward)
    close(infer(model, GIVEN), expected)
    assert len(called) == sum(type(module) is kind for module in model.modules())

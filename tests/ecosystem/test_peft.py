"""Adapters from peft 0.11.1: on each kind of module they change the output, learn, merge, and are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ecosystem_helpers import batch, both, close, copied, gradients, infer, small, step
from torch_models import CLASSES

from ernie_m.kernels import ErnieMForTokenClassification, ErnieMModel

peft = pytest.importorskip("peft", reason="peft is not installed (it needs transformers)")

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2", "dense", "classifier")
TABLES = ("word_embeddings", "position_embeddings")
GIVEN = batch()


def randomise(model: Any, seed: int = 0) -> None:
    """Set adapters to random numbers; as created, they change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                x.copy_(torch.randn(x.shape, generator=generator, dtype=x.dtype))


def adapted(target: Any, model: Any = None, **options: Any) -> Any:
    """A model with new adapters, in float64 like its weights."""
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=[target] if isinstance(target, str) else target, **options
    )
    return peft.get_peft_model(small() if model is None else model, config).double().eval()


@pytest.mark.parametrize("target", [*LINEARS, *TABLES])
def test_a_low_rank_adapter_takes_effect(target: str) -> None:
    """At inference and in training alike; every part gets a gradient; merged into the weights it is the same."""
    before = both(small(), GIVEN)
    model = adapted(target)
    close(both(model, GIVEN), before)
    randomise(model)
    after = both(model, GIVEN)
    close(after["inference"], after["training"])
    if target != "k_proj":
        assert float((after["inference"] - before["inference"]).abs().max()) > 1e-6
    found = gradients(model, GIVEN)
    adapters = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert adapters and set(found) == set(adapters)
    assert all(bool(found[name].any()) for name in adapters)
    merged = model.merge_and_unload()
    assert list(merged.state_dict()) == list(small().state_dict())
    close(both(merged, GIVEN)["inference"], after["inference"], 1e-8)


@pytest.mark.parametrize("target", [*LINEARS, *TABLES])
def test_an_adapter_equals_changed_weights(target: str) -> None:
    """The truth comes from the formula W + s·B·A, in a model that never had an adapter."""
    model, plain = adapted(target), small()
    randomise(model)
    state = copied(plain.state_dict())
    for name, module in model.base_model.model.named_modules():
        if name.endswith(target):
            if target in TABLES:
                A, B = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
            else:
                A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            update = (4 / 2) * (B @ A).detach()
            state[f"{name}.weight"] += update.T if target in TABLES else update
    plain.load_state_dict(state)
    wanted = both(plain, GIVEN)
    close(both(model, GIVEN), wanted, 1e-8)


@pytest.mark.parametrize("cls", CLASSES)
def test_all_linear_maps_of_every_class(cls: Any) -> None:
    """`all-linear` finds them by their type; a step changes the adapters alone."""
    given, targets = batch(cls), [name for name in LINEARS if cls is not ErnieMModel or name != "classifier"]
    present = {name.rpartition(".")[2] for name, _ in small(cls).named_modules()}
    model = adapted([name for name in targets if name in present], small(cls)).train()
    frozen = {name: x.clone() for name, x in model.named_parameters() if not x.requires_grad}
    first = infer(model, given)
    step(model, given)
    step(model, given)
    assert not torch.equal(infer(model, given), first)
    assert all(torch.equal(x, frozen[name]) for name, x in model.named_parameters() if name in frozen)


def test_all_linear_finds_every_linear_map() -> None:
    model = peft.get_peft_model(small(), peft.LoraConfig(r=2, target_modules=list(LINEARS)))
    wanted = sum(isinstance(module, torch.nn.Linear) for module in small().modules())
    assert sum(hasattr(module, "lora_A") for module in model.modules()) == wanted == 2 * 6 + 2


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"lora_dropout": 0.5}])
def test_variants_of_the_adapter(options: dict[str, Any]) -> None:
    model = adapted(["q_proj", "v_proj", "linear1", "out_proj"], **options)
    randomise(model)
    after = both(model, GIVEN)
    close(after["inference"], after["training"])
    assert not torch.equal(after["inference"], infer(small(), GIVEN))
    torch.manual_seed(0)
    found = gradients(model.train(), GIVEN)
    assert all(bool(x.any()) for name, x in found.items() if "k_proj.bias" not in name)
    close(infer(model.eval().merge_and_unload(), GIVEN), after["inference"], 1e-7)


def test_an_adapter_that_scales() -> None:
    """IA³ multiplies inputs and outputs."""
    config = peft.IA3Config(target_modules=["k_proj", "v_proj", "linear2"], feedforward_modules=["linear2"])
    model = peft.get_peft_model(small(), config).double().eval()
    close(infer(model, GIVEN), infer(small(), GIVEN))
    randomise(model)
    after = both(model, GIVEN)
    close(after["inference"], after["training"])
    assert not torch.equal(after["inference"], infer(small(), GIVEN))
    assert len(gradients(model, GIVEN)) == 2 * 3


@pytest.mark.parametrize(
    ("task", "cls"),
    [("SEQ_CLS", None), ("TOKEN_CLS", ErnieMForTokenClassification), ("FEATURE_EXTRACTION", ErnieMModel)],
)
def test_the_task_s_wrapper_trains_the_head_as_well(task: str, cls: Any) -> None:
    """peft's classes by task pass `return_dict` and their own arguments on."""
    model = small() if cls is None else small(cls)
    given = batch(type(model))
    wrapped = adapted(["q_proj", "v_proj"], model, task_type=task)
    trained = {name for name, x in wrapped.named_parameters() if x.requires_grad}
    assert ("FEATURE" in task) or any("classifier" in name for name in trained)
    randomise(wrapped)
    before = infer(wrapped, given)
    step(wrapped.train(), given)
    assert not torch.equal(infer(wrapped.eval(), given), before)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_are_saved_and_loaded(tmp_path: Path) -> None:
    """Two of them, one switched for the other, and both switched off."""
    first, second = adapted("q_proj"), adapted("linear1")
    randomise(first)
    randomise(second)
    first.save_pretrained(str(tmp_path / "first"))
    second.save_pretrained(str(tmp_path / "second"))
    model = peft.PeftModel.from_pretrained(small(), str(tmp_path / "first"), adapter_name="first").eval()
    model.load_adapter(str(tmp_path / "second"), adapter_name="second")
    model.double()
    close(infer(model, GIVEN), infer(first, GIVEN), 1e-6)
    model.set_adapter("second")
    close(infer(model, GIVEN), infer(second, GIVEN), 1e-6)
    with model.disable_adapter():
        close(infer(model, GIVEN), infer(small(), GIVEN))


def test_an_adapter_on_the_embeddings_is_saved_with_them(tmp_path: Path) -> None:
    """peft asks `get_input_embeddings` which table that is."""
    model = adapted("word_embeddings")
    randomise(model)
    model.save_pretrained(str(tmp_path), save_embedding_layers=True)
    again = peft.PeftModel.from_pretrained(small(), str(tmp_path)).double().eval()
    close(infer(again, GIVEN), infer(model, GIVEN), 1e-6)

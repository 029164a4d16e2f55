"""Weights: from files, to and from the reference, through state_dicts; and every change takes effect."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rounding import MODEL_BOUND
from torch_models import CLASSES, SMALL, config_of, pair, way

import ernie_m.reference as ernie
from ernie_m.kernels.model import ErnieMModel
from ernie_m.reference.parameters import flatten
from ernie_m.tokenizer import hub

IDS = torch.tensor([[0, 5, 9, 2], [0, 7, 1, 1]])
QKV = "encoder.layers.0.self_attn.self_attn."


def run(model: Any) -> torch.Tensor:
    with way("without kernels"):
        return model(IDS).last_hidden_state


def expected(model: Any) -> np.ndarray:
    """What the reference returns with the model's current weights."""
    return model.to_reference()(IDS.numpy()).last_hidden_state


@pytest.mark.parametrize("cls", CLASSES)
def test_state_dict_is_the_references(cls: Any) -> None:
    """Names (in any order), shapes and values; and it loads back strictly."""
    twin, model = pair(cls, pruned_heads={1: (0,)}, num_attention_heads=2)
    theirs, ours = twin.state_dict(), model.state_dict()
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    fresh = cls(model.config, dtype=torch.float64)
    assert str(fresh.load_state_dict(ours)) == "<All keys matched successfully>"
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, ours[name])
    back = flatten(model.to_reference().parameters)
    for path, array in flatten(twin.parameters).items():
        np.testing.assert_array_equal(back[path], array)


def test_state_dict_holds_the_parameters_themselves() -> None:
    """One name and one storage for each, so that nothing that saves tensors takes two for one."""
    model = pair()[1]
    state, parameters = model.state_dict(keep_vars=True), dict(model.named_parameters())
    assert state.keys() == parameters.keys() and all(state[name] is x for name, x in parameters.items())
    assert len({x.untyped_storage().data_ptr() for x in parameters.values()}) == len(parameters)
    assert model.num_parameters() == model.to_reference().num_parameters()


def test_num_parameters_leaves_out_what_it_is_told_to() -> None:
    """Tables of embeddings, whatever is in their place, and what does not require gradients."""
    model = pair()[1]
    tables = sum(x.numel() for name, x in model.named_parameters() if name.endswith("_embeddings.weight"))
    total = model.num_parameters()
    assert model.num_parameters(exclude_embeddings=True) == total - tables
    model.embeddings.word_embeddings.weight.requires_grad_(False)
    left = total - model.embeddings.word_embeddings.weight.numel()
    assert model.num_parameters(only_trainable=True) == left
    assert model.num_parameters(only_trainable=True, exclude_embeddings=True) == total - tables


def load(model: Any) -> Any:
    model.load_state_dict(pair(seed=5)[1].state_dict())
    return model


def load_and_assign(model: Any) -> Any:
    before = model.embeddings.word_embeddings.weight.data_ptr()
    model.load_state_dict({k: x.clone() for k, x in pair(seed=5)[1].state_dict().items()}, assign=True)
    assert model.embeddings.word_embeddings.weight.data_ptr() != before
    return model


def edit(model: Any) -> Any:
    with torch.no_grad():
        model.encoder.layers[0].self_attn.self_attn.v_proj.weight[3] += 1.0
        model.encoder.layers[1].linear1.bias.mul_(-2.0)
    return model


def edit_through_state_dict(model: Any) -> Any:
    for name in (f"{QKV}q_proj.weight", f"{QKV}k_proj.bias", f"{QKV}v_proj.weight", "pooler.dense.bias"):
        model.state_dict()[name].add_(0.5)
    return model


def replace_data(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.25
    return model


def optimise(model: Any) -> Any:
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    with torch.enable_grad():
        model(IDS).last_hidden_state.square().sum().backward()
    optimiser.step()
    return model


def to_bfloat16_and_back(model: Any) -> Any:
    return model.to(torch.bfloat16).double()


def save_and_load(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(edit(model), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "load_state_dict": load,
    "load_state_dict(assign=True)": load_and_assign,
    "in place": edit,
    "in place, through state_dict()": edit_through_state_dict,
    ".data": replace_data,
    "an optimiser's step": optimise,
    ".to(dtype)": to_bfloat16_and_back,
    "deepcopy": lambda model: edit(copy.deepcopy(model)),
    "pickle": lambda model: edit(pickle.loads(pickle.dumps(model))),
    "torch.save": save_and_load,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_take_effect_in_the_next_call(change: str) -> None:
    """Seen red: a fused copy made together with the model."""
    model = pair()[1]
    before = run(model)
    changed = CHANGES[change](model)
    after = run(changed)
    assert float((after - before).abs().max()) > 1e-3
    np.testing.assert_allclose(after, expected(changed), rtol=0, atol=MODEL_BOUND)


def test_deepcopy_shares_nothing() -> None:
    model = pair()[1]
    before = run(model)
    edit(copy.deepcopy(model))
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_uses_the_checkpoints_names(assign: bool) -> None:
    """Missing, unexpected and wrongly shaped weights, with torch's own messages."""
    model = pair()[1]
    state = {name: x.clone() for name, x in model.state_dict().items()}
    state[f"{QKV}qkv.weight"] = state.pop(f"{QKV}q_proj.weight")
    state[f"{QKV}weight"] = state[f"{QKV}k_proj.extra"] = torch.zeros(1)
    found = model.load_state_dict(state, strict=False, assign=assign)
    assert found.missing_keys == [f"{QKV}q_proj.weight"]
    assert set(found.unexpected_keys) == {f"{QKV}qkv.weight", f"{QKV}weight", f"{QKV}k_proj.extra"}
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state, assign=assign)
    for text in ("Missing key(s)", f'"{QKV}q_proj.weight"', "Unexpected key(s)", f'"{QKV}qkv.weight"'):
        assert text in str(caught.value)
    wrong = {**model.state_dict(), f"{QKV}v_proj.bias": torch.zeros(7)}
    with pytest.raises(RuntimeError, match=r"size mismatch for encoder\.layers\.0\.self_attn\.self_attn\.v_proj\.bias"):
        model.load_state_dict(wrong, assign=assign)


def test_load_state_dict_assign_adopts_the_dtype() -> None:
    """Also on the meta device."""
    state = pair(dtype=np.float32)[1].state_dict()
    model = ErnieMModel(config_of(), device="meta")
    model.requires_grad_(False)
    model.load_state_dict({name: x.to(torch.bfloat16) for name, x in state.items()}, assign=True)
    assert {(x.dtype, x.device.type, x.requires_grad) for x in model.parameters()} == {(torch.bfloat16, "cpu", False)}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_from_pretrained_reads_what_the_reference_reads(cls: Any, dtype: torch.dtype | None, tmp_path: Path) -> None:
    twin = pair(cls, dtype=np.float32)[0]
    twin.save_pretrained(tmp_path)
    model = cls.from_pretrained(tmp_path, dtype=dtype, device="cpu")
    assert model.dtype == (dtype or torch.float32) and not model.training and model.device.type == "cpu"
    for name, array in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], torch.tensor(array).to(model.dtype))
    # The model owns what it loaded: changing it leaves the file as it is.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    again = cls.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], torch.tensor(array)) for name, array in twin.state_dict().items())


def test_a_model_without_a_pooler_is_saved_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It loads with a new pooler; the reference's model, which has one, cannot be made of it. Seen red: not saved."""
    whole = pair(dtype=np.float32)[1]
    model = type(whole)(whole.config, add_pooling_layer=False)
    model.load_state_dict({name: x for name, x in whole.state_dict().items() if not name.startswith("pooler.")})
    whole.pooler = None
    for i, one in enumerate((model, whole)):
        one.save_pretrained(tmp_path / str(i))
        again, report = type(whole).from_pretrained(tmp_path / str(i), strict=False)
        assert report.initialised == ("pooler.dense.weight", "pooler.dense.bias")
        assert all(torch.equal(again.state_dict()[name], x) for name, x in model.state_dict().items())
        with pytest.raises(ValueError, match=r"^parameters: pooler\.bias: expected shape \(16,\), got none$"):
            one.to_reference()
    with pytest.raises(ValueError, match=r"extra|pooler"):
        model.save_pretrained(tmp_path / "2", state_dict=pair(dtype=np.float32)[1].state_dict())


@pytest.mark.parametrize("wide", [None, "pooler.dense.weight"])
def test_save_pretrained_keeps_every_digit_of_a_model_with_two_dtypes(wide: str | None, tmp_path: Path) -> None:
    model = pair(dtype=np.float32)[1].to(torch.bfloat16)
    state = {name: x.float() * 1.001 if name == wide else x for name, x in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    read = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {x.dtype for x in read.values()} == {torch.float32 if wide else torch.bfloat16}
    for name, x in state.items():
        assert torch.equal(read[name].float(), x.float()), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda state: {**state, "pooler.dense.bias": torch.zeros(3)},
            r"pooler\.bias: expected shape \(16,\), got \(3,\)",
        ),
        (
            lambda state: {k: x for k, x in state.items() if k != "embeddings.word_embeddings.weight"},
            r"state_dict: expected all weights of the model, got none for embeddings\.word_embeddings\.weight$",
        ),
        (lambda state: {k: x for k, x in state.items() if ".1.norm2." not in k}, r"1\.norm2\.weight and 1 more$"),
        (lambda state: {k: x for k, x in state.items() if k != "pooler.dense.bias"}, r"none for pooler\.dense\.bias$"),
        (lambda state: {}, "got none for embeddings.word_embeddings.weight and"),
        (lambda state: 5, "state_dict: expected tensors by name, got int"),
        (lambda state: {"x": 1}, "state_dict: x: expected a tensor of floats, got int"),
        (lambda state: {k: x.numpy() for k, x in state.items()}, "weight: expected a tensor of floats, got ndarray"),
        (lambda state: {k: x.int() for k, x in state.items()}, r"expected a tensor of floats, got torch\.int32"),
        (lambda state: {**state, "extra": torch.zeros(3)}, "extra: not the name of a weight"),
    ],
)
def test_save_pretrained_refuses_weights_that_do_not_fit(change: Any, says: str, tmp_path: Path) -> None:
    model = pair(dtype=np.float32)[1]
    with pytest.raises((ValueError, TypeError), match=says):
        model.save_pretrained(tmp_path / "new", state_dict=change(model.state_dict()))
    assert not (tmp_path / "new").exists()


def test_from_pretrained_reads_paddles_directories(fixtures: Path) -> None:
    folders = [path.parent for path in (fixtures / "paddle_tiny").rglob("model_state.pdparams")]
    assert folders
    for folder in folders:
        ours, theirs = (room.from_pretrained(folder) for room in (ErnieMModel, ernie.ErnieMModel))
        for name, array in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], torch.tensor(array))


def test_from_pretrained_loads_a_repository_at_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hub` itself is tested with the tokenizer. Only a local directory is what `local_files_only` asks for."""
    twin = pair(dtype=np.float32)[0]
    twin.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(hub, "_snapshot", lambda _, *asked_for: asked.append(asked_for) or tmp_path)
    model = ErnieMModel.from_pretrained("some/name", revision="v1")
    assert asked == [("some/name", "v1", True)]
    for name, array in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], torch.tensor(array))
    ErnieMModel.from_pretrained(tmp_path, local_files_only=True)
    with pytest.raises(TypeError, match="local_files_only=True is not supported: set HF_HUB_OFFLINE=1"):
        ErnieMModel.from_pretrained("some/name", local_files_only=True)
    # Of thousands of numbers, only the first are shown.
    with pytest.raises(TypeError, match=r"state_dict=\{'a': tensor.{,70} is not supported: load the model, then"):
        ErnieMModel.from_pretrained(tmp_path, state_dict={"a": torch.arange(999)})
    with pytest.raises(ValueError, match="as a local path has no revisions, got 'main'"):
        ErnieMModel.from_pretrained(tmp_path, revision="main")
    assert len(asked) == 1


def test_from_pretrained_has_the_references_options_and_errors(tmp_path: Path) -> None:
    for room in (ErnieMModel, ernie.ErnieMModel):
        with pytest.raises(FileNotFoundError):
            room.from_pretrained(tmp_path)
    twin = pair(dtype=np.float32)[0]
    twin.save_pretrained(tmp_path)
    found = []
    for room in (ErnieMModel, ernie.ErnieMModel):
        with pytest.raises(ValueError) as caught:
            room.from_pretrained(tmp_path, intermediate_size=30)
        found.append(str(caught.value))
    assert found[0] == found[1] and "linear1.weight" in found[0]
    ours, report = ErnieMModel.from_pretrained(tmp_path, strict=False, seed=3, intermediate_size=30)
    theirs, same = ernie.ErnieMModel.from_pretrained(tmp_path, strict=False, seed=3, intermediate_size=30)
    assert report == same
    for name, array in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], torch.tensor(array))
    with pytest.raises(TypeError, match=r"dtype: expected one of torch\.float32, .*, got torch\.int8"):
        ErnieMModel.from_pretrained(tmp_path, dtype=torch.int8)


def test_an_empty_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the reference."""
    monkeypatch.chdir(tmp_path)
    model = pair(dtype=np.float32)[1]
    for call in (model.save_pretrained, ErnieMModel.from_pretrained):
        with pytest.raises(ValueError, match=r"^directory: expected a path, .*, got ''$"):
            call("")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("cls", CLASSES)
def test_from_config_has_the_references_weights(cls: Any) -> None:
    twin, model = (room.from_config(config_of(), seed=7) for room in (cls.twin, cls))
    assert not model.training
    for name, array in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], torch.tensor(array))


def test_from_reference_requires_the_same_class() -> None:
    twin = pair(CLASSES[1])[0]
    head = "ernie_m.reference.heads.pooled.ErnieMForSequenceClassification"
    text = f"model: expected ernie_m.reference.ErnieMModel, got {head}"
    with pytest.raises(TypeError, match=text):
        ErnieMModel.from_reference(twin)
    half = ErnieMModel.from_reference(pair()[0], dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.to_reference().dtype == np.float32


def test_a_new_model_is_initialised_as_the_configuration_says() -> None:
    """Drawn from torch's generator: mean and deviation within 5 standard errors, except a row of 0; in train()."""
    torch.manual_seed(0)
    config = config_of(vocab_size=500, **{**SMALL, "hidden_size": 64, "num_attention_heads": 4})
    model = ErnieMModel(config)
    assert model.training
    for name, x in model.state_dict().items():
        if name.endswith("bias"):
            assert not x.any()
        elif "norm" in name:
            assert bool((x == 1).all())
        else:
            n = x.numel()
            assert abs(float(x.mean())) < 5 * config.initializer_range / n**0.5
            assert abs(float(x.std()) / config.initializer_range - 1) < 5 / (2 * n) ** 0.5 + config.hidden_size / n
    for table in (model.embeddings.word_embeddings, model.embeddings.position_embeddings):
        assert not table.weight[config.pad_token_id].any() and bool(table.weight[2].all())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_base_model_is_the_encoder(cls: Any) -> None:
    """Under the name that transformers' users and libraries ask for."""
    model = pair(cls)[1]
    assert model.base_model_prefix == "ernie_m"
    assert model.base_model is (model if cls is CLASSES[0] else model.ernie_m)
    assert type(model.base_model) is ErnieMModel


def test_a_model_is_built_from_our_configuration() -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(TypeError, match=r"config: expected ernie_m\.reference\.ErnieMConfig, got .*from_dict"):
        ErnieMModel(Config())
    with pytest.raises(TypeError, match=r"config: expected ernie_m\.reference\.ErnieMConfig, got builtins\.dict$"):
        ErnieMModel({"hidden_size": 16})

"""Prefixes and dictionaries around the weights: whatever training programs add, the same model is loaded.

Seen red: one prefix taken off instead of all; `encoder.` taken off without `ernie_m.` put in its place; the uniformity
check left out; the orientation taken from the names alone; `model_state_dict` not looked into.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import ernie_m.reference as ernie
from ernie_m.reference.checkpoint import load_parameters, open_checkpoint
from ernie_m.reference.checkpoint.conversion import convert
from ernie_m.reference.checkpoint.names import HUGGINGFACE, PADDLE, PREFIX, file_name, is_transposed
from ernie_m.reference.checkpoint.wrappers import MODULES, OUTERMOST, plain_names, weights_in
from ernie_m.reference.cli.program import main
from ernie_m.reference.parameters import flatten

EXTRACTION = ernie.ErnieMForInformationExtraction
MODELS = [random_model(cls, dtype=np.float32, num_hidden_layers=1, intermediate_size=96) for cls in CLASSES]
CHAINS = st.lists(st.sampled_from(OUTERMOST), max_size=3).map(lambda parts: "".join(f"{part}." for part in parts))
FORMATS = ("model.safetensors", "pytorch_model.bin", "model_state.pdparams")


def state_of(model: Any, format: str, transposed: bool | None = None) -> dict[str, np.ndarray]:
    """A model's weights under one format's names; `transposed` linear weights, by default if the format has them."""
    prefix = "" if type(model) is ernie.ErnieMModel else PREFIX
    turned = format == PADDLE if transposed is None else transposed
    return {
        file_name(path, format, prefix): np.ascontiguousarray(x.T if turned and is_transposed(path, PADDLE) else x)
        for path, x in flatten(model.parameters).items()
    }


def early(state: dict[str, Any]) -> dict[str, Any]:
    """The names of the early UIEM class, `encoder.` in place of `ernie_m.`; of a bare model inside another one."""
    bare = not any(name.startswith(PREFIX) for name in state)
    return {("encoder." if bare else "") + re.sub("^ernie_m[.]", "encoder.", name): x for name, x in state.items()}


def write(folder: Path, model: Any, file: str, state: dict[str, Any], *entries: str) -> Path:
    """A checkpoint directory whose weights are in `file`, inside a dictionary for each of these entries."""
    folder.mkdir(exist_ok=True)
    for name in FORMATS:
        (folder / name).unlink(missing_ok=True)
    config = model.config.replace(architectures=(type(model).__name__,))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
        return folder
    content: Any = state
    if file.endswith(".bin"):
        torch = pytest.importorskip("torch", reason="torch is not installed: .bin files cannot be read")
        content = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
    for entry in entries:
        content = {"epoch": 3, entry: content}
    if file.endswith(".bin"):
        torch.save(content, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps(content, 4))
    return folder


def assert_same(found: Any, model: Any) -> None:
    for path, array in flatten(model.parameters).items():
        np.testing.assert_array_equal(flatten(found.parameters)[path], array)


@settings(max_examples=60)
@given(
    model=st.sampled_from(MODELS),
    file=st.sampled_from(FORMATS),
    chain=CHAINS,
    is_early=st.booleans(),
    entries=st.lists(st.sampled_from(["state_dict", "model", "model_state_dict"]), max_size=2),
)
def test_wrapped_checkpoints_load_and_convert(
    model: Any, file: str, chain: str, is_early: bool, entries: list[str], tmp_path_factory: Any
) -> None:
    """Into all six classes, from all formats; `convert` writes the names of an unwrapped checkpoint."""
    folder = tmp_path_factory.mktemp("wrapped")
    state = state_of(model, PADDLE if file.endswith(".pdparams") else HUGGINGFACE)
    plain = {PREFIX + name for name in state} if is_early and type(model) is ernie.ErnieMModel else set(state)
    state = {chain + name: array for name, array in (early(state) if is_early else state).items()}
    cls = type(model)
    source = write(folder / "old", model, file, state, *entries)
    assert set(open_checkpoint(source).tensors) == plain
    loaded, report = cls.from_pretrained(source, strict=False)
    assert not report and not report.initialised
    assert_same(loaded, model)
    convert(source, folder / "new")
    assert set(open_checkpoint(folder / "new").tensors) == set(model.state_dict())
    assert_same(cls.from_pretrained(folder / "new"), model)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_torch_files_converted_from_paddle_load_in_either_orientation(
    model: Any, transposed: bool, tmp_path: Path
) -> None:
    """Paddle's names; linear weights as Paddle has them, or turned for torch. Square ones would load either way."""
    folder = write(tmp_path, model, "pytorch_model.bin", early(state_of(model, PADDLE, transposed)))
    assert_same(type(model).from_pretrained(folder), model)


def test_parts_of_a_model_may_be_wrapped(tmp_path: Path) -> None:
    """A compiled encoder in a model that is not; each layer wrapped; a moving average's counter beside the weights."""
    model = MODELS[1]
    for old, new in [
        (PREFIX, f"{PREFIX}_orig_mod."),
        ("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
        ("dense", "dense.module"),
    ]:
        state = {name.replace(old, new): array for name, array in model.state_dict().items()}
        assert state.keys() != model.state_dict().keys()
        assert_same(type(model).from_pretrained(write(tmp_path, model, FORMATS[0], state)), model)
    averaged = {f"module.{name}": array for name, array in model.state_dict().items()}
    averaged["n_averaged"] = np.array(3)
    assert_same(type(model).from_pretrained(write(tmp_path, model, FORMATS[0], averaged)), model)


@settings(max_examples=40)
@given(data=st.data(), chain=CHAINS.filter(bool))
def test_a_prefix_of_only_some_weights_is_ambiguous(data: st.DataObject, chain: str, tmp_path_factory: Any) -> None:
    model = data.draw(st.sampled_from(MODELS))
    state = model.state_dict()
    some = data.draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=len(state) - 1, unique=True))
    mixed = {(chain if name in some else "") + name: array for name, array in state.items()}
    folder = write(tmp_path_factory.mktemp("mixed"), model, FORMATS[0], mixed)
    message = re.escape(f"{folder}: names of weights: ambiguous: expected the same prefix before all weights, got ")
    with pytest.raises(ValueError, match=rf"^{message}no prefix in .* prefix {re.escape(chain)} in {len(some)} \(such"):
        type(model).from_pretrained(folder, strict=False)


@settings(max_examples=40)
@given(data=st.data())
def test_the_early_prefix_on_only_some_weights_is_ambiguous(data: st.DataObject) -> None:
    state = state_of(MODELS[5], HUGGINGFACE)
    encoder = sorted(name for name in state if name.startswith(PREFIX))
    some = data.draw(st.lists(st.sampled_from(encoder), min_size=1, max_size=len(encoder) - 1, unique=True))
    other = data.draw(st.sampled_from(["", PREFIX]))
    for change in (
        lambda name: name.replace(PREFIX, "encoder." if name in some else other),
        lambda name: name if name in some else name.removeprefix(PREFIX),
    ):
        names = [change(name) if name in encoder else name for name in state]
        if other == PREFIX and names == list(state):
            continue
        with pytest.raises(ValueError, match=r"^ambiguous: expected the same prefix .*, got .* \(such as .*\), "):
            plain_names(names)


def test_two_weights_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^encoder\.module\.layers\.0\.x and .*: expected one weight encoder\.layers"):
        plain_names(["encoder.layers.0.x", "encoder.module.layers.0.x"])


@given(st.lists(st.text(st.sampled_from("ab.model_"), max_size=12), unique=True))
def test_plain_names_of_any_names(names: list[str]) -> None:
    """Every name is kept once, or there is one error; names without wrappers are unchanged."""
    try:
        found = plain_names(names)
    except ValueError:
        return
    assert sorted(found.values()) == sorted(names)
    for plain, name in found.items():
        assert plain == name or set(name.split(".")) & {*OUTERMOST, *MODULES}


def test_weights_in_finds_the_innermost_dictionary() -> None:
    state = {"w": 1}
    assert weights_in(state) is state and weights_in(3) == 3
    assert weights_in({"model": {"epoch": 2, "state_dict": state}, "optimizer": {}}) is state
    assert weights_in({"model": 3}) == {"model": 3}
    with pytest.raises(ValueError, match=r"under one key, got dictionaries under state_dict and model$"):
        weights_in({"model": state, "state_dict": state})


def test_inspect_shows_the_stored_names_and_compares_the_plain_ones(tmp_path: Path, capsys: Any) -> None:
    model = MODELS[5]
    state = {f"module.{name}": array for name, array in early(state_of(model, PADDLE)).items()}
    folder = write(tmp_path, model, FORMATS[2], state)
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in state)
    assert f"{len(state)} names are read without their prefix: module.encoder.embeddings." in out
    del state["module.linear_start.bias"]
    write(tmp_path, model, FORMATS[2], state)
    assert main(["inspect", str(folder)]) == 1
    assert "\nmissing: linear_start.bias\n" in capsys.readouterr().out


def test_early_configurations_name_the_encoder_by_its_argument(tmp_path: Path) -> None:
    """`model_config.json` beside the weights, as PaddleNLP wrote both; the encoder by position or by name."""
    model = MODELS[5]
    fields = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    encoder = {"init_class": "ErnieMModel", **{name: getattr(model.config, name) for name in fields}}
    folder = write(tmp_path, model, FORMATS[2], early(state_of(model, PADDLE)))
    (folder / "config.json").unlink()
    for record in ({"init_args": [encoder]}, {"encoding_model": encoder}, {"ernie_m": encoder}):
        (folder / "model_config.json").write_text(json.dumps({**record, "init_class": "UIEM"}))
        assert_same(EXTRACTION.from_pretrained(folder, default_mask="cls_token"), model)
        assert main(["inspect", str(folder)]) == 0


def test_load_parameters_ignores_mismatched_sizes_on_request(tmp_path: Path, capsys: Any) -> None:
    """Another number of labels: the head is newly initialised and reported; anything else is still an error."""
    cls, model = ernie.ErnieMForTokenClassification, MODELS[3]
    folder = write(tmp_path, model, FORMATS[0], dict(model.state_dict()))
    config = model.config.replace(num_labels=5)
    shapes = cls.shapes(config)
    with pytest.raises(ValueError, match=r"wrong shape: classifier\.weight: expected \(5, 24\), got \(2, 24\)"):
        load_parameters(folder, config, shapes)
    for strict in (True, False):
        arrays, report = load_parameters(folder, config, shapes, strict=strict, seed=7, ignore_mismatched_sizes=True)
        assert [name for name, _, _ in report.mismatched] == ["classifier.weight", "classifier.bias"]
        assert "from seed 7: classifier.weight (expected (5, 24), stored (2, 24)), " in capsys.readouterr().err
        assert arrays["head.classifier.weight"].shape == (5, 24) and arrays["head.classifier.weight"].std() > 0
        for path, array in flatten(model.parameters).items():
            assert path.startswith("head.") or np.array_equal(arrays[path], array)
    state = {name: array for name, array in model.state_dict().items() if not name.endswith("norm1.bias")}
    with pytest.raises(ValueError, match=r"match this model:\nmissing: ernie_m\.encoder\.layers\.0\.norm1\.bias$"):
        load_parameters(write(tmp_path, model, FORMATS[0], state), config, shapes, ignore_mismatched_sizes=True)

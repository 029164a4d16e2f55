"""Checkpoint directories of every format: what loads, bit for bit, and the errors for what does not."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, PUBLISHED, random_model
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import ernie_m.reference as ernie
from ernie_m.reference.array import round_to_bfloat16, widen_bfloat16
from ernie_m.reference.checkpoint import open_checkpoint, read_config
from ernie_m.reference.checkpoint import writing as checkpoint_write
from ernie_m.reference.checkpoint.conversion import convert
from ernie_m.reference.checkpoint.names import PADDLE, file_name, is_transposed
from ernie_m.reference.checkpoint.reading import MOST_LINES, LoadReport, is_extraction
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.parameters import flatten
from ernie_m.tokenizer import new_files

BY_FIXTURE = dict(zip(("model", "seqcls", "mc", "tokcls", "qa", "uiem"), PUBLISHED, strict=True))
SEQUENCE, TOKEN = ernie.ErnieMForSequenceClassification, ernie.ErnieMForTokenClassification
Q_WEIGHT = "ernie_m.encoder.layers.1.self_attn.self_attn.q_proj.weight"


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    return flatten(model.parameters)


def assert_same(one: Any, other: Any) -> None:
    """Same weights, in order, dtype and value."""
    a, b = arrays_of(one), arrays_of(other)
    assert list(a) == list(b)
    for path in a:
        assert a[path].dtype == b[path].dtype
        np.testing.assert_array_equal(a[path], b[path])


def write_config(folder: Path, model: Any) -> None:
    values = model.config.replace(architectures=(type(model).__name__,)).to_dict()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))


def write_safetensors_of(folder: Path, state: dict[str, np.ndarray], model: Any) -> Path:
    """A directory with these weights; the configuration is the model's."""
    write_config(folder, model)
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, folder / "model.safetensors")
    return folder


def paddle_state(model: Any) -> dict[str, np.ndarray]:
    """The weights with Paddle's names and orientation."""
    prefix = "" if type(model) is ernie.ErnieMModel else "ernie_m."
    return {
        file_name(path, PADDLE, prefix): array.T if is_transposed(path, PADDLE) else array
        for path, array in arrays_of(model).items()
    }


def write_paddle(folder: Path, model: Any, protocol: int = 4, **more: Any) -> Path:
    write_config(folder, model)
    (folder / "model_state.pdparams").write_bytes(pickle.dumps({**paddle_state(model), **more}, protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("cls", CLASSES)
def test_from_pretrained_of_paddle(cls: Any, protocol: int, tmp_path: Path) -> None:
    """Different names and transposed weights; square weights would hide a missing transposition."""
    model = random_model(cls, dtype=np.float32, intermediate_size=96)
    ours = cls.from_pretrained(write_paddle(tmp_path / "p", model, protocol))
    assert_same(ours, model)
    assert all(array.flags.c_contiguous for array in arrays_of(ours).values())


def test_a_file_of_paddle_is_known_by_its_suffix_too(tmp_path: Path) -> None:
    """So that what it lacks is named as Paddle does: the names of attention tell the formats apart."""
    model = random_model(dtype=np.float32)
    state = {name: x for name, x in paddle_state(model).items() if ".self_attn." not in name}
    write_config(tmp_path, model)
    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps(state, 4))
    with pytest.raises(ValueError, match=r"encoder\.layers\.1\.self_attn\.q_proj\.weight"):
        ernie.ErnieMModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("bf16", [False, True])
def test_from_pretrained_of_paddle_half_precision(bf16: bool, tmp_path: Path) -> None:
    """Loaded as float32 exactly, or as requested. Paddle stores bfloat16 as uint16."""
    model = random_model(dtype=np.float32, intermediate_size=96)
    state = paddle_state(model)
    write_config(tmp_path, model)
    halves = {name: round_to_bfloat16(x) if bf16 else x.astype(np.float16) for name, x in state.items()}
    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps(halves, 4))
    assert {tensor.dtype for tensor in open_checkpoint(tmp_path).tensors.values()} == {
        "bfloat16" if bf16 else "float16"
    }
    for dtype, kind in ((None, np.float32), (np.float64, np.float64), (np.float16, np.float16)):
        loaded = ernie.ErnieMModel.from_pretrained(tmp_path, dtype=dtype)
        assert loaded.dtype == kind
        found = paddle_state(loaded)
        for name, half in halves.items():
            wide = widen_bfloat16(half) if bf16 else half
            np.testing.assert_array_equal(found[name], wide.astype(kind))


@pytest.mark.parametrize("path", ["word_embeddings", "layers.1.linear1.bias"])
def test_from_pretrained_of_several_dtypes_has_the_widest(path: str, tmp_path: Path) -> None:
    model = random_model(dtype=np.float32, intermediate_size=96)
    name, exact = file_name(path, PADDLE), np.random.default_rng(0).standard_normal(arrays_of(model)[path].shape)
    loaded = ernie.ErnieMModel.from_pretrained(write_paddle(tmp_path, model, **{name: exact}))
    assert {array.dtype for array in arrays_of(loaded).values()} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(arrays_of(loaded)[path], exact)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "complex64", object(), 3])
def test_from_pretrained_refuses_other_dtypes(dtype: Any, tmp_path: Path) -> None:
    random_model(dtype=np.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^dtype: expected float16, float32 or float64, got "):
        ernie.ErnieMModel.from_pretrained(tmp_path, dtype=dtype)


def split(state: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    names = list(state)
    return [{name: state[name] for name in names[i::3]} for i in range(3)]


def test_from_pretrained_of_safetensors_shards(tmp_path: Path) -> None:
    """Seen red: an index with a byte order mark, as some editors write, was refused."""
    model = random_model(SEQUENCE, dtype=np.float32)
    write_config(tmp_path, model)
    weight_map = {}
    for i, shard in enumerate(split(model.state_dict())):
        save_file(shard, tmp_path / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(shard, f"model-{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for encoding in ("utf-8-sig", "utf-8"):
        index.write_text(json.dumps({"weight_map": weight_map}), encoding)
        assert_same(SEQUENCE.from_pretrained(tmp_path), model)
    (tmp_path / "model-1.safetensors").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"index\.json: names the file 'model-1\.safetensors', which does not"):
        SEQUENCE.from_pretrained(tmp_path)
    (tmp_path / "model-1.safetensors").write_bytes((tmp_path / "model-0.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"model-1\.safetensors: .* is also in another file of this checkpoint"):
        SEQUENCE.from_pretrained(tmp_path)


def test_from_pretrained_of_torch_files_and_shards(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: .bin files cannot be read")
    model = random_model(SEQUENCE, dtype=np.float32)
    state = {name: torch.tensor(array) for name, array in model.state_dict().items()}
    write_config(tmp_path, model)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(SEQUENCE.from_pretrained(tmp_path), model)
    torch.save({name: x.to(torch.bfloat16) for name, x in state.items()}, tmp_path / "pytorch_model.bin")
    rounded = SEQUENCE.from_pretrained(tmp_path)
    assert rounded.dtype == np.float32
    for name, array in rounded.state_dict().items():
        np.testing.assert_array_equal(array, state[name].to(torch.bfloat16).float().numpy())
    (tmp_path / "pytorch_model.bin").unlink()
    for i, shard in enumerate(split(state)):
        torch.save(shard, tmp_path / f"pytorch_model-{i}.bin")
    weight_map = {name: f"pytorch_model-{i}.bin" for i, shard in enumerate(split(state)) for name in shard}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(SEQUENCE.from_pretrained(tmp_path), model)


def test_from_pretrained_refuses_other_torch_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: .bin files cannot be read")
    write_config(tmp_path, random_model())
    path = tmp_path / "pytorch_model.bin"
    for content, got in (
        ([torch.zeros(1)], "list"),
        ({"state_dict": [torch.zeros(1)]}, "list under 'state_dict'"),
        ({"state_dict": {"w": 3}}, "int under 'w'"),
        ({"w": 3}, "int under 'w'"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=rf"pytorch_model\.bin: expected a dictionary of tensors, got {got}$"):
            ernie.ErnieMModel.from_pretrained(tmp_path)
    torch.save({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected plain tensors"):
        ernie.ErnieMModel.from_pretrained(tmp_path)
    good = tmp_path / "good"
    torch.save({"w": torch.zeros(9)}, good)
    for data in (b"", b"PK\x03\x04", good.read_bytes()[:-40], b"\x80\x02}q\x00.", b"text"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"pytorch_model\.bin: "):
            ernie.ErnieMModel.from_pretrained(tmp_path)


def test_from_pretrained_of_torch_files_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, random_model())
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pytorch_model\.bin: reading a \.bin file needs torch: pip install torch"):
        ernie.ErnieMModel.from_pretrained(tmp_path)


def test_from_pretrained_prefers_safetensors(tmp_path: Path) -> None:
    one, two = random_model(seed=1, dtype=np.float32), random_model(seed=2, dtype=np.float32)
    write_paddle(tmp_path, one)
    two.save_pretrained(tmp_path, overwrite=True)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert_same(ernie.ErnieMModel.from_pretrained(tmp_path), two)


def test_from_pretrained_lists_all_mismatches(tmp_path: Path) -> None:
    """One error lists missing, unexpected and wrongly shaped weights; with `strict=False`, a report does."""
    model = random_model(SEQUENCE, dtype=np.float32)
    state = dict(model.state_dict())
    missing = [name for name in state if name.endswith("linear2.weight")]
    for name in missing:
        del state[name]
    state["ernie_m.encoder.layers.7.norm1.weight"] = state["bert.weight"] = np.zeros(3, np.float32)
    state[Q_WEIGHT] = np.zeros((24, 25), np.float32)
    write_safetensors_of(tmp_path, state, model)
    with pytest.raises(ValueError) as caught:
        SEQUENCE.from_pretrained(tmp_path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{tmp_path}: the weights do not match this model:"
    assert sorted(lines) == sorted(
        [
            *(f"missing: {name}" for name in missing),
            "unexpected: bert.weight",
            "unexpected: ernie_m.encoder.layers.7.norm1.weight",
            f"wrong shape: {Q_WEIGHT}: expected (24, 24), got (24, 25)",
        ]
    )
    loaded, report = SEQUENCE.from_pretrained(tmp_path, strict=False, seed=5)
    assert report and report.format == "huggingface" and report.initialised == ()
    assert sorted(report.missing) == sorted(missing)
    assert sorted(report.unexpected) == ["bert.weight", "ernie_m.encoder.layers.7.norm1.weight"]
    assert report.mismatched == ((Q_WEIGHT, (24, 24), (24, 25)),)
    again, _ = SEQUENCE.from_pretrained(tmp_path, strict=False, seed=5)
    assert_same(loaded, again)
    for path, array in arrays_of(loaded).items():
        new = path.endswith("linear2.weight") or path == "layers.1.q_proj.weight"
        assert np.array_equal(array, arrays_of(model)[path]) != new
        assert not new or array.std() > 0


def test_from_pretrained_strict_false_of_a_complete_checkpoint(tmp_path: Path, capsys: Any) -> None:
    model = random_model(SEQUENCE, dtype=np.float32)
    model.save_pretrained(tmp_path)
    loaded, report = SEQUENCE.from_pretrained(tmp_path, strict=False)
    assert not report and str(report) == "" and capsys.readouterr().err == ""
    assert_same(loaded, model)


def test_from_pretrained_reports_shapes_as_in_paddles_file(tmp_path: Path) -> None:
    model = random_model(dtype=np.float32, intermediate_size=96)
    write_paddle(tmp_path, model, **{"encoder.layers.0.linear1.weight": np.zeros((96, 24), np.float32)})
    message = r"wrong shape: encoder\.layers\.0\.linear1\.weight: expected \(24, 96\), got \(96, 24\)"
    with pytest.raises(ValueError, match=message):
        ernie.ErnieMModel.from_pretrained(tmp_path)


def test_from_pretrained_refuses_a_partial_head(tmp_path: Path) -> None:
    """A whole head or pooler may be absent. Red if any single weight of it may."""
    model = random_model(ernie.ErnieMForInformationExtraction, dtype=np.float32)
    for gone in ("linear_end.bias", "linear_start.weight"):
        state = {name: array for name, array in model.state_dict().items() if name != gone}
        folder = write_safetensors_of(tmp_path / gone, state, model)
        with pytest.raises(ValueError, match=f"missing: {gone}$"):
            type(model).from_pretrained(folder)
    model = random_model(SEQUENCE, dtype=np.float32)
    gone = "ernie_m.pooler.dense.bias"
    state = {name: array for name, array in model.state_dict().items() if name != gone}
    with pytest.raises(ValueError, match=f"missing: {gone}$"):
        SEQUENCE.from_pretrained(write_safetensors_of(tmp_path / "pooler", state, model))


@pytest.mark.parametrize("cls", CLASSES[1:])
@pytest.mark.parametrize("paddle", [False, True])
def test_from_pretrained_initialises_an_absent_head(cls: Any, paddle: bool, tmp_path: Path, capsys: Any) -> None:
    bare = random_model(dtype=np.float32, intermediate_size=96)
    if paddle:
        write_paddle(tmp_path, bare)
    else:
        bare.save_pretrained(tmp_path)
    loaded, report = cls.from_pretrained(tmp_path, strict=False)
    head = {path for path in arrays_of(loaded) if path.startswith(("head.", "prediction."))}
    note = capsys.readouterr().err
    assert "initialised from seed 0" in note and not report and len(report.initialised) == len(head)
    assert all(name in note for name in report.initialised) and note.count("\n") == 1
    for path, array in arrays_of(loaded).items():
        if path not in head:
            np.testing.assert_array_equal(array, arrays_of(bare)[path])


@pytest.mark.parametrize("cls", CLASSES[1:])
def test_from_pretrained_of_a_head_into_the_bare_model(cls: Any, tmp_path: Path, capsys: Any) -> None:
    """A pooler that the file's class lacks is initialised from the seed, with a note."""
    model = random_model(cls, dtype=np.float32)
    model.save_pretrained(tmp_path)
    bare = ernie.ErnieMModel.from_pretrained(tmp_path)
    note = capsys.readouterr().err
    has_pooler = model.parameters.pooler is not None
    assert ("pooler.dense.weight" in note and "initialised from seed 0" in note) != has_pooler
    assert (note == "") == has_pooler
    for path, array in arrays_of(bare).items():
        if has_pooler or not path.startswith("pooler"):
            np.testing.assert_array_equal(array, arrays_of(model)[path])


@pytest.mark.parametrize("name", BY_FIXTURE)
def test_from_pretrained_of_paddle_fixtures_knows_the_mask_of_uie_m(name: str, fixtures: Path, capsys: Any) -> None:
    """Token classification and question answering files hold a pooler too, which is silently ignored."""
    folder = fixtures / "paddle_tiny" / name
    model = BY_FIXTURE[name].from_pretrained(folder)
    note = capsys.readouterr().err
    assert model.config.default_mask == ("cls_token" if name == "uiem" else "pad_token")
    assert (note.count("\n") == 1 and 'default_mask="cls_token"' in note) if name == "uiem" else note == ""
    for mask in ("cls_token", "pad_token"):
        assert BY_FIXTURE[name].from_pretrained(folder, default_mask=mask).config.default_mask == mask
    assert capsys.readouterr().err == ""
    names = open_checkpoint(folder).tensors
    assert any(stored.endswith("pooler.dense.weight") for stored in names)


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("config.json", {}, "cls_token"),
        ("config.json", {"architectures": ["ErnieMModel"]}, "cls_token"),
        ("config.json", {"architectures": None}, "cls_token"),
        ("model_config.json", {"init_class": "UIEM"}, "cls_token"),
        ("config.json", {"default_mask": "pad_token"}, "pad_token"),
    ],
)
def test_uie_m_is_recognised_by_its_weights_whatever_its_configuration_says(
    file: str, changes: dict[str, Any], expected: str, fixtures: Path, tmp_path: Path
) -> None:
    """For every class that loads it, and after conversion; unless the file names a mask."""
    source = fixtures / "paddle_tiny" / "uiem"
    shutil.copy(source / "model_state.pdparams", tmp_path)
    values = json.loads((source / "config.json").read_text())
    if file == "model_config.json":
        values = {name: value for name, value in values.items() if name not in ("architectures", "model_type")}
    (tmp_path / file).write_text(json.dumps(values | changes))
    assert read_config(tmp_path).default_mask == expected
    assert read_config(tmp_path, num_labels=5).num_labels == 5
    for cls in (ernie.ErnieMModel, ernie.ErnieMForInformationExtraction):
        assert cls.from_pretrained(tmp_path).config.default_mask == expected
    convert(tmp_path, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["default_mask"] == expected
    assert read_config(tmp_path / "new").default_mask == expected


@pytest.mark.parametrize("lacking", ["linear_start.weight", "linear_end.weight"])
def test_half_of_the_head_of_uie_m_does_not_make_it_one(lacking: str, fixtures: Path) -> None:
    stored = {*open_checkpoint(fixtures / "paddle_tiny" / "uiem").tensors}
    config = ErnieMConfig(architectures=("ErnieMModel",))
    assert is_extraction(config, stored) and not is_extraction(config, stored - {lacking})


def test_the_default_mask_is_only_for_paddle(tmp_path: Path, capsys: Any) -> None:
    cls = ernie.ErnieMForInformationExtraction
    random_model(cls, dtype=np.float32).save_pretrained(tmp_path)
    assert cls.from_pretrained(tmp_path).config.default_mask == "pad_token"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("paddle", [False, True])
def test_from_pretrained_names_a_weight_that_is_not_finite(value: float, paddle: bool, tmp_path: Path) -> None:
    model = random_model(dtype=np.float32, intermediate_size=96)
    weight = arrays_of(model)["layers.1.linear1.weight"]
    weight[17, 5] = value
    index = r"\(5, 17\)" if paddle else r"\(17, 5\)"
    if paddle:
        write_paddle(tmp_path, model)
    else:
        model.save_pretrained(tmp_path)
    for strict in (True, False):
        message = rf"^{tmp_path}: encoder\.layers\.1\.linear1\.weight: {value} at {index} is not a finite number$"
        with pytest.raises(ValueError, match=message):
            ernie.ErnieMModel.from_pretrained(tmp_path, strict=strict)


def test_a_mismatch_is_summarised_and_its_report_names_every_weight(tmp_path: Path, capsys: Any) -> None:
    """The configuration has 2,000 layers, of which the file has two."""
    random_model(dtype=np.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError) as caught:
        ernie.ErnieMModel.from_pretrained(tmp_path, num_hidden_layers=2000, intermediate_size=8)
    lines = str(caught.value).splitlines()
    assert f"{tmp_path}: the weights do not match this model:" == lines[0] and len(lines) < 30
    name = "encoder.layers.{}.norm1.bias"
    assert f"missing: {name.format('*')} (1,998, such as {name.format(2)})" in lines
    assert "wrong shape: encoder.layers.0.linear1.bias: expected (8,), got (40,)" in lines
    report = caught.value.report  # type: ignore[attr-defined]
    assert [each for each in report.missing if each.endswith("norm1.bias")] == [name.format(i) for i in range(2, 2000)]
    every = report.lines(every=True)
    assert len(every) == len(report.missing) + len(report.unexpected) + len(report.mismatched)
    assert {f"missing: {each}" for each in report.missing} <= set(every)
    capsys.readouterr()
    _, report = ernie.ErnieMModel.from_pretrained(tmp_path, num_hidden_layers=9, strict=False)
    assert len(report.missing) == 7 * 16
    assert f"{name.format('*')} (7, such as {name.format(2)})" in capsys.readouterr().err


@given(st.lists(st.from_regex(r"[a-z]{1,2}(\.([a-z]|\d{1,3})){0,4}", fullmatch=True), unique=True, max_size=300))
@example([f"{a}{b}" for a in "abcdefghijkl" for b in "abcdefghijkl"])
def test_a_summary_says_how_many_there_are(found: list[str]) -> None:
    every = LoadReport("huggingface", unexpected=tuple(found)).lines(every=True)
    assert every == [f"unexpected: {name}" for name in found]
    short = LoadReport("huggingface", unexpected=tuple(found)).lines()
    counts = [re.search(r" \(([\d,]+), such as (.*)\)$", line) for line in short]
    assert all(match is None or match[2] in found for match in counts)
    assert len(short) <= MOST_LINES + 1
    if len(short) <= MOST_LINES:
        assert sum(1 if match is None else int(match[1].replace(",", "")) for match in counts) == len(found)


def test_from_pretrained_refuses_integer_weights(tmp_path: Path) -> None:
    model = random_model(dtype=np.float32)
    state = {**model.state_dict(), "encoder.layers.0.norm1.bias": np.zeros(24, np.int64)}
    with pytest.raises(ValueError, match=r"norm1\.bias: expected one of float16, .*, float64, got int64$"):
        ernie.ErnieMModel.from_pretrained(write_safetensors_of(tmp_path, state, model))


def test_from_pretrained_names_the_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such directory"):
        ernie.ErnieMModel.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"found neither config\.json nor model_config\.json"):
        ernie.ErnieMModel.from_pretrained(tmp_path)
    write_config(tmp_path, random_model())
    message = r"not a checkpoint: looked for model\.safetensors, model\.safetensors\.index\.json, pytorch_model\.bin, "
    with pytest.raises(FileNotFoundError, match=message + r"pytorch_model\.bin\.index\.json, model_state\.pdparams$"):
        ernie.ErnieMModel.from_pretrained(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"config\.json: expected a checkpoint directory, got a file"):
        open_checkpoint(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="no such directory"):
        open_checkpoint(tmp_path / "none")


INDEX = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(["..", "../x", "/etc/passwd", "config.json", "x" * 999]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors", "a/../b", "", "x" * 999, "..", 3])
def test_open_checkpoint_refuses_an_index_that_points_elsewhere(name: Any, tmp_path: Path) -> None:
    """Red if a path with directories is followed: the file exists and is valid."""
    write_safetensors_of(tmp_path / "other", {"w": np.zeros(3, np.float32)}, random_model())
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "secret.safetensors")
    folder = tmp_path / "folder"
    write_config(folder, random_model())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    plain = isinstance(name, str) and Path(name).name == name
    with pytest.raises(FileNotFoundError if plain else ValueError, match=r"index\.json: (names the file|expected)"):
        open_checkpoint(folder)


@given(INDEX | st.dictionaries(st.just("weight_map"), INDEX, min_size=1))
def test_open_checkpoint_of_any_index(tmp_path_factory: Any, index: Any) -> None:
    """Only weight files inside the directory are read."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((ValueError, FileNotFoundError, ImportError), match=f"^{re.escape(str(folder))}/"):
        open_checkpoint(folder)


@given(st.data())
def test_from_pretrained_of_damaged_files(fixtures: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    """With one to three bits of Paddle's file flipped: another model, or a ValueError that names the directory."""
    source = fixtures / "paddle_tiny" / "qa"
    raw = bytearray((source / "model_state.pdparams").read_bytes())
    # Often in the names and shapes, not only in the numbers.
    places = st.integers(0, len(raw) - 1) | st.integers(0, 300) | st.integers(len(raw) - 2500, len(raw) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(places)] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    (folder / "model_state.pdparams").write_bytes(raw)
    try:
        model = ernie.ErnieMForQuestionAnswering.from_pretrained(folder)
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        assert model.config.hidden_size == 32


MEMORY = """
import sys, tracemalloc
import ernie_m.reference as ernie

def private():
    # Not the Private_ lines: they include pages of files that no other process has open.
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

ernie.ErnieMModel.from_pretrained(sys.argv[1])  # imports what is needed
before = private()
tracemalloc.start()
model = ernie.ErnieMModel.from_pretrained(sys.argv[2])
grown, peak = private() - before, tracemalloc.get_traced_memory()[1]
arrays = ernie.parameters.flatten(model.parameters).values()
print(grown, peak, sum(a.nbytes for a in arrays if a.flags.writeable), sum(a.nbytes for a in arrays))
"""


@pytest.mark.parametrize("form", ["safetensors", "paddle"])
def test_from_pretrained_maps_the_file(form: str, tmp_path: Path) -> None:
    """Private memory grows by less than a tenth of a safetensors file of 60 MB: weights are read-only views of it.

    Paddle's weights, which are unaligned and may have to be transposed, are copied once and no more.
    Red if the whole file is read, and if the search for nan checks a whole weight at once.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system has no /proc/self/smaps_rollup")
    sizes = {"vocab_size": 50_000, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    write = write_paddle if form == "paddle" else lambda folder, model: model.save_pretrained(folder)
    write(tmp_path / "small", random_model(dtype=np.float32, intermediate_size=96))
    write(tmp_path / "large", random_model(dtype=np.float32, **sizes))
    size = max(path.stat().st_size for path in (tmp_path / "large").iterdir())
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    grown, peak, copied, total = map(int, done.stdout.split())
    assert 50e6 < total <= size
    if form == "safetensors":
        assert copied == 0
    assert max(grown, peak) - copied < 0.1 * size


class DiskFullError(OSError):
    """What a full disk raises."""


def failing_write(file: Any, tensors: Any) -> None:
    file.write(b"half of it")
    raise DiskFullError("no space left on device")


def failing_replace(source: Any, path: Any) -> None:
    raise DiskFullError("no space left on device")


@pytest.mark.parametrize("stage", ["write", "rename"])
def test_save_pretrained_leaves_nothing_when_it_fails(stage: str, tmp_path: Path, monkeypatch: Any) -> None:
    model, other = (random_model(seed=seed, dtype=np.float32) for seed in (1, 2))
    model.save_pretrained(tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    if stage == "write":
        monkeypatch.setattr(checkpoint_write, "write_safetensors", failing_write)
    else:
        monkeypatch.setattr(new_files.os, "replace", failing_replace)
    with pytest.raises(DiskFullError):
        other.save_pretrained(tmp_path / "new" / "folder")
    with pytest.raises(DiskFullError):
        other.save_pretrained(tmp_path / "old", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_save_pretrained_that_cannot_replace_a_file_replaces_none(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    random_model(seed=1, dtype=np.float32).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    before = {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoint_write, "write_safetensors", failing_write)  # refused before anything is written
    with pytest.raises(FileExistsError, match=f"{name}: exists and is not a regular file"):
        random_model(seed=2, dtype=np.float32).save_pretrained(tmp_path, overwrite=True)
    assert {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before


def test_save_pretrained_over_the_file_that_backs_the_weights(tmp_path: Path) -> None:
    """Red if the file is overwritten in place: that truncates it while the model's weights are views of it."""
    random_model(dtype=np.float32).save_pretrained(tmp_path)
    model = ernie.ErnieMModel.from_pretrained(tmp_path)
    kept = {path: array.copy() for path, array in arrays_of(model).items()}
    model.save_pretrained(tmp_path, overwrite=True)
    for path, array in arrays_of(ernie.ErnieMModel.from_pretrained(tmp_path)).items():
        np.testing.assert_array_equal(array, kept[path])
        np.testing.assert_array_equal(arrays_of(model)[path], kept[path])


def test_save_pretrained_updates_torch_dtype_in_the_configuration(tmp_path: Path) -> None:
    model = random_model(dtype=np.float32, extra={"torch_dtype": "float32"})
    model.astype(np.float16).save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "float16"
    random_model(dtype=np.float32).save_pretrained(tmp_path / "without")
    assert "torch_dtype" not in json.loads((tmp_path / "without" / "config.json").read_text())


def test_save_pretrained_refuses_a_path_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match=str(tmp_path / "file")):
        random_model(dtype=np.float32).save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"

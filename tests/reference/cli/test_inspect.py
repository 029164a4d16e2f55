"""`ernie-m inspect` shows what a checkpoint contains; its exit code says whether the weights fit the class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import make_checkpoint
from helpers import CLASSES
from safetensors.numpy import load_file, save_file

import ernie_m.reference as ernie
from ernie_m.reference.checkpoint.safetensors_file import read_safetensors, write_safetensors
from ernie_m.reference.cli.program import main

PADDLE_CLASSES = {
    "model": "ErnieMModel",
    "seqcls": "ErnieMForSequenceClassification",
    "tokcls": "ErnieMForTokenClassification",
    "qa": "ErnieMForQuestionAnswering",
    "mc": "ErnieMForMultipleChoice",
    "uiem": "ErnieMForInformationExtraction",
}


def inspected(capsys: pytest.CaptureFixture[str], directory: Path, status: int = 0) -> dict[str, Any]:
    assert main(["inspect", str(directory), "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("cls", CLASSES)
def test_inspect_shows_a_complete_checkpoint(cls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_checkpoint(tmp_path, cls)
    stored = load_file(directory / "model.safetensors")
    found = inspected(capsys, directory)
    assert (found["format"], found["class"], found["directory"]) == ("huggingface", cls.__name__, str(directory))
    size = (directory / "model.safetensors").stat().st_size
    assert found["files"] == [{"name": "model.safetensors", "bytes": size}]
    tensors = {item["name"]: (tuple(item["shape"]), item["dtype"]) for item in found["tensors"]}
    assert tensors == {name: (array.shape, array.dtype.name) for name, array in stored.items()}
    assert found["parameters"] == sum(array.size for array in stored.values())
    assert found["dtypes"] == {"float32": len(stored)}
    assert found["config"]["hidden_size"] == 16
    assert found["missing"] == found["unexpected"] == found["mismatched"] == found["unused"] == []

    assert main(["inspect", str(directory)]) == 0
    out = capsys.readouterr().out
    lines = {tuple(line.split()) for line in out.splitlines()}
    for name, array in stored.items():
        assert (name, *str(array.shape).split(), "float32") in lines
    assert ("hidden_size", "16") in lines
    assert out.endswith(f"all weights of {cls.__name__} are present, with the expected shapes\n")


@pytest.mark.parametrize("name", PADDLE_CLASSES)
def test_inspect_reads_paddle_checkpoints(name: str, fixtures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, fixtures / "paddle_tiny" / name)
    assert (found["format"], found["class"]) == ("paddle", PADDLE_CLASSES[name])
    assert found["files"][0]["name"] == "model_state.pdparams"
    # Paddle stores a pooler even for classes that do not use it.
    unused = ["ernie_m.pooler.dense.weight", "ernie_m.pooler.dense.bias"]
    assert found["unused"] == (unused if name in ("tokcls", "qa") else [])


def test_inspect_notes_the_default_mask_of_extraction_only(fixtures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in PADDLE_CLASSES:
        assert main(["inspect", str(fixtures / "paddle_tiny" / name)]) == 0
        out, err = capsys.readouterr()
        assert ('default_mask="cls_token"' in err) == (name == "uiem") == ('"cls_token"' in out)


def test_inspect_lists_what_is_missing_unexpected_and_misshapen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_checkpoint(tmp_path, ernie.ErnieMForSequenceClassification)
    stored = load_file(directory / "model.safetensors")
    del stored["ernie_m.encoder.layers.0.norm1.bias"], stored["classifier.weight"]
    stored["ernie_m.encoder.layers.0.linear1.bias"] = np.zeros(5, np.float16)
    stored["ernie_m.encoder.layers.7.norm1.bias"] = np.zeros(16, np.float32)
    stored["surprise"] = np.zeros(1, np.float32)
    save_file(stored, directory / "model.safetensors")

    found = inspected(capsys, directory, status=1)
    assert set(found["missing"]) == {"ernie_m.encoder.layers.0.norm1.bias", "classifier.weight"}
    assert set(found["unexpected"]) == {"ernie_m.encoder.layers.7.norm1.bias", "surprise"}
    wrong = {"name": "ernie_m.encoder.layers.0.linear1.bias", "expected": [32], "found": [5]}
    assert found["mismatched"] == [wrong]
    assert found["dtypes"] == {"float32": len(stored) - 1, "float16": 1}

    assert main(["inspect", str(directory)]) == 1
    out = capsys.readouterr().out
    for line in (
        "missing: classifier.weight",
        "unexpected: surprise",
        "wrong shape: ernie_m.encoder.layers.0.linear1.bias: expected (32,), got (5,)",
    ):
        assert f"\n{line}\n" in out
    assert "are present" not in out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_inspect_counts_numbers_that_are_not_finite(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which no model would load. Seen red: not a word, and exit code 0."""
    source, directory = make_checkpoint(tmp_path / "old"), tmp_path / "new"
    assert main(["convert", str(source), str(directory), "--dtype", dtype]) == 0
    capsys.readouterr()
    assert inspected(capsys, directory)["not_finite"] == []
    file, name = directory / "model.safetensors", "encoder.layers.0.linear1.bias"
    tensors = read_safetensors(file)
    bits = {"float16": ("<u2", 0x7C00, 0xFE00), "bfloat16": ("<u2", 0x7F80, 0xFFC0), "float32": ("<u4", 0x7F800000, -1)}
    kind, infinity, nan = bits.get(dtype, ("<u8", 0x7FF0000000000000, -1))
    wrong = tensors[name].bits.copy()
    wrong.view(kind)[[3, 7, 30]] = np.array([infinity, nan, infinity]).astype(kind)
    with open(tmp_path / "changed", "wb") as changed:
        arrays = {key: (tensor.dtype, tensor.bits) for key, tensor in tensors.items()} | {name: (dtype, wrong)}
        write_safetensors(changed, [(key, *value) for key, value in arrays.items()])
    (tmp_path / "changed").replace(file)
    assert inspected(capsys, directory, status=1)["not_finite"] == [{"name": name, "count": 3}]
    assert main(["inspect", str(directory)]) == 1
    assert capsys.readouterr().out.endswith(f"\nnot finite: {name}: 3 of 32 numbers are nan or infinity\n")
    with pytest.raises(ValueError, match=name):
        ernie.ErnieMModel.from_pretrained(directory)


def test_inspect_summarises_and_lists_all_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_checkpoint(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    labels = {str(i): f"label {i}" for i in range(5000)}
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 50, "id2label": labels}))
    missing = [f"encoder.layers.{i}.norm1.bias" for i in range(1, 50)]
    assert main(["inspect", str(directory)]) == 1
    out = capsys.readouterr().out
    assert "\nmissing: encoder.layers.*.norm1.bias (49, such as encoder.layers.1.norm1.bias)\n" in out
    assert "label 4999" not in out and max(map(len, out.splitlines())) < 1200
    assert main(["inspect", str(directory), "--all"]) == 1
    out = capsys.readouterr().out
    assert all(f"\nmissing: {name}\n" in out for name in missing) and '"label 4999": 4999' in out
    found = inspected(capsys, directory, status=1)
    assert set(missing) <= set(found["missing"]) and len(found["config"]["id2label"]) == 5000


def test_inspect_rejects_what_is_not_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_checkpoint(tmp_path)
    content = (directory / "model.safetensors").read_bytes()
    for file, damaged in {
        "model.safetensors": content[:-1],
        "config.json": b"{",
    }.items():
        before = (directory / file).read_bytes()
        (directory / file).write_bytes(damaged)
        assert main(["inspect", str(directory)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("ernie-m: error: ") and file in captured.err
        (directory / file).write_bytes(before)
    assert main(["inspect", str(directory / "config.json")]) == 2
    (directory / "model.safetensors").unlink()
    assert main(["inspect", str(directory)]) == 2
    assert "model.safetensors" in capsys.readouterr().err  # the file that it looked for

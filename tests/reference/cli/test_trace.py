"""`ernie-m trace`: table, JSON and file hold the same trace; a comparison names the first difference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import make_checkpoint
from helpers import CLASSES
from rounding import MODEL_BOUND
from safetensors.numpy import load_file, save_file

import ernie_m.reference as ernie
from ernie_m.reference.cli.program import main
from ernie_m.reference.cli.table import statistics
from ernie_m.reference.parameters import flatten, unflatten
from ernie_m.reference.trace import Entry
from ernie_m.tokenizer import ErnieMTokenizer

TEXTS = ["Good morning!", "Guten Morgen allerseits."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), num_hidden_layers=2)


def traced(model: Any, checkpoint: Path, texts: list[str]) -> tuple[Mapping[str, Entry], Any]:
    batch = ErnieMTokenizer.from_pretrained(checkpoint)(texts, padding=True, return_tensors="np")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if isinstance(model, ernie.ErnieMForMultipleChoice):
        ids, mask = ids[None], mask[None]
    with ernie.trace() as found:
        model(ids, attention_mask=mask)
    return found, batch


@pytest.mark.parametrize("cls", CLASSES)
def test_trace_shows_every_intermediate_of_each_class(
    cls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_checkpoint(tmp_path, cls)
    expected, _ = traced(cls.from_pretrained(directory, dtype=np.float64), directory, TEXTS)
    assert main(["trace", "--model", str(directory), "--json", *TEXTS]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == list(expected)
    for line in lines:
        value = expected[line["name"]].value
        parts = value if isinstance(value, tuple) else (value,)
        shapes = [list(part.shape) for part in parts]
        assert line["shape"] == (shapes if isinstance(value, tuple) else shapes[0])
        assert line["dtype"] == "float64"
        found = statistics(np.concatenate([part.reshape(-1) for part in parts]))
        assert {name: line[name] for name in found} == found
    assert main(["trace", "--model", str(directory), *TEXTS]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["name", *expected]


def test_trace_save_holds_padded_values_and_inputs(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    arguments = ["trace", "--model", str(checkpoint), "--dtype", "float32", "--save", str(path), *TEXTS]
    assert main(arguments) == 0
    model = ernie.ErnieMModel.from_pretrained(checkpoint, dtype=np.float32)
    expected, batch = traced(model, checkpoint, TEXTS)
    with np.load(path) as saved:
        assert set(saved.files) == {*expected, "input_ids", "attention_mask"}
        np.testing.assert_array_equal(saved["input_ids"], batch["input_ids"])
        np.testing.assert_array_equal(saved["attention_mask"], batch["attention_mask"])
        for name, entry in expected.items():
            assert saved[name].dtype == np.float32
            np.testing.assert_array_equal(saved[name], entry.padded(), err_msg=name)
    before = path.read_bytes()
    assert main(arguments) == 2 and path.read_bytes() == before
    assert main([*arguments, "--overwrite"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["t.npz"]


def test_trace_of_ids_is_the_trace_of_their_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ErnieMTokenizer.from_pretrained(checkpoint)(TEXTS[0])["input_ids"]
    assert main(["trace", "--model", str(checkpoint), TEXTS[0]]) == 0
    expected = capsys.readouterr().out
    assert main(["trace", "--model", str(checkpoint), "--ids", *map(str, ids)]) == 0
    assert capsys.readouterr().out == expected


def test_trace_compare_names_where_two_checkpoints_diverge(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ernie.ErnieMModel.from_pretrained(checkpoint)
    arrays = flatten(model.parameters)
    arrays["layers.1.linear1.bias"] = arrays["layers.1.linear1.bias"] + np.float32(1e-3)
    ernie.ErnieMModel(model.config, unflatten(arrays)).save_pretrained(tmp_path)
    arguments = ["trace", "--model", str(checkpoint), *TEXTS, "--compare"]

    assert main([*arguments, str(checkpoint)]) == 0
    assert "entries agree" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path)]) == 1
    assert "the traces first differ at encoder.layers.1.linear1: error" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path), "--json"]) == 1
    line = json.loads(capsys.readouterr().out)
    assert line["agree"] is False and line["parted"]["name"] == "encoder.layers.1.linear1"
    assert line["errors"]["encoder.layers.0.norm2"] <= MODEL_BOUND
    assert main([*arguments, str(tmp_path), "--tolerance", "0.1"]) == 0


def test_trace_rejects_what_it_cannot_run(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["trace", "--model", str(checkpoint)]
    (tmp_path / "none.txt").touch()
    for more, message in {
        ("--ids", "0", "999999"): "input_ids: expected values in [0, 8000)",
        ("--ids", "x"): "argument --ids: expected a whole number of at least 0, got 'x'",
        ("--ids", "9" * 20): "argument --ids: expected a whole number from 0 to 9223372036854775807, got '999",
        ("a", "--ids", "1"): "TEXT, --file, --ids: expected only one",
        ("--file", str(tmp_path / "none.txt")): "TEXT: expected at least one, got none",
        ("a", "--save", str(tmp_path / "t.npy")): "--save: expected a name that ends in .npz",
        ("a", "--save", str(tmp_path / "none" / "t.npz")): "none is not a directory",
        ("a", "--tolerance", "nan"): "argument --tolerance",
        ("a", "--compare", str(tmp_path)): "not a checkpoint: looked for",
        ("word " * 50,): "at most 34 tokens",
        ("a",) * 65: "TEXT 65: expected at most 64 texts",
    }.items():
        assert main([*arguments, *more]) == 2, more
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and captured.out == "", captured
    assert [path.name for path in tmp_path.iterdir()] == ["none.txt"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about the overflow
def test_trace_of_numbers_that_overflow_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a model overflows is what `trace` is for; JSON has no infinity, so it is null there."""
    directory, damaged = make_checkpoint(tmp_path / "a"), make_checkpoint(tmp_path / "b")
    weights = load_file(damaged / "model.safetensors")
    name = next(name for name in weights if name.endswith("embeddings.layer_norm.weight"))
    weights[name] = np.full_like(weights[name], 1e38)
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    options = ["--dtype", "float32", "--json", "--ids", "0", "5", "2"]
    assert main(["trace", "--model", str(damaged), *options]) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert any(line["max"] is None for line in lines) and any(line["max"] is not None for line in lines)
    assert ".py" not in captured.err
    assert main(["trace", "--model", str(damaged), "--compare", str(directory), *options]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["agree"] and found["parted"]["name"].endswith("embeddings.layer_norm")
    # The trace of a model that overflows, compared with itself: no number says more than that it is no number.
    assert main(["trace", "--model", str(damaged), "--compare", str(damaged), *options]) in (0, 1)
    json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("option", "other"), [(["--overwrite"], "--save"), (["--tolerance", "1"], "--compare")], ids=str
)
def test_trace_rejects_an_option_without_its_other(
    option: list[str], other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", *option, "--ids", "0", "2"]) == 2
    assert f"{option[0]}: expected {other} too" in capsys.readouterr().err

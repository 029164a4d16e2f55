"""`ernie-m convert` writes a checkpoint that computes the same, or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import TOKENIZER_FILES, make_checkpoint
from safetensors.numpy import load_file

from ernie_m.reference import ErnieMForSequenceClassification, ErnieMModel, demo
from ernie_m.reference.cli.program import main


def test_convert_of_paddle_computes_the_same(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = fixtures / "paddle_tiny" / "seqcls", tmp_path / "new"
    assert main(["convert", str(source), str(target)]) == 0
    captured = capsys.readouterr()
    lacks = f"{source} lacks sentencepiece.bpe.model and vocab.txt"
    assert captured.err == f"ernie-m: {target}: has no tokenizer, as {lacks}\n"
    assert [line.split()[0] for line in captured.out.splitlines()] == [
        str(target / name) for name in ("config.json", "model.safetensors")
    ]
    old, new = (ErnieMForSequenceClassification.from_pretrained(path).state_dict() for path in (source, target))
    assert list(old) == list(new)
    for name, array in old.items():
        np.testing.assert_array_equal(new[name], array)
    ids = ["0", "17", "5", "44", "2"]
    arguments = ["trace", "--model", str(source), "--compare", str(target), "--tolerance", "1e-11", "--ids", *ids]
    assert main(arguments) == 0
    assert main(["inspect", str(target)]) == 0
    assert "Hugging Face" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("bfloat16", 2), ("float32", 4), ("float64", 8)])
def test_convert_writes_the_dtype_and_the_tokenizer(tmp_path: Path, dtype: str, size: int) -> None:
    source, target = make_checkpoint(tmp_path / "old"), tmp_path / "new"
    assert main(["convert", str(source), str(target), "--dtype", dtype]) == 0
    assert sorted(path.name for path in target.iterdir()) == sorted(
        ["config.json", "model.safetensors", *TOKENIZER_FILES]
    )
    for name in TOKENIZER_FILES:
        assert (target / name).read_bytes() == (source / name).read_bytes()
    old = ErnieMModel.from_pretrained(source, dtype=np.float64).state_dict()
    new = ErnieMModel.from_pretrained(target, dtype=np.float64).state_dict()
    # Half a unit in the last place.
    unit = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 0.0, "float64": 0.0}[dtype]
    for name, array in old.items():
        np.testing.assert_allclose(new[name], array, rtol=unit, atol=2**-25 if dtype == "float16" else 0)
    numbers = sum(array.size for array in old.values())
    assert size * numbers < (target / "model.safetensors").stat().st_size < size * numbers + 4096
    assert main(["encode", "--model", str(target), "--output", str(tmp_path / "x.npy"), "text"]) == 0


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_convert_says_what_the_tokenizer_lacks(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen red: not a word, and `encode` of the copy failed."""
    source, target = make_checkpoint(tmp_path / "old"), tmp_path / "new"
    assert main(["convert", str(source), str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().err == ""
    (source / name).unlink()
    assert main(["convert", str(source), str(target)]) == 0
    assert capsys.readouterr().err == f"ernie-m: {target}: has no tokenizer, as {source} lacks {name}\n"
    assert main(["encode", "--model", str(target), "text"]) == 2
    assert name in capsys.readouterr().err


def test_convert_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = make_checkpoint(tmp_path / "old"), tmp_path / "new"
    target.mkdir()
    (target / "mine").write_text("x")
    assert main(["convert", str(source), str(target)]) == 2
    assert str(target) in capsys.readouterr().err
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert main(["convert", str(source), str(source)]) == 2
    assert set(load_file(source / "model.safetensors"))


def test_convert_of_a_damaged_checkpoint_writes_nothing(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(fixtures / "paddle_tiny" / "model", tmp_path / "old"))
    weights = source / "model_state.pdparams"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert main(["convert", str(source), str(tmp_path / "new")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "model_state.pdparams" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_convert_rejects_an_unknown_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path), str(tmp_path / "new"), "--dtype", "int8"]) == 2
    assert "argument --dtype: invalid choice: 'int8'" in capsys.readouterr().err


def test_convert_keeps_what_is_recorded_for_retrieval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without retrieval.json, `encode` would take its vectors from the last layer."""
    source, target = demo.directory(), tmp_path / "new"
    assert main(["convert", str(source), str(target)]) == 0
    capsys.readouterr()
    vectors = []
    for directory in (source, target):
        assert main(["encode", "--model", str(directory), "--center", "--language", "de", "Datei"]) == 0
        vectors.append(json.loads(capsys.readouterr().out)["vector"])
    np.testing.assert_array_equal(*vectors)

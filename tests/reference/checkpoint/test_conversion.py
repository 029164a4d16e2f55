"""Converted weights are bit-identical or rounded once; a failed conversion leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PUBLISHED, random_model

import ernie_m.reference as ernie
from ernie_m.reference.array import round_to_bfloat16
from ernie_m.reference.checkpoint import open_checkpoint
from ernie_m.reference.checkpoint import writing as checkpoint_write
from ernie_m.reference.checkpoint.conversion import TOKENIZER_FILES, convert
from ernie_m.reference.checkpoint.stored_tensor import FLOATS
from ernie_m.reference.parameters import flatten
from ernie_m.tokenizer import ErnieMTokenizer

BY_FIXTURE = dict(zip(("model", "seqcls", "mc", "tokcls", "qa", "uiem"), PUBLISHED, strict=True))


@pytest.mark.parametrize("name", BY_FIXTURE)
def test_convert_of_paddle_keeps_every_bit(name: str, fixtures: Path, tmp_path: Path, capsys: Any) -> None:
    source, target = fixtures / "paddle_tiny" / name, tmp_path / "new"
    convert(source, target)
    assert (capsys.readouterr().err != "") == (name == "uiem")
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    cls = BY_FIXTURE[name]
    ours, theirs = cls.from_pretrained(target), cls.from_pretrained(source)
    for path, array in flatten(theirs.parameters).items():
        np.testing.assert_array_equal(flatten(ours.parameters)[path], array)
    assert ours.config == theirs.config.replace(architectures=(cls.__name__,))
    assert open_checkpoint(target).format == "huggingface"


@pytest.mark.parametrize("dtype", [None, *FLOATS])
@pytest.mark.parametrize("stored", ["float32", "float64", "float16"])
def test_convert_rounds_once(stored: str, dtype: str | None, tmp_path: Path) -> None:
    model = random_model(dtype=stored, extra={"torch_dtype": stored})
    model.save_pretrained(tmp_path / "old")
    convert(tmp_path / "old", tmp_path / "new", dtype)
    wanted = dtype or ("float32" if stored == "float16" else stored)
    found = open_checkpoint(tmp_path / "new").tensors
    assert {tensor.dtype for tensor in found.values()} == {wanted}
    assert json.loads((tmp_path / "new" / "config.json").read_text())["torch_dtype"] == wanted
    for name, array in model.state_dict().items():
        rounded = round_to_bfloat16(array) if wanted == "bfloat16" else array.astype(wanted)
        np.testing.assert_array_equal(found[name].bits, rounded)


def test_convert_copies_the_tokenizer_files(tmp_path: Path) -> None:
    random_model(dtype=np.float32).save_pretrained(tmp_path / "old")
    for name in (*TOKENIZER_FILES, "training_args.bin"):
        (tmp_path / "old" / name).write_bytes(name.encode())
    (tmp_path / "new").mkdir()
    convert(tmp_path / "old", tmp_path / "new")
    kept = {"config.json", "model.safetensors", *TOKENIZER_FILES}
    assert {path.name for path in (tmp_path / "new").iterdir()} == kept
    assert all((tmp_path / "new" / name).read_bytes() == name.encode() for name in TOKENIZER_FILES)


@pytest.mark.parametrize("options", [None, {"do_lower_case": True}, {"lone_marker": "huggingface"}])
def test_convert_of_paddle_writes_how_text_is_cut(options: Any, fixtures: Path, tmp_path: Path, capsys: Any) -> None:
    """What is read back cuts as the original does, without a note; other options and a rule that is given stay."""
    old, tokenizer = tmp_path / "old", fixtures / "tokenizer_multi"
    shutil.copytree(fixtures / "paddle_tiny" / "model", old)
    for name in ("sentencepiece.bpe.model", "vocab.txt"):
        shutil.copy(tokenizer / name, old)
    if options is not None:
        (old / "tokenizer_config.json").write_text(json.dumps(options))
    convert(old, tmp_path / "new")
    first = ErnieMTokenizer.from_pretrained(old)
    assert ("lone_marker" in capsys.readouterr().err) == ("lone_marker" not in (options or {}))
    again = ErnieMTokenizer.from_pretrained(tmp_path / "new")
    assert capsys.readouterr().err == ""
    assert again.lone_marker == first.lone_marker == (options or {}).get("lone_marker", "paddle")
    assert again.do_lower_case == first.do_lower_case == bool((options or {}).get("do_lower_case"))
    assert json.loads((tmp_path / "new" / "tokenizer_config.json").read_text()) == {
        "lone_marker": "paddle",
        **(options or {}),
    }


@pytest.mark.parametrize("options", [None, {"do_lower_case": True}])
def test_saving_beside_weights_of_paddle_keeps_how_text_is_cut(options: Any, fixtures: Path, tmp_path: Path) -> None:
    """The new weights are those that count, and no longer tell. Seen red: cut as transformers does, in silence."""
    shutil.copytree(fixtures / "paddle_tiny" / "model", tmp_path, dirs_exist_ok=True)
    model = ernie.ErnieMModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path, overwrite=True)
    # Without a tokenizer there is nothing to say.
    assert not (tmp_path / "tokenizer_config.json").exists()
    (tmp_path / "model.safetensors").unlink()
    for name in ("sentencepiece.bpe.model", "vocab.txt"):
        shutil.copy(fixtures / "tokenizer_multi" / name, tmp_path)
    if options is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
        (tmp_path / "config.json").unlink()
        expected = "tokenizer_config.json: the file exists; pass overwrite=True to add how text is cut, .*lone_marker"
        with pytest.raises(FileExistsError, match=expected):
            model.save_pretrained(tmp_path)
    before = ErnieMTokenizer.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path, overwrite=True)
    after = ErnieMTokenizer.from_pretrained(tmp_path)
    assert before.lone_marker == after.lone_marker == "paddle"
    assert before.do_lower_case == after.do_lower_case


def test_convert_refuses_an_empty_path(tmp_path: Path, monkeypatch: Any) -> None:
    """It would be the current directory, which may be empty. Seen red: written into it."""
    random_model(ernie.ErnieMModel).save_pretrained(tmp_path / "source")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"^destination: expected a path, .*, got ''$"):
        convert("../source", "")
    assert not any((tmp_path / "empty").iterdir())


def test_convert_into_the_current_directory(tmp_path: Path, monkeypatch: Any) -> None:
    random_model(dtype=np.float32).save_pretrained(tmp_path / "old")
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    convert("../old", ".")
    assert sorted(os.listdir(".")) == ["config.json", "model.safetensors"]  # Red if the directory is replaced.
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


@pytest.mark.parametrize("link", [False, True])
def test_convert_writes_into_an_empty_directory(link: bool, tmp_path: Path) -> None:
    """It stays the same one, with its permissions, as a mount point or the target of a link must."""
    random_model(dtype=np.float32).save_pretrained(tmp_path / "old")
    (tmp_path / "new").mkdir(mode=0o710)
    (tmp_path / "link").symlink_to("new")
    before = (tmp_path / "new").stat()
    convert(tmp_path / "old", tmp_path / ("link" if link else "new"))
    after = (tmp_path / "new").stat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert (tmp_path / "link").is_symlink() and len(os.listdir(tmp_path / "new")) == 2
    (tmp_path / "nowhere").symlink_to("none")
    with pytest.raises(FileExistsError, match=r"nowhere: the destination exists and is not an empty directory$"):
        convert(tmp_path / "old", tmp_path / "nowhere")


def test_convert_refuses_a_destination_that_is_not_empty(tmp_path: Path) -> None:
    random_model(dtype=np.float32).save_pretrained(tmp_path / "old")
    (tmp_path / "file").write_text("x")
    for target in ("file", "old"):
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(FileExistsError, match=rf"{target}: the destination exists and is not an empty directory$"):
            convert(tmp_path / "old", tmp_path / target)
        assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("dtype", ["int8", "float8", np.float16, 16])
def test_convert_refuses_other_dtypes(dtype: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dtype: expected one of float16, bfloat16, float32, float64, got "):
        convert(tmp_path, tmp_path / "new", dtype)


def fail(*arguments: Any, **more: Any) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize("stage", ["weights", "tokenizer"])
def test_convert_leaves_nothing_when_it_fails(stage: str, tmp_path: Path, monkeypatch: Any) -> None:
    random_model(dtype=np.float32).save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "vocab.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    if stage == "weights":
        monkeypatch.setattr(checkpoint_write, "write_safetensors", fail)
    else:
        monkeypatch.setattr(checkpoint_write.shutil, "copyfileobj", fail)
    for target in ("new", "new/with/parents", "empty"):
        with pytest.raises(OSError, match="no space left"):
            convert(tmp_path / "old", tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "old"]
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("dtype", "number"), [("float16", 1e5), ("bfloat16", 3.4e38), ("float32", 1e300), ("bfloat16", 1e300)]
)
def test_convert_refuses_numbers_that_the_dtype_cannot_hold(dtype: str, number: float, tmp_path: Path) -> None:
    """Otherwise infinity would be written, and rejected on reading."""
    model = random_model(dtype=np.float64)
    flatten(model.parameters)["layers.0.norm1.bias"][3] = number
    model.save_pretrained(tmp_path / "old")
    with pytest.raises(ValueError, match=rf"encoder\.layers\.0\.norm1\.bias: .* at \(3,\) is too large for {dtype}$"):
        convert(tmp_path / "old", tmp_path / "new", dtype)
    assert not (tmp_path / "new").exists()


def test_convert_refuses_an_incomplete_checkpoint(fixtures: Path, tmp_path: Path) -> None:
    """Conversion initialises nothing, not even a head."""
    source = Path(shutil.copytree(fixtures / "paddle_tiny" / "model", tmp_path / "old"))
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**values, "architectures": ["ErnieMForTokenClassification"]}))
    message = r"the weights do not match ErnieMForTokenClassification:\nmissing: classifier\.weight\nmissing: clas"
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_convert_keeps_pruned_layers_and_labels(tmp_path: Path) -> None:
    cls = ernie.ErnieMForTokenClassification
    model = random_model(cls, dtype=np.float32, id2label={0: "O", 1: "B", 2: "I"}).prune_heads({0: [1]})
    model.save_pretrained(tmp_path / "old")
    convert(tmp_path / "old", tmp_path / "new")
    back = cls.from_pretrained(tmp_path / "new")
    assert back.config == model.config.replace(architectures=(cls.__name__,))

"""Directories: what is read, what is rejected, and that nothing is left half-written.

Seen red: files written in place; a stale added_tokens.json kept; the temporary file left behind.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY

from ernie_m.tokenizer import AddedToken, ErnieMTokenizer

NAMES = ["sentencepiece.bpe.model", "special_tokens_map.json", "tokenizer_config.json", "vocab.txt"]


def saved(folder: Path) -> Path:
    ErnieMTokenizer(MODEL, VOCABULARY).save_pretrained(folder)
    return folder


def test_an_empty_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the current directory. Seen red: files beside the user's."""
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY)
    monkeypatch.chdir(tmp_path)
    for call, name in (
        (tokenizer.save_pretrained, "save_directory"),
        (tokenizer.save_vocabulary, "save_directory"),
        (ErnieMTokenizer.from_pretrained, "directory"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected a path, such as . for the current directory, got ''$"):
            call("")
    assert not any(tmp_path.iterdir())


def test_save_replaces_its_own_files(tmp_path: Path) -> None:
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY)
    tokenizer.add_tokens(["zyzzyva"])
    (tmp_path / "mine.txt").write_text("stays")
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == {"zyzzyva": 4002}
    assert sorted(path.name for path in saved(tmp_path).iterdir()) == sorted([*NAMES, "mine.txt"])
    assert len(ErnieMTokenizer.from_pretrained(tmp_path)) == 4002


@pytest.mark.parametrize(
    ("weights", "options", "arguments", "expected"),
    [
        (["model_state.pdparams"], {}, {}, "paddle"),
        (["model_state.pdparams"], {"lone_marker": "huggingface"}, {}, "huggingface"),
        (["model_state.pdparams"], {}, {"lone_marker": "huggingface"}, "huggingface"),
        (["model_state.pdparams", "model.safetensors"], {}, {}, "huggingface"),
        (["model_state.pdparams", "pytorch_model.bin.index.json"], {}, {}, "huggingface"),
        (["model.safetensors"], {}, {}, "huggingface"),
        ([], {}, {}, "huggingface"),
        (["pytorch_model.bin"], {"lone_marker": "paddle"}, {}, "paddle"),
    ],
)
def test_a_directory_of_paddle_is_cut_as_paddle_does(
    weights: list[str], options: Any, arguments: Any, expected: str, tmp_path: Path, capsys: Any
) -> None:
    """Unless its files or the caller name a rule; once is said so. The golden strings hold where the rules differ."""
    for name, file in (("sentencepiece.bpe.model", MODEL), ("vocab.txt", VOCABULARY)):
        (tmp_path / name).write_bytes(file.read_bytes())
    for name in weights:
        (tmp_path / name).touch()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    tokenizer = ErnieMTokenizer.from_pretrained(tmp_path, **arguments)
    said = capsys.readouterr().err
    inferred = expected == "paddle" and "lone_marker" not in options
    assert said.count('lone_marker="paddle"') == said.count("\n") == inferred
    assert tokenizer.lone_marker == expected
    assert tokenizer.tokenize("a 中") == (["▁a", "中"] if expected == "paddle" else ["▁a", "▁", "中"])
    tokenizer.save_pretrained(tmp_path / "again")
    assert ErnieMTokenizer.from_pretrained(tmp_path / "again").lone_marker == expected
    assert capsys.readouterr().err == ""


def test_saved_files_are_those_of_transformers(tmp_path: Path) -> None:
    """Text as it is, not escaped; in special_tokens_map.json a string unless a token has unusual flags."""
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY, cls_token=AddedToken("[CLS]", lstrip=True, special=True))
    tokenizer.add_tokens(["船"])
    tokenizer.save_pretrained(tmp_path)
    assert "船" in (tmp_path / "added_tokens.json").read_text(encoding="utf-8")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["model_max_length"] == int(1e30)  # no limit
    found = json.loads((tmp_path / "special_tokens_map.json").read_text(encoding="utf-8"))
    assert found.pop("cls_token") == AddedToken("[CLS]", lstrip=True, special=True).to_json(special=False)
    assert found == {"mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


def test_added_tokens_with_a_role_are_special_in_directories_without_a_decoder(tmp_path: Path) -> None:
    """Older ones have only added_tokens.json, which says nothing about a token but its id."""
    saved(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text('{"<m>": 4002, "<x>": 4003, "plain": 4004}')
    roles = {"mask_token": "<m>", "additional_special_tokens": ["<x>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    added = ErnieMTokenizer.from_pretrained(tmp_path).added_tokens_decoder
    assert [added[number].special for number in (4002, 4003, 4004)] == [True, True, False]


def test_save_that_fails_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY, do_lower_case=True)
    tokenizer.add_tokens(["zyzzyva"])

    def fails(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        tokenizer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", [*NAMES, "added_tokens.json"])
def test_save_that_cannot_replace_a_file_replaces_none(name: str, tmp_path: Path) -> None:
    """Whichever file it is, even the one that is to be removed."""
    saved(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    before = {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=f"{name}: exists and is not a regular file"):
        ErnieMTokenizer(MODEL, VOCABULARY, do_lower_case=True).save_pretrained(tmp_path)
    assert {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before


def test_save_that_fails_leaves_no_new_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", None)
    with pytest.raises(TypeError):
        ErnieMTokenizer(MODEL, VOCABULARY).save_pretrained(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


def test_save_vocabulary_writes_two_files(tmp_path: Path) -> None:
    tokenizer = ErnieMTokenizer(MODEL, VOCABULARY)
    written = tokenizer.save_vocabulary(tmp_path, filename_prefix="my")
    assert sorted(map(Path, written)) == sorted(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"my-vocab.txt", "my-sentencepiece.bpe.model"}
    with pytest.raises(NotADirectoryError, match="nowhere is not a directory"):
        tokenizer.save_vocabulary(tmp_path / "nowhere")


def test_two_files_are_enough(tmp_path: Path) -> None:
    saved(tmp_path)
    for name in NAMES[1:3]:
        (tmp_path / name).unlink()
    assert ErnieMTokenizer.from_pretrained(tmp_path)("a")["input_ids"] == [0, 39, 2]


@pytest.mark.parametrize("name", [NAMES[0], NAMES[3]])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no {name}"):
        ErnieMTokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not a directory with sentencepiece\.bpe\.model and vocab\.txt"):
        ErnieMTokenizer.from_pretrained(tmp_path / "nowhere")


def test_the_models_own_table_is_used_only_on_request(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    tokenizer = ErnieMTokenizer.from_pretrained(tmp_path, vocab_file="sentencepiece", added_tokens_decoder={})
    assert tokenizer.convert_ids_to_tokens([4000, 4004]) == ["[UNK]", "[MASK]"]


@pytest.mark.parametrize("name", NAMES[1:3])
@settings(max_examples=30)
@given(data=st.binary(max_size=60) | st.sampled_from([b"[]", b"null", b"{", b"[" * 100_000, b'{"a": NaN', b"\xff{}"]))
def test_broken_json_is_named(name: str, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = saved(tmp_path_factory.getbasetemp() / "broken")
    if name == NAMES[1]:
        (folder / NAMES[2]).unlink()
    (folder / name).write_bytes(data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return
    with pytest.raises(ValueError, match=name):
        ErnieMTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"do_lower_case": "yes"}, "do_lower_case: expected a bool, got 'yes'"),
        ({"mask_token": 7}, "mask_token: expected str or AddedToken, got 7"),
        ({"added_tokens_decoder": {"x": "a"}}, "added_tokens_decoder: expected ids of 0 to 2147483647, got 'x'"),
        ({"added_tokens_decoder": {"-1": "a"}}, "added_tokens_decoder: expected ids of 0 to 2147483647, got '-1'"),
        ({"added_tokens_decoder": {"5000": 3}}, "added_tokens_decoder: expected str or AddedToken, got 3"),
        ({"model_max_length": math.inf}, "model_max_length: expected an integer, got inf"),
        ({"model_max_length": math.nan}, "model_max_length: expected an integer, got nan"),
        ({"sp_model_kwargs": {"alpha": -1}}, "sp_model_kwargs: alpha: expected 0 to .*, got -1"),
        ({"sp_model_kwargs": {"enable_sampling": True, "alpha": math.nan}}, "sp_model_kwargs: alpha: .*, got nan"),
        ({"sp_model_kwargs": [1]}, "sp_model_kwargs: expected a mapping, got .1."),
        ({"additional_special_tokens": "abc"}, "additional_special_tokens: expected a list"),
        ({"added_tokens_decoder": ["a"]}, "added_tokens_decoder: expected a mapping, got .'a'."),
    ],
)
def test_wrong_values_in_the_configuration_are_named(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    """With the file. Seen red: a list of added tokens ignored."""
    saved(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises((TypeError, ValueError), match=f"^{tmp_path}/tokenizer_config.json: {says}"):
        ErnieMTokenizer.from_pretrained(tmp_path)


def test_wrong_values_of_the_caller_are_not_the_files(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(TypeError, match=r"^do_lower_case: expected a bool, got 3"):
        ErnieMTokenizer.from_pretrained(tmp_path, do_lower_case=3)


def test_a_number_past_the_range_of_floats_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e400}')
    with pytest.raises(TypeError, match="model_max_length: expected an integer, got inf"):
        ErnieMTokenizer.from_pretrained(tmp_path)


def test_unknown_keys_in_the_configuration_are_ignored(tmp_path: Path) -> None:
    saved(tmp_path)
    config = {
        "name_or_path": "x",
        "model_max_length": 1e30,
        "encoding": "utf8",
        "chat_template": None,
        "vocab_file": "other",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ErnieMTokenizer.from_pretrained(tmp_path)("a")["input_ids"] == [0, 39, 2]

"""What `pretrain` refuses before it tokenises anything: one sentence that names the recipe's file and the entry."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from training_texts import RECIPE, tokenizer

from ernie_m.kernels.cli import main, pretrain
from ernie_m.reference import ErnieMConfig, demo

TOKENIZER = tokenizer()
SIZE = len(TOKENIZER)
NAN, INFINITY = float("nan"), float("inf")
# Wrong for every entry but those named behind.
NOTHING: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (NAN, ()),
    (INFINITY, ()),
    (-1e9, ()),
    (True, ()),
    ("x", ("pairs_with",)),
    (None, ("pairs_with",)),
    (["x"], ()),
    ([["mmlm"]], ()),
    ({"x": 1}, ()),
    (10**400, ()),
)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls the command with a changed recipe and more arguments, and returns its one line."""

    def never(*arguments: Any) -> None:
        raise AssertionError("tokenised")

    monkeypatch.setattr(pretrain, "shard", never)
    monkeypatch.chdir(tmp_path)

    def call(changes: dict[str, Any], *more: str, tokenizer: bool = True) -> str:
        Path("recipe.json").write_text(json.dumps({**RECIPE, **changes}), "utf-8")
        if tokenizer:
            more = ("--tokenizer", str(demo.directory()), *more)
        assert main(["pretrain", "--data", "a.jsonl", "--recipe", "recipe.json", "--out", "out", *more]) == 2
        assert not Path("out").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("ernie_m.kernels: error: ")

    return call


@pytest.mark.parametrize("name", pretrain.RECIPE)
def test_values_of_another_kind(refused: Any, name: str) -> None:
    """Seen red: 'Probabilities contain NaN' and other words of libraries, after all texts were tokenised."""
    for value, allowed in NOTHING:
        if name not in allowed:
            line = refused({name: value})
            assert line.startswith(f"recipe.json: {name}: ") and "expected" in line, (value, line)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"alpha": 1e9}, "alpha: expected a number from 0 to 1, got 1000000000.0"),
        ({"batch_tokens": 0}, "batch_tokens: expected a whole number from 1 to 16777216, got 0"),
        ({"objectives": []}, "objectives: expected a list of at least one of mmlm, tlm, camlm, btmlm, got []"),
        ({"objectives": [["mmlm"]]}, "objectives: expected some of mmlm, tlm, camlm, btmlm, got ['mmlm']"),
        ({"arguments": {"mmlm": 3}}, "arguments: mmlm: expected arguments by name, got 3"),
        ({"arguments": {"mmlm": {"foo": 1}}}, "arguments: mmlm: expected some of ratio, shares, weight, got 'foo'"),
        ({"arguments": {"mmlm": {"ratio": "a"}}}, "arguments: mmlm: ratio: expected a number from 0 to 1, got 'a'"),
        (
            {"model": {"hidden": 25}},
            "model: hidden: not a field of ErnieMConfig; expected one of vocab_size, hidden_size",
        ),
        ({"model": {"hidden_size": "a"}}, "model: hidden_size: expected an integer from 1 to 2147483647, got 'a'"),
        (
            {"model": {"num_attention_heads": 5}},
            "model: num_attention_heads: expected a divisor of hidden_size = 768, got 5",
        ),
        ({"model": {"vocab_size": 5}}, f"model: vocab_size: expected {SIZE}, that of the tokenizer, got 5"),
        ({"settings": {"rate": 1}}, "settings: steps: expected a value, got none"),
        ({"settings": {"steps": 3, "rate": INFINITY}}, "settings: rate: expected a positive, finite number, got inf"),
        ({"settings": {"steps": 3, "rates": 3}}, "settings: rates: not a setting; expected some of steps, rate"),
        (
            {"longest": 31},
            "longest: expected at most 30 for camlm in a model with max_position_embeddings = 66, got 31",
        ),
        (
            {"objectives": ["camlm"], "arguments": {"camlm": {"positions": "again"}}, "longest": 63},
            "longest: expected at most 62 for camlm in a model with max_position_embeddings = 66, got 63",
        ),
    ],
)
def test_entries_of_a_recipe(refused: Any, changes: dict[str, Any], expected: str) -> None:
    assert refused(changes).startswith(f"recipe.json: {expected}")


def test_what_fits_is_taken() -> None:
    """The vocabulary may be named if it is the tokenizer's, and texts may be as long as the positions allow."""
    recipe = {**pretrain.RECIPE, **RECIPE, "model": {**RECIPE["model"], "vocab_size": SIZE}, "longest": 30}
    settings, config = pretrain.check_recipe(recipe, TOKENIZER, None)
    assert (settings.steps, config.vocab_size, config.hidden_size) == (6, SIZE, 32)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('betas=["a","b"]', "--set: betas: expected a list of two numbers from 0 to below 1, got ['a', 'b']"),
        ("=3", "--set: '': not a setting; expected some of steps, rate"),
        ("weight_decay=Infinity", "--set: weight_decay: expected a finite number of at least 0, got inf"),
    ],
)
def test_settings_of_the_command_line(refused: Any, change: str, expected: str) -> None:
    """Not the recipe's fault."""
    assert refused({}, "--set", change).startswith(expected)


def test_a_checkpoint_to_begin_with(refused: Any, tmp_path: Path) -> None:
    """Its own positions and words decide."""
    model = ["--model", str(demo.directory())]
    line = refused({"model": {}, "longest": 63}, *model, tokenizer=False)
    assert (
        line
        == "recipe.json: longest: expected at most 62 for camlm in a model with max_position_embeddings = 130, got 63"
    )
    line = refused({"model": {"hidden_size": 8}}, *model)
    assert line == "recipe.json: model: describes a new model, and --model names another; expected one of the two"
    ErnieMConfig(vocab_size=100).save_pretrained(tmp_path / "small")
    line = refused({"model": {}}, "--model", "small")
    assert line == f"--tokenizer: expected at most the 100 tokens of --model, got {SIZE:,}"


@pytest.mark.parametrize("name", ["--out", "--tokenizer", "--model", "--recipe", "--data", "--validation"])
def test_an_empty_path_is_refused(refused: Any, name: str) -> None:
    """As of an unset variable. Seen red: a run in the current directory."""
    line = refused({}, name, "")
    assert line.startswith(f"argument {name}: expected a path, such as . for the current directory, got ''")
    assert [path.name for path in Path().iterdir()] == ["recipe.json"]


@pytest.mark.parametrize("name", ["camlm", "tlm"])
def test_translations_that_the_texts_lack(refused: Any, name: str) -> None:
    """Also in those to validate on, and whatever stands first. Seen red: found when all texts had been tokenised."""
    Path("a.jsonl").write_text('{"en": "A cat."}\n{"en": "A cat.", "de": "Eine Katze."}\n{"fr": "x", "de": "y"}\n')
    Path("one.tsv").write_text("en\tde\nA cat.\t\n\tEine Katze.\n")
    changes = {"objectives": ["mmlm", name]}
    line = refused({**changes, "pairs_with": "xx"})
    expected = "pairs_with: expected a language of the texts with translations in a.jsonl, one of de, en, fr, got 'xx'"
    assert line == f"recipe.json: {expected}"
    for wanted in ("en", None):
        line = refused({**changes, "pairs_with": wanted}, "--validation", "one.tsv")
        expected = f"objectives: {name}: expected texts with translations in one.tsv, found none"
        assert line == f"recipe.json: {expected}"
    one, several = Path("one.tsv"), Path("a.jsonl")
    for wanted in ("fr", "de", None):
        pretrain.check_pairs([one, several], ["mmlm", name], wanted, one)
    pretrain.check_pairs([one], ["mmlm", "btmlm"], "xx", one)
    # What is wrong with a file is not the recipe's fault.
    one.write_text("en\tde\nA cat.\n")
    assert refused(changes, "--validation", "one.tsv") == "one.tsv: line 2: expected 2 columns (en, de), got 1"


def test_files_that_are_missing(refused: Any) -> None:
    """Also those to validate on. Seen red: named after all other texts were tokenised."""
    assert refused({}) == "a.jsonl: no such file"
    assert refused({}, "--data", "recipe.json", "--validation", "nowhere.tsv") == "nowhere.tsv: no such file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", None)])
def test_files_that_cannot_be_read_twice(make: Any, refused: Any) -> None:
    """They are read for a digest first. Seen red: a pipe was waited for, then empty."""
    make("a.jsonl")
    expected = "a.jsonl: expected a regular file, got a directory, a pipe or a device"
    assert refused({"objectives": ["mmlm"]}) == expected

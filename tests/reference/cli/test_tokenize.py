"""`ernie-m tokenize` prints the tokenizer's result, one JSON object per text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import corpus

from ernie_m.reference import demo as demo_checkpoint
from ernie_m.reference.cli import tokenize as cli_tokenize
from ernie_m.reference.cli.program import main
from ernie_m.tokenizer import ErnieMTokenizer

TEXTS = [*corpus("en", "ja", "ar")[::30], "", "a\tb [MASK]\u00a0c", "ＡＢＣ ﬁn"]


@pytest.fixture(scope="module")
def tokenizer() -> ErnieMTokenizer:
    return ErnieMTokenizer.from_pretrained(demo_checkpoint.directory())


def tokenized(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["tokenize", "--model", str(demo_checkpoint.directory()), *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_tokenize_prints_tokens_ids_and_offsets_of_each_line(
    tokenizer: ErnieMTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_tokenize, "WINDOW", 4)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    lines = tokenized(capsys, "--file", str(tmp_path / "texts.txt"))
    assert [line["index"] for line in lines] == list(range(len(TEXTS)))
    for line, text in zip(lines, TEXTS, strict=True):
        assert line.keys() == {"index", "tokens", "ids", "offsets"}
        assert line["ids"] == tokenizer(text)["input_ids"]
        assert line["tokens"] == tokenizer.convert_ids_to_tokens(line["ids"])
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        assert line["offsets"] == [list(span) for span in spans]
    assert tokenized(capsys, "--", *TEXTS) == lines


def test_tokenize_pairs_each_text_with_the_second(
    tokenizer: ErnieMTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tokenized(capsys, "one", "two words", "--pair", "the second")
    for line, text in zip(lines, ["one", "two words"], strict=True):
        expected = tokenizer(text, "the second", return_token_type_ids=True, return_offsets_mapping=True)
        assert line["ids"] == expected["input_ids"]
        assert line["token_type_ids"] == expected["token_type_ids"]
        assert line["offsets"] == [list(span) for span in expected["offset_mapping"]]


def test_tokenize_options_reach_the_tokenizer(tokenizer: ErnieMTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = tokenized(capsys, "--lower-case", "The CAT")
    assert line["ids"] == tokenizer("the cat")["input_ids"] != tokenizer("The CAT")["input_ids"]
    # A lone marker: transformers keeps it, Paddle does not.
    text = "▁ 7 。 €"
    found = {rule: tokenized(capsys, "--lone-marker", rule, text)[0]["tokens"] for rule in ("huggingface", "paddle")}
    assert "▁" in found["huggingface"] and "▁" not in found["paddle"]
    assert tokenized(capsys, text)[0]["tokens"] == found["huggingface"]


def test_tokenize_does_not_escape_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "--model", str(demo_checkpoint.directory()), "猫"]) == 0
    assert '"猫"' in capsys.readouterr().out

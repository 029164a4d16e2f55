"""`ernie-m demo` describes the model, and shows what the tokenizer and the model really compute."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import make_checkpoint
from rounding import MODEL_BOUND

from ernie_m.reference import ErnieMModel
from ernie_m.reference import demo as demo_checkpoint
from ernie_m.reference.cli.demo import token_lines
from ernie_m.reference.cli.program import main
from ernie_m.reference.cli.table import width
from ernie_m.tokenizer import ErnieMTokenizer


def demo(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["demo", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_demo_says_what_the_model_was_trained_on_and_fits_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    lines = demo(capsys)
    assert "trained to predict sentences from their translations" in lines[1] and "little of anything else" in lines[2]
    assert len(lines) <= 72
    assert max(map(width, lines)) <= 120
    assert demo(capsys) == lines


def test_demo_shows_ids_and_offsets_of_each_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    lines = demo(capsys)
    tokenizer = ErnieMTokenizer.from_pretrained(demo_checkpoint.directory())
    for number, sentence in enumerate(demo_checkpoint.sentences(), start=1):
        at = lines.index(f"{number}  {sentence}")
        batch = tokenizer(sentence, return_offsets_mapping=True)
        assert lines[at + 1].replace("\u200e", "").split() == ["[CLS]", *tokenizer.tokenize(sentence), "[SEP]"]
        assert lines[at + 2].split() == [str(i) for i in batch["input_ids"]]
        spans = [tuple(map(int, cell.split(":"))) for cell in lines[at + 3].split()]
        assert spans == [tuple(span) for span in batch["offset_mapping"] if span[1] > span[0]]


def test_demo_finds_the_translations(capsys: pytest.CaptureFixture[str]) -> None:
    """Centred by language for the built-in sentences, by all languages' mean for others, and it says so."""
    lines = demo(capsys)
    layer = demo_checkpoint.retrieval()[0]
    assert f"after layer {layer}, less the mean vector of its language." in lines
    (found,) = (line for line in lines if line.startswith("Nearest to each other: "))
    assert found.endswith("For 8 of 8 sentences the nearest is the translation.")
    own = demo(capsys, *demo_checkpoint.sentences()[:2])
    assert f"after layer {layer}, less the mean vector of all languages." in own
    assert not any(line.startswith("Nearest") for line in own)


def test_demo_takes_a_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    """The gradient's length agrees with central differences to the digits shown, and the step lowers the loss."""
    loss, length, differences, after = (float(line.split()[-1]) for line in demo(capsys)[-4:])
    assert length == pytest.approx(differences, abs=2e-6)
    assert 0 < after < loss


def test_demo_table_holds_the_cosines_of_mean_vectors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path)
    texts = ["One sentence.", "二つ目の文です。", "Three"]
    lines = demo(capsys, "--model", str(directory), *texts)
    assert str(directory) in lines[0] and not any("trained to" in line for line in lines)
    model = ErnieMModel.from_pretrained(directory, dtype=np.float64)
    tokenizer = ErnieMTokenizer.from_pretrained(directory)
    vectors = np.array([model(np.array([tokenizer(t)["input_ids"]])).last_hidden_state[0].mean(0) for t in texts])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for line, text, row in zip(lines[-3:], texts, unit @ unit.T, strict=True):
        assert line.endswith(text)
        found = [float(cell) for cell in re.findall(r"-?\d\.\d\d", line)]
        # Half a unit of the last digit; a tie may fall to either side.
        np.testing.assert_allclose(found, row, rtol=0, atol=0.005 + MODEL_BOUND)


def test_demo_accepts_long_and_empty_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    lines = demo(capsys, "", "word " * 300)
    assert max(map(width, lines[:-3])) <= 1600  # the sentence itself
    assert all(width(line) <= 120 for line in lines if line.startswith("   "))
    assert re.search(r"^encoder\.layers\.3\.norm2 +\(130, 96\)", "\n".join(lines), flags=re.M)  # 2 + 128 tokens


def test_token_lines_keep_columns_and_order() -> None:
    tokens, ids, spans = ["[CLS]", "▁القط", "猫", "x"], [0, 12345, 7, 8], [(0, 0), (0, 4), (5, 6), (6, 7)]
    lines = token_lines(tokens, ids, spans)
    assert len(lines) == 3
    places = [(line.index(cell), cell) for line, cell in zip(lines, ("▁القط", "12345", "0:4"), strict=True)]
    assert len({width(line[:at]) for line, (at, _) in zip(lines, places, strict=True)}) == 1
    # A mark returns a terminal to left-to-right order.
    assert "▁القط\u200e" in lines[0] and "猫\u200e" not in lines[0]
    long = token_lines(["token"] * 100, [1] * 100, [(0, 1)] * 100)
    assert len(long) > 3 and len(long) % 3 == 0 and sum(line.count("token") for line in long) == 100

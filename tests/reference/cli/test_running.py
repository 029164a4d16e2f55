"""What the commands that run a task share: notes, progress, errors and what is shown, over windows of texts."""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import make_checkpoint

import ernie_m.reference as ernie
from ernie_m.reference.cli import classify, extract, running, search
from ernie_m.reference.cli.input import Text
from ernie_m.reference.cli.output import Progress, said_warnings
from ernie_m.reference.cli.program import main
from ernie_m.reference.tasks import Encoder

LONG = "The cat sleeps on the sofa. " * 20


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("head"), ernie.ErnieMForSequenceClassification))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("encoder"), num_hidden_layers=2))


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal as standard error. No fixture: pytest replaces standard error when the test begins."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_truncated_texts_are_counted_over_all_windows(
    classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal windows too, whose warnings are equal. Seen red: each window's count, and Python's filter of repeats."""
    monkeypatch.setattr(classify, "WINDOW", 3)
    (tmp_path / "x.txt").write_text(f"{LONG}\n" * 10 + "short\n", "utf-8")
    assert main(["classify", "--model", classifier, "--file", str(tmp_path / "x.txt")]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 11
    (line,) = captured.err.splitlines()
    assert line.startswith("ernie-m: 10 of 11 ")


def test_other_warnings_are_noted_once_and_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with said_warnings():
        for _ in range(2):
            warnings.warn("a note", stacklevel=1)
            warnings.warn("1,000 of 2,000 texts were long", stacklevel=1)
        assert capsys.readouterr().err == "ernie-m: a note\n"
    assert capsys.readouterr().err == "ernie-m: 2,000 of 4,000 texts were long\n"


def test_errors_name_the_line(
    classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the index in a window."""
    monkeypatch.setattr(classify, "WINDOW", 3)
    (tmp_path / "x.txt").write_text(f"short\n\na\nb\n{LONG}\n", "utf-8")
    assert main(["classify", "--model", classifier, "--long", "error", "--file", str(tmp_path / "x.txt")]) == 2
    assert "error: line 5 of x.txt: expected at most 34 tokens" in capsys.readouterr().err


def test_warnings_name_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    window = [Text("a", "line 7 of x.txt"), Text("b", "line 8 of x.txt")]
    with said_warnings(), running.naming(window):
        warnings.warn("texts[1]: left out 'c', and d in contexts[0]; texts[2] is none", stacklevel=1)
    said = "line 8 of x.txt: left out 'c', and d in line 7 of x.txt; texts[2] is none"
    assert capsys.readouterr().err == f"ernie-m: {said}\n"


def test_errors_name_the_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_checkpoint(tmp_path, ernie.ErnieMForQuestionAnswering, num_labels=2)
    assert main(["answer", "--model", str(model), "--question", LONG, "x"]) == 2
    assert "error: --question: expected at most" in capsys.readouterr().err
    assert main(["answer", "--model", str(model), "--question", "Where?", "In London."]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "In London."


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_progress_is_erased_however_it_ends(
    stop: type[BaseException], classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the line that says why. Seen red without the `finally`."""
    shown = terminal(monkeypatch)

    def classified(self: Any, *arguments: Any) -> None:
        self.progress(240, 1280)
        raise stop

    monkeypatch.setattr(classify.Classifier, "classify", classified)
    assert main(["classify", "--model", classifier, "x"]) != 0
    assert shown.getvalue().startswith("\r240 of 1,280 rows of tokens read\r\x1b[Kernie-m: ")


def test_progress_leaves_nothing_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    progress = Progress("rows")
    progress.of(1, 2)
    progress.of(2, 2)
    progress.clear()
    assert shown.getvalue() == "\r1 of 2 rows\r\x1b[K"


def test_search_shows_progress_in_the_corpus(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Window by window, with the hits of one run."""
    (tmp_path / "c.txt").write_text("a\nb\n\nc\n", "utf-8")
    command = ["search", "--model", encoder, "--corpus", str(tmp_path / "c.txt"), "--top-k", "9", "c", LONG]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "ernie-m: truncated 1 text to the model's 34 tokens"
    assert main([*command, "--format", "text"]) == 0
    assert "  (empty line)\n" in capsys.readouterr().out
    monkeypatch.setattr(search, "CORPUS_WINDOW", 3)
    shown = terminal(monkeypatch)
    assert main(command) == 0
    what = "of 4 texts of the corpus encoded"
    assert f"\r3 {what}\r4 {what}\r\x1b[K" in shown.getvalue()
    ours, theirs = ([json.loads(line) for line in out.splitlines()] for out in (captured.out, capsys.readouterr().out))
    assert [[hit["index"] for hit in x["hits"]] for x in ours] == [[hit["index"] for hit in x["hits"]] for x in theirs]


@pytest.mark.parametrize("options", [{"layer": 1}, {"pooling": "cls"}, {"pooling": "first-last"}])
@pytest.mark.parametrize("name", ["c.npy", "c.npz"])
def test_search_in_vectors_of_any_layer_and_pooling(
    name: str, options: dict[str, Any], encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text finds itself at distance 0, and a note says with which options the queries are encoded."""
    (tmp_path / "c.txt").write_text("a cat\na dog\n\n", "utf-8")
    given = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    corpus = str(tmp_path / name)
    assert main(["encode", "--model", encoder, *given, "--file", str(tmp_path / "c.txt"), "--output", corpus]) == 0
    assert main(["search", "--model", encoder, *given, "--corpus", corpus, "a dog"]) == 0
    captured = capsys.readouterr()
    first, second, _ = json.loads(captured.out)["hits"]
    assert first == {"index": 1, "score": pytest.approx(1.0, abs=1e-5)} and second["score"] < 0.9999
    made = f"made with --pooling {options.get('pooling', 'mean')}"
    layer = "" if options.get("pooling") == "first-last" else f" --layer {options.get('layer', 2)}"
    assert f"{corpus} should have been {made}{layer} and without --center" in captured.err


def test_align_takes_layer_and_pooling(encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["The cat sleeps.", "Die Katze schläft."]
    found = []
    for options in ([], ["--layer", "0"], ["--pooling", "first-last"], ["--pooling", "mean", "--layer", "2"]):
        assert main(["align", "--model", encoder, *options, *pair]) == 0
        found.append(capsys.readouterr().out)
    assert len(set(found[:3])) == 3 and found[3] == found[0]
    assert main(["align", "--model", encoder, "--pooling", "pooler", *pair]) == 2


HEADER = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2)}"
NPY = b"\x93NUMPY\1\0" + len(HEADER).to_bytes(2, "little") + HEADER + bytes(16)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("z.npy", b"", "No data left in file"),
        ("z.npz", b"PK\x03\x04 and no zip", "z.npz"),
        ("z.npy", b"some text\n", "z.npy: it is damaged, or no .npy or .npz file of numbers"),
        ("z.npy", NPY[:-1], "z.npy: it is damaged, or no .npy or .npz file of numbers"),
        ("z.npz", {"other": np.ones((2, 3))}, "vectors is not a file in the archive"),
        ("z.npz", {"vectors": np.ones(3)}, "got shape (3,)"),
        ("z.npz", {"vectors": np.array([[None]])}, "z.npz"),
    ],
)
def test_corpora_that_hold_no_vectors(
    name: str, content: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before a model is loaded."""
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.savez(tmp_path / name, **content)
    assert main(["search", "--model", "nowhere", "--corpus", str(tmp_path / name), "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ernie-m: error: --corpus: expected ") and name in line and said in line


def test_a_zip_called_npy_is_read(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "z.npz", vectors=Encoder.from_pretrained(encoder).vectors(["a", "b"]))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    assert main(["search", "--model", encoder, "--corpus", str(tmp_path / "z.npy"), "b"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["index"] == 1


@pytest.mark.parametrize("schema", ['{"a": "b", "a": "c"}', '[{"a": {"b": 1, "c": [], "b": 1}}]'])
def test_schemas_do_not_lose_repeated_names(schema: str, tmp_path: Path) -> None:
    """Python keeps the last."""
    (tmp_path / "s.json").write_text(schema, "utf-8")
    for given in (schema, f" {schema}", f"@{tmp_path / 's.json'}"):
        with pytest.raises(ValueError, match=r"expected each name once, got '[ab]' twice"):
            extract.read(given)


@pytest.mark.parametrize("literal", ["null", "true", "false"])
def test_json_that_is_no_schema_is_no_name(literal: str) -> None:
    with pytest.raises(ValueError, match=f"got JSON's {literal}"):
        extract.read(literal)
    assert extract.read(f'"{literal}"') == literal and extract.read(f"{literal}s") == f"{literal}s"


def test_scores_have_six_significant_digits_in_every_command(
    encoder: str, classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.txt").write_text("a cat\na dog\n", "utf-8")
    for command in (
        ["classify", "--model", classifier, "--top-k", "2", "x", "y"],
        ["search", "--model", encoder, "--corpus", str(tmp_path / "c.txt"), "x", "y"],
        ["align", "--model", encoder, "a b", "c d"],
    ):
        assert main(command) == 0
        scores: list[float] = []

        def keep(pairs: list[tuple[str, Any]], scores: list[float] = scores) -> dict[str, Any]:
            scores += [value for name, value in pairs if name == "score"]
            return dict(pairs)

        for line in capsys.readouterr().out.splitlines():
            json.loads(line, object_pairs_hook=keep)
        assert scores and all(score == float(f"{score:.6g}") for score in scores)
    assert running.rounded({"a": [1.23456789e-9, 7, "1.23456789"]}) == {"a": [1.23457e-9, 7, "1.23456789"]}


def test_control_characters_are_not_sent_to_a_terminal(classifier: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Escaped for people; in JSON as JSON has it. Accents, emoji and right-to-left text stay."""
    text = "\x1b[31mred\x9b\x00 \tüé 👩‍🚀 שלום"
    command = ["classify", "--model", classifier, "--format"]
    assert main([*command, "text", text]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "\\x1b[31mred\\x9b\\x00 \tüé 👩‍🚀 שלום"
    assert main([*command, "json", text]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == text
    assert main(["demo", text, "b"]) == 0
    assert not set(capsys.readouterr().out) & set("\x1b\x9b\x00")

"""The commands that run a task print what the task returns: as JSON lines, or for people."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import corpus, make_checkpoint, run_program
from torch_models import way

import ernie_m.reference as ernie
from ernie_m.reference import demo as demo_checkpoint
from ernie_m.reference.cli import answer, classify, extract, search, tag
from ernie_m.reference.cli.program import main
from ernie_m.reference.cli.running import marked
from ernie_m.reference.tasks import Answerer, Classifier, Encoder, Extractor, Tagger, align
from ernie_m.reference.tasks import search as nearest

TEXTS = [*corpus("en", "ja", "ar")[::30], "", "a\tb [MASK]\u00a0c", "ＡＢＣ ﬁn"]
CLASSES = {"num_labels": 3, "id2label": {0: "entailment", 1: "neutral", 2: "contradiction"}}
TAGS = {"num_labels": 3, "id2label": {0: "O", 1: "B-name", 2: "I-name"}}
# Commands with a head: its class, fields of the configuration, and what the command needs besides texts.
HEADS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "tag": (ernie.ErnieMForTokenClassification, TAGS, []),
    "classify": (ernie.ErnieMForSequenceClassification, CLASSES, []),
    "answer": (ernie.ErnieMForQuestionAnswering, {"num_labels": 2}, ["--question", "Where is the cat?"]),
    "extract": (ernie.ErnieMForInformationExtraction, {}, ["--schema", "cat"]),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint with the head of each command."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for name, (cls, fields, _) in HEADS.items():
        found[name] = str(make_checkpoint(folder / name, cls, **fields))
    return found


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """The JSON lines of a command that succeeds."""
    assert main(list(arguments)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def lines(path: Path, texts: list[str]) -> str:
    """A file of texts."""
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return str(path)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_heads_print_what_the_tasks_return(
    checkpoints: dict[str, str],
    backend: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of texts of a file, in order, over several windows. Seen red: a window's results given to the one before."""
    for module in (answer, classify, extract, tag):
        monkeypatch.setattr(module, "WINDOW", 4)
    with way("without kernels"):
        same_as_the_tasks(checkpoints, backend, lines(tmp_path / "texts.txt", TEXTS), capsys)


def same_as_the_tasks(checkpoints: dict[str, str], backend: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command's lines, and what its task returns."""
    options = {"backend": backend}
    tagged = Tagger.from_pretrained(checkpoints["tag"], **options).tag(TEXTS)
    classes = Classifier.from_pretrained(checkpoints["classify"], **options).classify(TEXTS, top_k=2)
    answerer = Answerer.from_pretrained(checkpoints["answer"], **options)
    answers = answerer.answer(["Where is the cat?"] * len(TEXTS), TEXTS, 3, True, 4)
    extracted = Extractor.from_pretrained(checkpoints["extract"], **options).extract(TEXTS, ["cat"], 0.3)
    more = {"classify": ["--top-k", "2"], "extract": ["--threshold", "0.3"], "tag": []}
    more["answer"] = ["--top-k", "3", "--no-answer", "--longest", "4"]
    for name, key, wanted in (
        ("tag", "entities", [[asdict(x) for x in some] for some in tagged]),
        ("classify", "labels", [[asdict(x) for x in some] for some in classes]),
        ("answer", "answers", [[asdict(x) for x in some] for some in answers]),
        ("extract", "found", extracted),
    ):
        command = [name, "--model", checkpoints[name], "--backend", backend, "--file", file]
        found = printed(capsys, *command, *HEADS[name][2], *more[name])
        assert [line["index"] for line in found] == list(range(len(TEXTS)))
        assert all(line["text"] == text for line, text in zip(found, TEXTS, strict=True))
        # Texts share other batches here than in the commands, which read a few at a time.
        assert rounded([line[key] for line in found]) == rounded(wanted), name
    assert any(tagged) and any(extracted)


def rounded(value: Any) -> Any:
    """With numbers to four digits, of the six that commands print."""
    if isinstance(value, float):
        return f"{float(f'{value:.6g}'):.4g}"
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", HEADS)
def test_heads_show_texts_to_people(name: str, checkpoints: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal, or if asked."""
    text = "The cat sleeps on the sofa."
    command = [name, "--model", checkpoints[name], *HEADS[name][2], "--format", "text", text]
    assert main(command) == 0
    shown = capsys.readouterr().out
    plain = shown
    for mark in ("[", "](name)"):
        plain = plain.replace(mark, "")
    assert plain.startswith(text) and not shown.startswith("{")


def test_marks_stand_around_spans() -> None:
    assert marked("Ada is in London.", [(0, 3, "name"), (10, 16, "place")]) == "[Ada](name) is in [London](place)."
    assert marked("猫", [(0, 1, "x")]) == "[猫](x)" and marked("", []) == ""


def test_zero_shot_through_entailment(checkpoints: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """All labels, best first."""
    command = ["classify", "--model", checkpoints["classify"], "--label", "sports", "--label", "art", "A match."]
    (line,) = printed(capsys, *command, "--template", "About {}.")
    classifier = Classifier.from_pretrained(checkpoints["classify"])
    wanted = classifier.zero_shot("A match.", ["sports", "art"], "About {}.")
    assert rounded(line["labels"]) == rounded([asdict(label) for label in wanted])


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["person", "place"], ["person", "place"]),
        (['["person", {"place": "age"}]', "name"], ["person", {"place": "age"}, "name"]),
        (["attitude [good, bad]"], ["attitude [good, bad]"]),
        (['{"person": ["a", {"b": null}]}'], [{"person": ["a", {"b": None}]}]),
    ],
)
def test_schemas_of_the_command_line(given: list[str], read: list[Any], tmp_path: Path) -> None:
    """Names and JSON, in arguments and files."""
    assert extract.flat([extract.read(one) for one in given]) == read
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "schema.json").write_text(json.dumps(read), encoding)
        assert extract.flat([extract.read(f"@{tmp_path / 'schema.json'}")]) == read
    (tmp_path / "schema.json").write_text(json.dumps(read), "utf-16")
    with pytest.raises(ValueError, match=r"schema\.json: expected JSON in UTF-8: "):
        extract.read(f"@{tmp_path / 'schema.json'}")
    (tmp_path / "schema.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"schema\.json: expected a name or JSON, got "):  # seen red: a RecursionError
        extract.read(f"@{tmp_path / 'schema.json'}")


def test_relations_are_shown_below() -> None:
    age = {"text": "36", "start": 7, "end": 9, "probability": 0.8}
    person = {"text": "Ada", "start": 0, "end": 3, "probability": 0.9, "relations": {"age": [age]}}
    found = {"person": [person], "mood": [{"text": "good", "probability": 0.7}]}
    assert extract.lines(found) == ["  person: Ada 0:3 (0.900)", "    age: 36 7:9 (0.800)", "  mood: good (0.700)"]


@pytest.mark.parametrize("languages", [(), ("en", "de")])
def test_search_prints_the_nearest(
    languages: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of texts, and of vectors in a file, with and without their texts."""
    monkeypatch.setattr(search, "WINDOW", 2)
    known, queries = corpus("de")[:12], corpus("en")[:5]
    options = {"center": bool(languages), "normalize": True}
    encoder = Encoder.from_pretrained(demo_checkpoint.directory(), **options)
    en, de = languages or (None, None)
    vectors = encoder.vectors(known, language=de)
    wanted = nearest(encoder.vectors(queries, language=en), vectors, 3)
    np.save(tmp_path / "vectors.npy", vectors)
    texts = lines(tmp_path / "texts.txt", known)
    asked = ["--file", lines(tmp_path / "queries.txt", queries), "--top-k", "3"]
    if languages:
        asked += ["--language", "en"]
    text = ["--corpus", texts, *(["--corpus-language", "de"] if languages else [])]
    for given in (text, ["--corpus", str(tmp_path / "vectors.npy"), "--corpus-texts", texts]):
        found = printed(capsys, "search", *asked, *given)
        assert [line["query"] for line in found] == queries
        assert [[hit["index"] for hit in line["hits"]] for line in found] == wanted.indices.tolist()
        assert all(hit["text"] == known[hit["index"]] for line in found for hit in line["hits"])
        scores = [[hit["score"] for hit in line["hits"]] for line in found]
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-5)
    (line, *_) = printed(capsys, "search", *asked, "--corpus", str(tmp_path / "vectors.npy"))
    assert "text" not in line["hits"][0]
    assert main(["search", *asked, *text, "--format", "text"]) == 0
    assert capsys.readouterr().out.startswith(f"{queries[0]}\n  {wanted.scores[0, 0]:.3f}  ")


def test_align_prints_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of arguments and of lines with a tab."""
    pair = "Close the file.", "Schließen Sie die Datei."
    encoder = Encoder.from_pretrained(demo_checkpoint.directory(), center=True)
    languages = ["--language", "en", "--translation-language", "de"]
    wanted = align(*pair, encoder, language="en", translation_language="de")
    (found,) = printed(capsys, "align", *languages, *pair)
    assert [(tuple(x["source"]), tuple(x["target"])) for x in found["pairs"]] == [(x.source, x.target) for x in wanted]
    file = lines(tmp_path / "pairs.tsv", ["\t".join(pair)] * 2)
    again = printed(capsys, "align", *languages, "--file", file)
    assert [{**line, "index": 0} for line in again] == [found, found]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tag", "x"], "--model"),
        (["tag", "--model", "nowhere", "x"], "nowhere"),
        (["tag", "--model", "{answer}", "x"], "ErnieMForTokenClassification"),
        (["classify", "--model", "{classify}", "--template", "{{}}", "x"], "--label"),
        (["classify", "--model", "{classify}", "--multi-label", "x"], "error: --multi-label: expected --label"),
        (["classify", "--model", "{classify}", "--label", "a", "--pair", "b", "x"], "--pair"),
        (["classify", "--model", "{classify}", "--top-k", "0", "x"], "at least 1"),
        (["classify", "--model", "{classify}", "--label", "a", "--top-k", "2", "x"], "--top-k, --label: expected only"),
        (["extract", "--model", "{extract}", "--schema", "[1", "x"], "[1"),
        (["extract", "--model", "{extract}", "--schema", "[1]", "x"], "schema[0]"),
        (["extract", "--model", "{extract}", "--schema", "a", "--threshold", "1.5", "x"], "1.5"),
        (["extract", "--model", "{extract}", "--schema", "@nowhere.json", "x"], "nowhere.json"),
        (["extract", "--model", "{extract}", "--schema", "@", "x"], "--schema: expected the name of a file after @"),
        (["search", "--corpus", "nowhere.txt", "x"], "nowhere.txt"),
        (["search", "--corpus", "{text}", "--corpus-texts", "{text}", "x"], "--corpus-texts"),
        (["search", "--corpus", "{text}", "--language", "en", "x"], "--corpus-language"),
        (
            ["search", "--corpus", "a.npy", "--language", "en", "--corpus-language", "de", "x"],
            "--corpus-language: expected none with the vectors in a.npy, as it would have no effect, got de",
        ),
        (["align", "one"], "a sentence and its translation"),
        (["align", "--file", "{text}"], "line 1 of a.txt"),
        (["align", "--language", "en", "a", "b"], "--translation-language"),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: list[str],
    message: str,
    checkpoints: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {**checkpoints, "text": lines(tmp_path / "a.txt", ["one line"])}
    assert main([argument.format(**places) for argument in arguments]) == 2
    found = capsys.readouterr()
    assert message in found.err.splitlines()[-1] and not found.out


def test_vectors_and_texts_must_be_as_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count, said in ((2, "got 2"), (4, "got more")):
        np.save(tmp_path / "x.npy", np.ones((3, demo_width()), np.float32))
        texts = lines(tmp_path / "t.txt", ["a"] * count)
        assert main(["search", "--corpus", str(tmp_path / "x.npy"), "--corpus-texts", texts, "x"]) == 2
        assert said in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.ones(3))
    assert main(["search", "--corpus", str(tmp_path / "x.npy"), "x"]) == 2
    assert "(3,)" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.ones((3, 9)))
    for content in (b"x", pickle.dumps([1.0]), (tmp_path / "x.npy").read_bytes()[:-8]):
        (tmp_path / "x.npy").write_bytes(content)
        assert main(["search", "--corpus", str(tmp_path / "x.npy"), "x"]) == 2
        said = f"--corpus: expected an array of vectors in {tmp_path / 'x.npy'}: it is damaged, or no .npy or"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("values", [["a"], [["a", "b"]], [[True]], [[1, 2]], [[1j]], [[None]]])
def test_a_corpus_of_other_values_is_refused(
    values: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before a model is loaded. Seen red: a repr of two lines, words about memory-mapping."""
    array, path = np.array(values), tmp_path / name
    save = np.save if name == "x.npy" else lambda path, x: np.savez(path, vectors=x)
    save(path, array)
    assert main(["search", "--corpus", str(path), "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = f"vectors of float16, float32 or float64 in {path}, got an array of {array.dtype}"
    if array.dtype == object:
        said = f"an array of vectors in {path}: it is damaged, or no .npy or .npz file of numbers"
    assert line == f"ernie-m: error: --corpus: expected {said}"


def test_search_of_an_array_of_texts_names_its_shape() -> None:
    encoder = Encoder.from_pretrained(demo_checkpoint.directory())
    with pytest.raises(TypeError, match=r"^corpus: expected .* a list of texts, got an array of shape \(2, 1\)$"):
        nearest(np.ones((1, 96)), np.array([["a"], ["b"]]), encoder=encoder)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs a path to a pipe")
def test_search_reads_a_pipe_only_once(tmp_path: Path) -> None:
    """Seen red: exit code 0 and no line, as the corpus had taken the queries; --corpus-texts of no line."""
    np.save(tmp_path / "x.npy", np.ones((2, demo_width()), np.float32))
    texts, vectors = lines(tmp_path / "texts.txt", ["a", "b"]), str(tmp_path / "x.npy")
    for arguments, names in (
        (["--corpus", "/dev/stdin"], "TEXT or --file, --corpus"),
        (["--corpus", "/dev/fd/0", "--file", "-"], "TEXT or --file, --corpus"),
        (["--corpus", "/dev/stdin", "--file", "/dev/stdin"], "--file, --corpus"),
        (["--corpus-texts", "/dev/stdin", "--corpus", vectors], "TEXT or --file, --corpus-texts"),
    ):
        done = run_program("search", *arguments, input=b"a\nb\n")
        said = f"{names}: expected two inputs, got {arguments[1]} for both, which can be read only once"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"ernie-m: error: {said}\n")
    for arguments in (["/dev/stdin", "a"], [texts], ["/dev/stdin", "--file", texts]):
        assert run_program("search", "--corpus", *arguments, input=b"a\nb\n").returncode == 0
    with open(texts, "rb") as queries:  # a file may be read twice
        assert run_program("search", "--corpus", "/dev/stdin", stdin=queries).stdout.count(b"\n") == 2


def demo_width() -> int:
    """The width of the demo's vectors."""
    return ernie.ErnieMConfig.from_pretrained(demo_checkpoint.directory()).hidden_size

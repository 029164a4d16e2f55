"""MIGRATING.md is run: the right columns here, the left ones with transformers, and both give the same.

A cell's code spans are run in order; "the same" stands for the code of the left cell.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import make_checkpoint
from torch_models import config_of

import ernie_m.reference as ernie
from ernie_m.reference import demo

PAGE = Path(__file__).resolve().parent.parent.parent / "MIGRATING.md"
ROW = re.compile(r"^\| (.+) \| (.+) \|$", re.M)
# Code spans that are no Python, or not to be run: names of files, commands, calls that need a network.
NOT_RUN = re.compile(r"^(\S+\.pdparams|ernie-m .*|[A-Z_]+=\S+|Auto.*|pipeline\(.*|.*push_to_hub.*)$")


def tables() -> dict[str, list[tuple[str, str]]]:
    """The rows of each table, by its title, without the heads."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    return {title: ROW.findall(body)[1:] for title, body in zip(parts[::2], parts[1::2], strict=True)}


def spans(cell: str) -> list[str]:
    """The code of a cell."""
    return [code for code in re.findall(r"`([^`]+)`", cell) if not NOT_RUN.match(code)]


def ours(left: str, right: str) -> list[str]:
    return (spans(left) if right.startswith("the same") else []) + spans(right)


def theirs(left: str, right: str) -> list[str]:
    return spans(left)


def run(titles: list[str], code_of: Callable[[str, str], list[str]], names: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run the rows of these tables, one after the other; yields the names after each."""
    for title in titles:
        for left, right in tables()[title]:
            for code in code_of(left, right):
                try:
                    exec(code, names)
                except Exception as error:
                    raise AssertionError(f"MIGRATING.md, {title}: {code}\n{type(error).__name__}: {error}") from error
            yield names


@pytest.fixture(autouse=True)
def _directories(tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(demo.directory(), tmp_path / "DIR", ignore=shutil.ignore_patterns("*.py", "corpus", "__pycache__"))
    shutil.copytree(fixtures / "paddle_tiny" / "model", tmp_path / "PADDLE_DIR")
    shutil.copytree(fixtures / "paddle_tiny" / "uiem", tmp_path / "UIEM_DIR")
    for name, (cls, fields) in HEADS.items():
        make_checkpoint(tmp_path / name, cls, **fields)
    monkeypatch.chdir(tmp_path)


def given() -> dict[str, Any]:
    """What the page takes for granted."""
    texts = ["Good morning!", "The cat is sleeping on the sofa."]
    row = {"input_ids": torch.tensor([0, 5, 9, 2]), "labels": torch.tensor(3)}
    ids = torch.tensor([[0, 5, 9, 2]])
    return {"torch": torch, "texts": texts, "data": [row] * 4, "ids": ids, "theirs": config_of()}


# The checkpoints of the tables on pipelines and on Taskflow.
CLASSES = {"num_labels": 3, "id2label": {0: "entailment", 1: "neutral", 2: "contradiction"}}
HEADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "TAGS": (ernie.ErnieMForTokenClassification, {"num_labels": 3, "id2label": {0: "O", 1: "B-name", 2: "I-name"}}),
    "CLASSES": (ernie.ErnieMForSequenceClassification, CLASSES),
    "ANSWERS": (ernie.ErnieMForQuestionAnswering, {"num_labels": 2}),
    "CHOICES": (ernie.ErnieMForMultipleChoice, {}),
    "UIE": (ernie.ErnieMForInformationExtraction, {}),
}
TABLES = ["Loading", "Calling", "Changing and saving", "Around the model"]


def around() -> dict[str, Any]:
    """What both columns import from other libraries."""
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    found = {name: getattr(transformers, name) for name in ("DataCollatorWithPadding", "TrainingArguments", "Trainer")}
    return found | {name: getattr(peft, name) for name in ("LoraConfig", "get_peft_model")}


def test_every_row_has_code_or_says_that_there_is_none() -> None:
    found = tables()
    assert list(found) == [*TABLES, "Pipelines", "From PaddleNLP"]
    for title, rows in found.items():
        assert len(rows) >= 4, title
        for left, right in rows:
            assert "`" in left, left
            assert ours(left, right) or re.search(r"not here|not yet|name the class|nothing is", right), right


def test_the_right_column_runs() -> None:
    """Without transformers too, but for what is built on it."""
    names = given()
    for _ in run(TABLES[:3], ours, names):
        pass
    assert names["model"].config.pruned_heads == {0: (1,)} and names["model"].config.vocab_size == 4300


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_both_columns_give_the_same() -> None:
    """After each row of "Calling" all that both have named is equal, at tokens; heads are newly initialised."""
    pytest.importorskip("transformers.models.ernie_m", reason="transformers 4.40.2 has it, 5 has not")
    left, right = given() | around(), given() | around()
    for _ in run(TABLES[:1], theirs, left):
        pass
    for _ in run(TABLES[:1], ours, right):
        pass
    for mine, other in zip(run(TABLES[1:2], ours, right), run(TABLES[1:2], theirs, left), strict=True):
        tokens = mine["batch"]["attention_mask"].bool()
        assert torch.equal(mine["batch"]["input_ids"], other["batch"]["input_ids"])
        for name in {"hidden", "out"} & mine.keys():
            a, b = (x if isinstance(x, torch.Tensor) else x.last_hidden_state for x in (mine[name], other[name]))
            torch.testing.assert_close(a[tokens], b[tokens], rtol=1e-4, atol=1e-4)
    for _ in run(TABLES[2:], theirs, left):
        pass
    shutil.rmtree("NEW")
    for _ in run(TABLES[2:], ours, right):
        pass


def test_the_column_for_pipelines_runs() -> None:
    names = given()
    for _ in run(["Pipelines"], ours, names):
        pass
    assert all(len(names[name]) == len(names["texts"]) for name in ("vectors", "tokens", "entities", "labels"))
    assert names["answers"][0].text in names["texts"][0] and len(names["choices"]) == 2


def test_the_column_for_paddle_runs() -> None:
    names = given()
    for _ in run(["From PaddleNLP"], ours, names):
        pass
    assert len(names["found"]) == len(names["texts"])
    assert names["uie"](names["ids"]).start_prob.shape == (1, 4)
    assert names["model"].config.default_mask == "cls_token"

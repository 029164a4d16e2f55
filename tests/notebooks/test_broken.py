"""The broken trainings: each shows its fault, the right diagnosis is accepted, and each wrong one is refuted.

Seen red: a training without its fault; a fault that does not change the loss; a wrong step that is accepted; a list of
names that is refused; a step from NumPy that is refused; answers of another type that end in a TypeError.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

plt = pytest.importorskip("matplotlib.pyplot")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture
def broken(exercises: None) -> ModuleType:
    return importlib.import_module("broken")


@pytest.fixture
def judging(broken: ModuleType) -> ModuleType:
    return importlib.import_module("diagnoses")


def solutions() -> dict[str, tuple[str, Any]]:
    path = NOTEBOOKS / "solutions" / "broken_solutions.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DIAGNOSES


def test_a_leak_makes_the_loss_better_than_possible(broken: ModuleType) -> None:
    assert broken.run("A").last < 0.75 * broken.BEST < broken.trained(broken.REPAIRED["A"]).last < 2 * broken.BEST


def test_a_doubled_rate_stops_the_loss_from_falling(broken: ModuleType) -> None:
    found, repaired = broken.run("B"), broken.trained(broken.REPAIRED["B"])
    assert found.last > 2 * repaired.last
    for run, least, most in ((found, 1.8, 2.2), (repaired, 0.9, 1.1)):
        moves = run.moved["word_embeddings"]
        assert least < moves[20] / moves[19] < most


def test_only_queries_and_keys_lose_their_gradient(broken: ModuleType) -> None:
    found, repaired = broken.run("C"), broken.trained(broken.REPAIRED["C"])
    assert found.last > 1.5 * repaired.last
    without = {path.split(".")[2] for path, norms in found.gradients.items() if not norms.any()}
    assert without == {"q_proj", "k_proj"}
    assert all(norms.any() for norms in repaired.gradients.values())
    # Weight decay moves them nevertheless.
    assert found.moved["layers.0.q_proj.weight"][1:].all()


@pytest.mark.parametrize("name", "ABC")
def test_solution_is_right_and_shows_the_repaired_training(
    judging: ModuleType, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    judging.diagnose(name, *solutions()[name])
    assert capsys.readouterr().out.startswith(f"{name}: right: ")
    labels = [line.get_label() for line in plt.gcf().axes[0].lines]
    assert labels == [f"{name}, as it was", f"{name}, repaired", "the best possible"]


@pytest.mark.parametrize("name", "ABC")
def test_wrong_cause_is_refuted_from_the_run(judging: ModuleType, name: str) -> None:
    answers = set()
    for cause in judging.CAUSES:
        right, text = judging.judged(name, cause)
        assert not right
        assert text.startswith(f"{name}: not {cause!r}: " if cause != solutions()[name][0] else f"{name}: yes, ")
        answers.add(text.split(": ", 2)[-1])
    assert len(answers) == len(judging.CAUSES), "each has its own answer"
    assert "not written yet" in judging.judged(name, None)[1]
    assert "expected one of" in judging.judged(name, "bad luck")[1]


@pytest.mark.parametrize(
    ("name", "where", "words"),
    [
        ("A", (0, 1), "[CLS] at 0 may see x"),
        ("A", (0, 12), "[CLS] at 0 does not see [MASK] at 12"),
        ("A", 3, "`where` is (row, column)"),
        ("A", None, "Where? `where` is (row, column)"),
        ("B", 21, "in the step before"),
        ("B", 1, "and 0 in the step before"),
        ("B", np.int64(19), "in step 19"),
        ("B", True, "in step 1"),
        ("B", "20", "`where` is the first step"),
        ("B", 0, "`where` is the first step"),
        ("C", "v_proj", "layers.0.v_proj.weight gets a gradient"),
        ("C", "layers.0", "gets a gradient"),
        ("C", "k_proj.bias", "have no gradient in any run"),
        ("C", "softmax", "`where` is a part of the names"),
        ("C", ["q_proj", "v_proj"], "layers.0.v_proj.weight gets a gradient"),
        ("C", ["q_proj", "softmax"], "`where` is a part of the names"),
    ],
)
def test_wrong_place_is_told(judging: ModuleType, name: str, where: Any, words: str) -> None:
    right, text = judging.judged(name, solutions()[name][0], where)
    assert not right and words in text, text


@pytest.mark.parametrize(
    ("name", "where"),
    [("A", [6, 1]), ("A", np.array([0, 6])), ("B", 20.0), ("B", np.int64(20)), ("C", ["q_proj", "k_proj"])],
)
def test_right_place_is_accepted_in_other_words(judging: ModuleType, name: str, where: Any) -> None:
    assert judging.judged(name, solutions()[name][0], where)[0]


@pytest.mark.parametrize("cause", [["a leak"], {"a leak"}, 3])
def test_cause_of_another_type_is_told(judging: ModuleType, cause: Any) -> None:
    right, text = judging.judged("A", cause)
    assert not right and "expected one of" in text


def test_unknown_training_is_told(judging: ModuleType) -> None:
    with pytest.raises(ValueError, match="name: expected one of 'A', 'B', 'C', got 'D'"):
        judging.judged("D", None)


def test_ipynb_leaves_the_diagnosis_to_the_reader() -> None:
    path = NOTEBOOKS / "exercises" / "06_broken_trainings.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    asked = [cell for cell in cells if any(line.startswith("diagnose(") for line in cell["source"])]
    assert len(asked) == 3
    for cell in asked:
        assert "not written yet" in cell["outputs"][0]["text"][0]

"""The exercises whose result is right or wrong as a whole: every mistake that they know is found and named.

Seen red: a mask that is right among the mistakes; leaks looked for in one layer only; hints that do not tell apart two
mistakes; spans with a threshold that includes its own value.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from uie_vectors import GET_SPAN

plt = pytest.importorskip("matplotlib.pyplot")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
EXERCISES = NOTEBOOKS / "exercises"


pytestmark = pytest.mark.usefixtures("exercises")


@pytest.fixture
def masks() -> ModuleType:
    return importlib.import_module("mask_checks")


@pytest.fixture
def spans() -> ModuleType:
    return importlib.import_module("span_checks")


@pytest.mark.parametrize("exercise", ["leak_proof_mask", "pair_spans"])
def test_solution_is_right(capsys: pytest.CaptureFixture[str], exercise: str) -> None:
    path = NOTEBOOKS / "solutions" / "mask_and_span_solutions.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    importlib.import_module("whole").answer(exercise, getattr(module, exercise))
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{exercise}: right." and second.startswith("  100 drawn ")
    assert not plt.get_fignums()


def test_ipynb_shows_the_answer_to_every_stub() -> None:
    cells = json.loads((EXERCISES / "05_masks_and_spans.ipynb").read_text(encoding="utf-8"))["cells"]
    asked = [cell for cell in cells if any(line.startswith("answer(") for line in cell["source"])]
    assert len(asked) == 2
    for cell in asked:
        assert any("not written yet" in line for output in cell["outputs"] for line in output.get("text", []))
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_each_wrong_mask_is_found_in_its_layer_and_gets_its_own_hint(masks: ModuleType) -> None:
    layers = {}
    for words, form in masks.MISTAKES.items():
        reason, layers[words.split(":")[0]] = masks.fault(form(*masks.TELLING[0].values()), **masks.TELLING[0])
        assert reason
        assert masks.mistake(form, masks.MISTAKES, masks.TELLING) == words
    assert layers["every place sees every place"] == 1
    assert layers["text sees the text of both sides"] == 2
    assert layers["text sees the masks of its own side, which have read the other side"] == 3
    assert masks.mistake(masks.right, masks.MISTAKES, masks.TELLING) is None


def test_each_wrong_pairing_is_found_and_gets_its_own_hint(spans: ModuleType) -> None:
    inputs = [spans.telling(seed) for seed in range(3)]
    for words, form in spans.MISTAKES.items():
        assert any(spans.fault(form(*given.values()), spans.right(**given)) for given in inputs)
        assert spans.mistake(form, spans.MISTAKES, inputs) == words
    assert spans.mistake(spans.right, spans.MISTAKES, inputs) is None


@pytest.mark.parametrize(
    ("module", "words", "pieces"),
    [
        ("mask_checks", "text sees the masks of its own", ["after 3 layers, masked place ", " <- ", "  sides = ["]),
        ("span_checks", "a start is used again by", ["does not belong there", "  starts = ["]),
        ("span_checks", "the product is compared", ["is missing", "threshold = 0."]),
        ("span_checks", "`threshold` is not read", ["threshold = 0."]),
    ],
)
def test_the_smallest_wrong_input_is_shown_and_drawn(module: str, words: str, pieces: list[str]) -> None:
    checks = importlib.import_module(module)
    named, form = next((named, form) for named, form in checks.MISTAKES.items() if named.startswith(words))
    right, text, figure = checks.examine(form, 100)
    assert not right and f"\nHint: {named}.\nThe smallest " in text
    for piece in pieces:
        assert piece in text, text
    figure.canvas.draw()


def test_a_leak_names_its_route(masks: ModuleType) -> None:
    form = next(form for words, form in masks.MISTAKES.items() if words.startswith("text sees the masks"))
    sides, masked = np.array([0, 0, 1, 1]), np.array([False, True, False, True])
    reason, layers = masks.fault(form(sides, masked), sides, masked)
    assert layers == 3 and reason.endswith(": 1 <- 2 <- 3 <- 0")


def test_other_masks_that_do_not_leak_are_right(masks: ModuleType) -> None:
    def masks_see_each_other(sides: np.ndarray, masked: np.ndarray) -> np.ndarray:
        return masks.right(sides, masked) | (masked[:, None] & masked & (sides[:, None] == sides))

    assert masks.examine(masks_see_each_other, 100)[0]


def test_calls_that_fail_are_told(masks: ModuleType, spans: ModuleType) -> None:
    for checks, function, words in (
        (masks, lambda sides, masked: masked.fill(True), "it changed its argument masked"),
        (spans, lambda starts, ends, threshold: starts[99], "it raised IndexError"),
        (masks, lambda sides, masked: sys.exit(3), "it raised SystemExit: 3"),
    ):
        right, text, _ = checks.examine(function, 20)
        assert not right and words in text, text


def test_functions_that_remember_are_told(masks: ModuleType, spans: ModuleType) -> None:
    calls = iter(range(10**6))

    def now_and_then(sides: np.ndarray, masked: np.ndarray) -> np.ndarray:
        right = masks.right(sides, masked)
        return right if next(calls) % 3 else ~right

    def kept(starts: np.ndarray, ends: np.ndarray, threshold: float, found: list = []) -> list:  # noqa: B006
        found += spans.right(starts, ends, threshold)
        return found

    for checks, function in ((masks, now_and_then), (spans, kept)):
        right, text, figure = checks.examine(function, 50)
        assert not right and "different results for the same arguments" in text
        assert len(text) < 500 and figure is not None


@pytest.mark.parametrize("number", [None, "1", np.array([1, 2])])
def test_spans_of_anything_but_numbers_are_told(spans: ModuleType, number: object) -> None:
    right, text, figure = spans.examine(lambda starts, ends, threshold: [(0, 1, number)], 20)
    assert not right and "three numbers each" in text
    figure.canvas.draw()


def test_results_of_another_form_are_told(masks: ModuleType, spans: ModuleType) -> None:
    sides, masked = np.array([0, 1]), np.array([True, False])
    assert masks.fault(masked, sides, masked)[0] == "it returned bool of shape (2,), expected bool of shape (2, 2)"
    assert masks.fault(np.eye(2), sides, masked)[0].startswith("it returned float64 of shape (2, 2)")
    expected = [(0, 0, 1.0), (1, 2, 0.5)]
    assert "expected a list of tuples (start, end, probability)" in spans.fault([(0, 1)], expected)
    assert spans.fault(expected[::-1], expected).endswith("in this order")
    assert spans.fault([*expected, expected[0]], expected).endswith("(0, 0, 1) is there twice")


def test_paired_as_in_the_documented_cases(spans: ModuleType) -> None:
    """The pairs of PaddleNLP's `get_span`, as recorded for the reference's decoding."""
    for starts, ends, pairs in GET_SPAN:
        at = [np.isin(np.arange(10), places).astype(float) for places in (starts, ends)]
        assert [span[:2] for span in spans.right(*at, 0.5)] == pairs

"""The exercises: every solution passes; every stub, and a typical mistake in each exercise, gets a helpful answer.

Seen red: a solution without its mask, its cast or its scale; a stub that is filled in; a mistake that is right; two
mistakes of one exercise that look alike.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

plt = pytest.importorskip("matplotlib.pyplot")
pytest.importorskip("torch")
pytest.importorskip("triton")

import wrong_answers as wrong  # noqa: E402 (needs torch)
import wrong_warm_ups as wrong_warm_up  # noqa: E402

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
# By the notebook, the arrays of its functions, the file of its solutions, and its exercises.
NOTEBOOK: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "01_numpy": ("numpy", "numpy_solutions", ("softmax", "layer_norm", "mask_from_lengths", "unpad", "pad")),
    "02_triton_warm_up": (
        "torch",
        "warm_up_solutions",
        ("add_constant", "add_bias", "row_sum", "masked_max", "matmul"),
    ),
    "03_triton": ("torch", "triton_solutions", ("gelu", "softmax", "add_layer_norm", "attention_head")),
    "04_backward": (
        "numpy",
        "backward_solutions",
        ("softmax_backward", "layer_norm_backward", "gelu_backward", "attention_backward"),
    ),
}
EVERY = [(source, exercise) for source, (_, _, exercises) in NOTEBOOK.items() for exercise in exercises]
# Triton's interpreter is slow.
EXAMPLES = {"numpy": 25, "torch": 4}
# Exercises that are checked in float32 alone.
ONE_DTYPE = ("02_triton_warm_up",)

# What the answer to a mistake must contain: where and what (the numbers), and why (the hint).
MISTAKES: list[tuple[str, str, Callable[..., Any], list[str]]] = [
    (
        "01_numpy",
        "softmax",
        wrong.softmax_without_maximum,
        ["got nan at [", "expected 1 (error", "subtract the row maximum"],
    ),
    ("01_numpy", "softmax", wrong.softmax_from_its_logarithm, ["got 0.5", "expected 0.5", "loses digits"]),
    ("01_numpy", "layer_norm", wrong.layer_norm_unbiased, ["expected", "divided by E - 1; LayerNorm divides by E"]),
    ("01_numpy", "layer_norm", wrong.layer_norm_in_one_pass, ["expected", "in one pass", "subtract the mean first"]),
    (
        "01_numpy",
        "layer_norm",
        wrong.layer_norm_with_the_sum_of_its_parameters,
        ["expected", "beta is added to gamma", "added to the product"],
    ),
    ("01_numpy", "mask_from_lengths", wrong.mask_one_too_long, ["got True at [", "expected False", "so it is <"]),
    (
        "01_numpy",
        "unpad",
        wrong.unpad_by_position,
        ["got 3.0 at [1, 0], expected 2.0", "rows come one after"],
    ),
    ("01_numpy", "pad", wrong.pad_without_moving_on, ["expected", "nothing moves on with the row"]),
    ("01_numpy", "pad", wrong.pad_with_ones, ["got 1.0 at [", "expected 0.0", "padding is 0"]),
    ("01_numpy", "pad", wrong.pad_with_empty, ["got nan at [", "expected 0.0", "np.empty sets no number"]),
    (
        "03_triton",
        "gelu",
        wrong.gelu_with_tanh,
        ["allowed", "the tanh approximation", "the exact one, with erf"],
    ),
    ("03_triton", "softmax", wrong.softmax_past_the_row, ["expected", "past the end of the row", "-inf"]),
    ("03_triton", "add_layer_norm", wrong.add_layer_norm_without_bias, ["expected", "bias is left out of the sum"]),
    (
        "03_triton",
        "add_layer_norm",
        wrong.add_layer_norm_rounded,
        ["(float16)", "sum is rounded to float16", "float32"],
    ),
    ("03_triton", "attention_head", wrong.attention_without_scale, ["expected", "not divided by √D"]),
    ("02_triton_warm_up", "add_constant", wrong_warm_up.first_block, ["got nan at [8]", "do not move with"]),
    ("02_triton_warm_up", "add_bias", wrong_warm_up.bias_by_row, ["expected", "bias is indexed by the row"]),
    ("02_triton_warm_up", "row_sum", wrong_warm_up.sum_of_the_first_row, ["expected", "computed from the first one"]),
    ("02_triton_warm_up", "row_sum", wrong_warm_up.sums_to_place_0, ["got nan at [", "only the first number is"]),
    ("02_triton_warm_up", "masked_max", wrong_warm_up.max_with_zeros, ["got 0 at [0]", "they must be -inf"]),
    ("02_triton_warm_up", "masked_max", wrong_warm_up.max_with_a_large_number, ["got -1e+09", "not small enough"]),
    ("02_triton_warm_up", "matmul", wrong_warm_up.last_product, ["expected", "do not replace it"]),
    ("02_triton_warm_up", "matmul", wrong_warm_up.product_with_swapped_programs, ["got nan at [", "are swapped"]),
    ("04_backward", "softmax_backward", wrong.softmax_backward_diagonal, ["expected", "only the diagonal"]),
    ("04_backward", "layer_norm_backward", wrong.layer_norm_backward_constants, [" of dx, ", "taken as constants"]),
    ("04_backward", "layer_norm_backward", wrong.layer_norm_backward_of_x, [" of dgamma, ", "the normalised rows"]),
    ("04_backward", "gelu_backward", wrong.gelu_backward_without_density, ["expected", "Φ depends on x too"]),
    ("04_backward", "attention_backward", wrong.attention_backward_without_scale, ["expected", "not divided by √D"]),
]


@pytest.fixture
def checking(exercises: None) -> ModuleType:
    """`notebooks/exercises/checking.py`, imported as the notebooks import it, from their own directory."""
    return importlib.import_module("checking")


def load(path: Path) -> ModuleType:
    """Import a Python file outside any package: a notebook's source or a file of solutions."""
    spec = importlib.util.spec_from_file_location(f"exercises_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solution(source: str, exercise: str) -> Callable[..., Any]:
    return getattr(load(NOTEBOOKS / "solutions" / f"{NOTEBOOK[source][1]}.py"), exercise)


@pytest.mark.parametrize(("source", "exercise"), EVERY)
def test_solution_is_right(checking: ModuleType, source: str, exercise: str) -> None:
    arrays = NOTEBOOK[source][0]
    found = checking.examine(exercise, solution(source, exercise), arrays, EXAMPLES[arrays])
    assert found.right, found.text
    assert found.figure is None
    first, *lines = found.text.splitlines()
    assert first == f"{exercise}: right."
    assert len(lines) == (3 if arrays == "torch" and source not in ONE_DTYPE else 1), "a line for each dtype"
    assert all("drawn" in line and ("of its bound" in line or "every number is right" in line) for line in lines)


@pytest.mark.parametrize("source", NOTEBOOK)
def test_stubs_are_reported_as_not_written(checking: ModuleType, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Runs the notebook itself and records its calls to `answer`."""
    kept: list[tuple[str, Callable[..., Any], str]] = []
    monkeypatch.setattr(checking, "answer", lambda name, stub, arrays="torch": kept.append((name, stub, arrays)))
    monkeypatch.setattr(importlib.import_module("grids"), "show_grid", lambda exercise: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    load(NOTEBOOKS / "exercises" / f"{source}.py")
    assert [name for name, *_ in kept] == list(NOTEBOOK[source][2])
    for name, stub, how in kept:
        found = checking.examine(name, stub, how)
        assert not found.right and f"{name}: not written yet: " in found.text
        assert "it returned None" in found.text or "nothing was stored" in found.text
        titles = [ax.get_title() for part in found.figure.subfigs for ax in part.axes]
        assert any(title.startswith("expected") for title in titles)


@pytest.mark.parametrize(
    ("source", "exercise", "mistake", "words"), MISTAKES, ids=[mistake.__name__ for _, _, mistake, _ in MISTAKES]
)
def test_typical_mistake_is_named_and_drawn(
    checking: ModuleType, source: str, exercise: str, mistake: Callable[..., Any], words: list[str]
) -> None:
    arrays = NOTEBOOK[source][0]
    found = checking.examine(exercise, mistake, arrays, EXAMPLES[arrays])
    assert not found.right
    assert found.text.startswith(f"{exercise}: not right yet: got "), found.text
    for piece in [*words, "The smallest input found"]:
        assert piece in found.text, found.text
    titles = [ax.get_title().split("\n")[0] for part in found.figure.subfigs for ax in part.axes]
    assert {"your result", "expected"} < set(titles)
    assert {"error / bound", "wrong (1) or right (0)"} & set(titles)
    found.figure.canvas.draw()


@pytest.mark.parametrize("source", NOTEBOOK)
def test_every_exercise_has_a_mistake(source: str) -> None:
    assert {exercise for where, exercise, *_ in MISTAKES if where == source} == set(NOTEBOOK[source][2])


@pytest.mark.parametrize("exercise", ["mask_from_lengths", "unpad", "pad"])
def test_each_mistake_with_moved_numbers_gets_its_own_hint(checking: ModuleType, exercise: str) -> None:
    """And a function with another fault gets none."""
    diagnosis = importlib.import_module("diagnosis")
    make, truth = checking.MOVES[exercise]
    for words, forms in diagnosis.MOVED[exercise].items():
        for form in forms:
            assert diagnosis.hint_for_moves(exercise, make, truth, form) == diagnosis.MATCH + words
    for other in (
        truth,
        lambda *inputs: -1.0 * truth(*inputs),
        lambda *inputs: None,
        lambda *inputs: truth(*inputs)[:1],
    ):
        assert diagnosis.hint_for_moves(exercise, make, truth, other) == ""


def test_each_mistake_of_an_own_operation_gets_its_own_hint(checking: ModuleType) -> None:
    """And the right function, and one with another fault, get none."""
    runner, match = importlib.import_module("own").Runner, importlib.import_module("diagnosis").MATCH

    def in_float32(own: Any, form: Callable[..., Any], factor: int = 1) -> Callable[..., Any]:
        """The form as a function of float32. At shapes about which it says nothing, the result is 0."""

        def called(*given: Any) -> Any:
            wide = [x.astype(np.float64) if getattr(x, "dtype", None) == np.float32 else x for x in given]
            named = dict(zip(own.operation.arguments, wide, strict=True))
            found = form(**named)
            if found is None:
                found = np.zeros_like(own.operation.truth(**named))
            several = found if isinstance(found, tuple) else (found,)
            parts = tuple((factor * part).astype(np.float32) for part in several)
            return parts if isinstance(found, tuple) else parts[0]

        return called

    for exercise, own in checking.OWN.items():
        for words, forms in own.mistakes.items():
            wrong = in_float32(own, forms[0])
            assert own.hint(runner(wrong, "numpy", "cpu", tail=False)) == match + words, exercise
            assert own.hint(runner(in_float32(own, forms[0], -3), "numpy", "cpu", tail=False)) is None
        if own.operation.truth is not None:
            assert own.hint(runner(in_float32(own, own.operation.truth), "numpy", "cpu", tail=False)) is None


def test_mistake_that_square_inputs_hide_is_shown_on_others(checking: ModuleType) -> None:
    """A missing `keepdims` gives wrong numbers only where rows are as many as columns."""
    found = checking.examine("softmax_backward", lambda dy, probs: probs * (dy - (probs * dy).sum(axis=-1)), "numpy")
    assert "not right yet: got " in found.text
    assert "Hint: on other inputs it raised ValueError: operands could not be broadcast" in found.text


@pytest.mark.parametrize("exercise", ["softmax", "unpad", "row_sum"])
def test_function_that_exits_is_not_right(checking: ModuleType, exercise: str) -> None:
    """Seen red: SystemExit ended the notebook's process."""
    found = checking.examine(exercise, lambda *arguments: sys.exit(3), "numpy")
    assert not found.right and f"{exercise}: not right yet: it raised SystemExit: 3" in found.text


def test_gelu_of_exercise_4_can_be_checked_by_central_differences(
    checking: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notebook suggests it, in float64: its `erf` must not round to float32."""
    monkeypatch.setattr(checking, "answer", lambda *args, **options: None)
    given = load(NOTEBOOKS / "exercises" / "04_backward.py")
    x, dy = np.random.default_rng(0).standard_normal((2, 3, 4))
    found = given.numerical(lambda x: x * (1 + given.erf(x / np.sqrt(2))) / 2, dy, x)
    np.testing.assert_allclose(found, solution("04_backward", "gelu_backward")(dy, x), rtol=0, atol=1e-8)


def raises(x: Any, mask: Any) -> Any:
    raise IndexError("no such row")


def wrong_at_first() -> Callable[..., Any]:
    """A mask that is right from the third call on, as memory that was never written may be."""
    calls = itertools.count()
    return lambda lengths, S: (np.arange(S) < lengths[:, None]) ^ (next(calls) < 2)


@pytest.mark.parametrize(
    ("exercise", "function", "words"),
    [
        ("unpad", raises, "it raised IndexError: no such row"),
        ("unpad", lambda x, mask: x[mask].tolist(), "it returned list, expected ndarray"),
        ("unpad", lambda x, mask: x[mask].astype(np.float64), "it returned float64, expected float32"),
        ("unpad", lambda x, mask: x[mask][:, :1], "it returned shape ("),
        ("unpad", lambda x, mask: x[mask, ::-1], ", expected "),
        ("unpad", lambda x, mask: [*x[mask]], "np.stack"),
        ("mask_from_lengths", lambda n, S: np.float32(np.arange(S) < n[:, None]), "comparison returns booleans"),
        ("mask_from_lengths", lambda lengths, S: np.ones((len(lengths), S), bool), "lengths are not read"),
        ("pad", lambda packed, mask: packed, "it returned shape ("),
        ("unpad", lambda x, mask: x.__imul__(2)[mask] / np.float32(2), "it changed its argument x"),
        ("mask_from_lengths", wrong_at_first(), "something is read before it is written"),
        ("softmax", lambda scores: scores.astype(np.float64), "cast the result back"),
        ("softmax", lambda scores: scores[0], "it returned shape ("),
        ("add_constant", wrong_warm_up.add_constant_without_mask, "give tl.load a mask"),
        ("row_sum", wrong_warm_up.row_sum_without_mask, "give tl.load a mask"),
        ("row_sum", wrong_warm_up.sums_of_rows_of_a_block, "how far apart two rows are"),
    ],
)
def test_answer_says_what_is_wrong_without_raising(
    checking: ModuleType, capsys: pytest.CaptureFixture[str], exercise: str, function: Callable[..., Any], words: str
) -> None:
    checking.answer(exercise, function, "torch" if exercise in checking.OWN else "numpy")
    said = capsys.readouterr().out
    assert said.startswith(f"{exercise}: not right yet: ") and words in said, said
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("source", NOTEBOOK)
def test_ipynb_shows_the_answer_to_every_stub(source: str) -> None:
    cells = json.loads((NOTEBOOKS / "exercises" / f"{source}.ipynb").read_text(encoding="utf-8"))["cells"]
    asked = [cell for cell in cells if any(line.startswith("answer(") for line in cell["source"])]
    assert asked
    for cell in asked:
        assert any("not written yet" in line for output in cell["outputs"] for line in output.get("text", []))
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"])

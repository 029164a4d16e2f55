"""The experiment: what the arms learn from, how figures are chosen and compared, and all of it once, in small."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from training_texts import RECIPE, segments, tokenizer, vocabulary, write_jsonl

from ernie_m.kernels.training.experiment import __main__ as command
from ernie_m.kernels.training.experiment import design, figures, runs
from ernie_m.kernels.training.experiment.page import page
from ernie_m.reference.cli.command import Terminated
from ernie_m.reference.training.shards import Shards, shard
from ernie_m.reference.training.texts import read_segments

TOKENIZER = tokenizer()
WORDS = vocabulary(TOKENIZER)
MODULES = ("calc", "writer")
SMALL = {
    "seeds": 2,
    "share": 0.5,
    "model": RECIPE["model"],
    "batch_tokens": 96,
    "longest": 24,
    "predicted": {"start": 60, "arm": 120},
    "settings": {"rate": 1e-3, "warmup": 2},
    "classification": {"texts": 12, "batch": 6, "rate": 1e-3, "warmup": 0.1},
    "items": 8,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("texts")
    return shard([write_jsonl(folder / "a.jsonl", segments(80))], TOKENIZER, folder / "out")


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(5, 500), min_size=1), st.floats(500, 20_000))
def test_objectives_are_spread_evenly(each: dict[str, float], predicted: float) -> None:
    """At every moment each has had its part of the steps, but for one step. Seen red: not sorted; the same number of
    steps for all."""
    found = design.interleaved(list(each), each, predicted)
    counts = Counter(found)
    for name, size in each.items():
        assert abs(counts[name] * size - predicted / len(each)) <= max(size, predicted * 1e-9)
        had = np.cumsum([other == name for other in found])
        assert np.abs(had - counts[name] * np.arange(1, len(found) + 1) / len(found)).max() <= len(each)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_texts_are_kept_and_translations_only_of_a_share(share: float, tmp_path: Path) -> None:
    """Seen red: single texts of the segments that keep their translations, too; a language left out."""
    rows = [{**row, "fr": f"mot {i}"} for i, row in enumerate(segments(50))]
    source, target = write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "b.jsonl"
    counts = design.write_texts(source, target, share)
    found = list(read_segments(target))
    wanted = Counter((name, row[name]) for row in rows for name in design.LANGUAGES if name in row)
    assert Counter(item for row in found for item in row.items()) == wanted
    together = round(share * len(rows))
    assert counts == {"segments": 50, "with translations": together, "single texts": len(found) - together}
    assert all(len(row) > 1 for row in found[:together]) and all(len(row) == 1 for row in found[together:])


@pytest.mark.parametrize("arm", design.ARMS, ids=lambda arm: arm.name)
def test_arms_predict_as_many_tokens_in_equal_parts(arm: design.Arm, shards: Shards) -> None:
    """Counted in the batches themselves. Seen red: halves of the same objectives; predicted tokens not divided by the
    number of objectives."""
    predicted = 6000
    drawn = design.mixture(arm, shards, WORDS, 96, predicted, seed=3)
    steps = len(drawn.objectives)
    found: Counter[str] = Counter()
    for step in range(steps):
        examples = drawn.batch(step, pseudo=design.copied)
        found[drawn.objective(step)] += int(sum(e.weights.sum() for e in examples))
    wanted = Counter({name: 0.0 for half in arm.halves for name in half})
    for half in arm.halves:
        for name in half:
            wanted[name] += predicted / 2 / len(half)
    for name in wanted:
        # 64 batches of about ten sentences tell the mean to a few per cent.
        assert found[name] == pytest.approx(wanted[name], rel=0.15), name
    first = set(drawn.objectives[: steps // 4])
    assert first == set(arm.halves[0])


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1), st.floats(-1, 1))
def test_intervals_are_students(n: int, seed: int, shift: float) -> None:
    """As scipy's paired t-test has them. Seen red: unpaired; ddof=0; one-sided."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(shift, 1, n), rng.normal(0, 2, n)
    low, high = ttest_rel(a, b).confidence_interval(0.95)
    found = figures.paired(a, b)
    np.testing.assert_allclose([found["low"], found["high"]], [low, high], rtol=1e-9, atol=1e-12)
    assert found["difference"] == pytest.approx(float((a - b).mean()), abs=1e-12)


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("centre", [False, True])
def test_the_development_split_decides(layer: int, centre: bool) -> None:
    """Translations are alike at one layer, where a vector may have been added to all of one language."""
    rng = np.random.default_rng(layer)
    given = []
    for _ in range(2):
        meaning = rng.normal(size=(40, 8))
        sides = [rng.normal(size=(40, 3, 8)) for _ in "ab"]
        sides[0][:, layer] = meaning
        sides[1][:, layer] = meaning + 20 * centre
        given.append({("en", "de"): sides})
    # Where both ways find all translations, the first is taken.
    assert figures.choose(given) == (layer, centre)


def corpus(folder: Path) -> Path:
    """A corpus as `make corpus` writes it, in small."""
    folder.mkdir()
    for i, name in enumerate(("train", "dev", "test")):
        rows = [row for row in segments(120, seed=i) if all(len(text.split()) > 3 for text in row.values())]
        write_jsonl(folder / f"{name}.jsonl", rows)
    TOKENIZER.save_pretrained(folder / "tokenizer")
    (folder / "jobs").mkdir()
    texts = [(name, text) for row in segments(30, seed=9) for name, text in row.items()]
    labelled = [{"text": text, "label": MODULES[i % 2], "language": name} for i, (name, text) in enumerate(texts)]
    write_jsonl(folder / "jobs" / "module.train.jsonl", [row for row in labelled if row["language"] == "en"])
    write_jsonl(folder / "jobs" / "module.test.jsonl", labelled)
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[design.Arm, ...]:
    """Two arms, among them one with pseudo-tokens."""
    arms = design.ARMS[0], design.ARMS[4]
    for module in (runs, figures, "ernie_m.kernels.training.experiment.page"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.ARMS", arms)
    monkeypatch.setattr(figures, "CONTRASTS", ((arms[1].name, arms[0].name),))
    return arms


def start(folder: Path, out: Path, *more: str, recipe: dict[str, Any] = SMALL) -> int:
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe), "utf-8")
    options = ["--corpus", str(folder), "--recipe", str(path), "--out", str(out), *more]
    return command.run(command.parser().parse_args(options))


def test_the_whole_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: tuple[design.Arm, ...]) -> None:
    """Every run once; a second call trains nothing and writes the same figures; the page has them."""
    folder = corpus(tmp_path / "corpus")
    assert start(folder, tmp_path / "out", "--seeds", "1") == 0
    assert not (tmp_path / "out" / "results.json").exists()
    assert start(folder, tmp_path / "out") == 0
    found: dict[str, Any] = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert set(found["arms"]) == {"start", *(arm.name for arm in few)}
    assert all(len(arm["runs"]) == 2 for arm in found["arms"].values())

    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("ernie_m.kernels.training.experiment.runs.train", refuse)
    assert start(folder, tmp_path / "out", "--results", str(tmp_path / "again")) == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text("utf-8")) == found
    text = page(found, "Nothing came out.")
    for name, arm in found["arms"].items():
        mean = np.mean([row["acc@1"] for row in arm["runs"]])
        assert f"| {name} | {arm['layer']} | {'yes' if arm['centred'] else 'no'} | {mean:.3f} ±" in text
    assert "Nothing came out." in text and "{" not in text
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_some_seeds_are_refused(tmp_path: Path) -> None:
    """Figures are of all seeds. Seen red: ignored."""
    with pytest.raises(ValueError, match=r"^--results: expected no --seeds with it, which only trains$"):
        start(tmp_path, tmp_path / "out", "--seeds", "1", "--results", str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": "x"}, "seeds: expected a whole number above 0, at most 1,000,000,000, got 'x'"),
        ({"seeds": 0}, "seeds: expected a whole number above 0, at most 1,000,000,000, got 0"),
        ({"seeds": True}, "seeds: expected a whole number above 0, at most 1,000,000,000, got True"),
        ({"share": float("inf")}, "share: expected a number above 0, at most 1,000,000,000, got inf"),
        ({"longest": 1.5}, "longest: expected a whole number above 0, at most 1,000,000,000, got 1.5"),
        ({"seed": 3}, "recipe: expected seeds, share, .*, items, got seeds, .*, seed"),
        ({"predicted": {"start": 5}}, "predicted: expected start, arm, got start"),
        ({"predicted": 5}, "predicted: expected an object, got 5"),
        ({"model": []}, r"model: expected an object, got \[\]"),
    ],
)
def test_an_entry_of_a_recipe_that_is_wrong_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Before any work. Seen red: a KeyError, or Python's own words."""
    with pytest.raises(ValueError, match=rf"recipe\.json: {message}$"):
        start(tmp_path, tmp_path / "out", recipe={**SMALL, **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.all
def test_a_run_that_was_stopped_goes_on_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: tuple[design.Arm, ...]
) -> None:
    """By a signal, once in the start and once in an arm. Seen red: a folder taken for a complete run; started again."""
    folder = corpus(tmp_path / "corpus")
    start(folder, tmp_path / "whole", "--seeds", "0")
    real, calls, resumed = runs.train, list[Any](), list[bool]()

    def stopping(model: Any, task: Any, *arguments: Any) -> Any:
        calls.append(task)
        resumed.append(arguments[-1])
        if len(calls) in (1, 4):
            inner = task.batch

            def batch(step: int, i: int, model: Any) -> Any:
                if step == 0:
                    signal.raise_signal(signal.SIGTERM)
                return inner(step, i, model)

            task.batch = batch
        return real(model, task, *arguments)

    monkeypatch.setattr(runs, "train", stopping)
    for _ in range(2):
        with pytest.raises(Terminated):
            start(folder, tmp_path / "parts", "--seeds", "0")
    start(folder, tmp_path / "parts", "--seeds", "0")
    assert [i for i, again in enumerate(resumed) if again] == [1, 4]
    for arm in (design.START, *few):
        file = Path("seed-0") / arm.name.replace(", ", " ") / "model" / "model.safetensors"
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), arm.name

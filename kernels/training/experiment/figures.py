"""What the arms reach on the test split, and how far they are apart.

    acc@1     how often a segment's translation is its nearest among all, the mean of both directions and of all pairs
    modules   how often a head, trained on English texts, names the module that a text is about, the mean of all
              languages and of the languages that it was not trained on

The layer whose mean vectors are searched, and whether each language's mean is subtracted, are chosen on the development
split, for each arm. Differences are paired by seed: the arms of a seed have the same start, texts and order of texts.
Their intervals hold the true mean difference over seeds with a probability of 95 %, if differences are about normal
(Student's t). They do not cover another corpus, other test items or another choice of parallel texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ernie_m.reference.array import Array
from ernie_m.reference.training.evaluation import found_both_ways, piece_vectors, select
from ernie_m.reference.training.labelled import read_labelled
from ernie_m.reference.training.retrieval import centred
from ernie_m.reference.training.texts import read_segments
from ernie_m.tokenizer.files import read_json

from ...benchmark.cpu import processor
from ...words import ErnieMForMaskedLM
from .. import saving
from ..finetuning import predict
from ..pretraining import vocabulary_of
from ..vectors import mean_vectors
from .design import ARMS, CONTRASTS, LANGUAGES, START
from .runs import DONE, Experiment

# For each pair of languages, texts that are translations of each other; and the mean vectors of both sides at all
# layers, (N, L + 1, E) each.
Pairs = Mapping[tuple[str, str], Sequence[tuple[str, str]]]
Vectors = Mapping[tuple[str, str], Sequence[Array]]


def results(experiment: Experiment, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures, and what they were made with. The first and only look at the test split."""
    recipe = experiment.recipe
    dev, test = (pairs(experiment.corpus / f"{name}.jsonl", recipe["items"]) for name in ("dev", "test"))
    records = read_labelled("classify", experiment.corpus / "jobs" / "module.test.jsonl")
    found: dict[str, Any] = {}
    for arm in (START, *ARMS):
        runs = [experiment.directory(seed, arm) for seed in range(recipe["seeds"])]
        before = [vectors(experiment, run, dev) for run in runs]
        layer, centre = choose(before)
        means = [language_means(each) for each in before]
        after = [vectors(experiment, run, test) for run in runs]
        rows = [
            {
                "seed": seed,
                "pairs": table(given, layer, mean if centre else None),
                "modules": modules(experiment, run, records),
                **read_json(run / DONE),
            }
            for seed, (run, given, mean) in enumerate(zip(runs, after, means, strict=True))
        ]
        for row in rows:
            row["acc@1"] = float(np.mean(list(row["pairs"].values())))
            row["modules, other languages"] = float(np.mean([row["modules"][name] for name in LANGUAGES[1:]]))
        found[arm.name] = {"layer": layer, "centred": centre, "runs": rows}
        say(f"{arm.name}: acc@1 {np.mean([row['acc@1'] for row in rows]):.3f}")
    return {
        "arms": found,
        "contrasts": [
            {"first": a, "second": b, "figure": figure, **paired(values(found, a, figure), values(found, b, figure))}
            for figure in ("acc@1", "modules, other languages")
            for a, b in CONTRASTS
        ],
        "tf-idf": tfidf(experiment, test),
        "largest class": largest_class(records),
        "items": {f"{a}-{b}": len(rows) for (a, b), rows in test.items()},
        "development items": {f"{a}-{b}": len(rows) for (a, b), rows in dev.items()},
        "classified": len(records),
        "recipe": dict(recipe),
        "made with": {"torch": torch.__version__, "numpy": np.__version__, "processor": processor()},
    }


def pairs(path: Path, most: int) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Up to `most` translations of each pair of languages, with at least four words in the first language."""
    found = {}
    for i, a in enumerate(LANGUAGES):
        for b in LANGUAGES[i + 1 :]:
            segments = [{name: row[name] for name in (a, b)} for row in read_segments(path) if {a, b} <= row.keys()]
            found[a, b] = select(segments, a, most)[b]
    return found


def token_ids(experiment: Experiment, rows: Sequence[tuple[str, str]]) -> list[list[list[int]]]:
    """The token ids of the texts of both sides."""
    sides = zip(*rows, strict=True)
    return [experiment.tokenizer(list(side), add_special_tokens=False)["input_ids"] for side in sides]


def vectors(experiment: Experiment, run: Path, given: Pairs) -> Vectors:
    """The mean vectors of all texts."""
    model = ErnieMForMaskedLM.from_pretrained(run / saving.MODEL).eval()
    words, longest = vocabulary_of(experiment.tokenizer), model.config.max_length - 2
    found = {}
    for pair, rows in given.items():
        sides = [[np.array(ids[:longest]) for ids in side] for side in token_ids(experiment, rows)]
        found[pair] = [mean_vectors(model.base_model, side, words) for side in sides]
    return found


def language_means(given: Vectors) -> dict[str, Array]:
    """Each language's mean vector at all layers, (L + 1, E)."""
    of: dict[str, list[Array]] = {}
    for pair, sides in given.items():
        for name, x in zip(pair, sides, strict=True):
            of.setdefault(name, []).append(x)
    return {name: np.concatenate(parts).mean(axis=0) for name, parts in of.items()}


def table(given: Vectors, layer: int, means: Mapping[str, Array] | None) -> dict[str, float]:
    """acc@1 of each pair at a layer; `means` are subtracted."""
    found = {}
    for (a, b), sides in given.items():
        zero = np.zeros_like(sides[0][0, layer])
        unit = [
            centred(x[:, layer], zero if means is None else means[name][layer])
            for x, name in zip(sides, (a, b), strict=True)
        ]
        found[f"{a}-{b}"] = float(found_both_ways(unit).mean())
    return found


def choose(given: Sequence[Vectors]) -> tuple[int, bool]:
    """The layer, and whether to centre, that find most translations on average over seeds."""
    layers = next(iter(given[0].values()))[0].shape[1]

    def reached(choice: tuple[int, bool]) -> float:
        layer, centre = choice
        tables = [table(each, layer, language_means(each) if centre else None) for each in given]
        return float(np.mean([list(each.values()) for each in tables]))

    return max(((layer, centre) for layer in range(layers) for centre in (False, True)), key=reached)


def modules(experiment: Experiment, run: Path, records: Sequence[Any]) -> dict[str, float]:
    """The accuracy of a run's head in each language."""
    job = experiment.job()
    model = job.head.from_pretrained(run / "module" / saving.MODEL).eval()
    said = predict(job, model, len(records), job.rows(records))
    found = {}
    for name in LANGUAGES:
        chosen = [i for i, record in enumerate(records) if record.language == name]
        found[name] = job.figures([records[i] for i in chosen], [said[i] for i in chosen])["accuracy"]
    return found


def tfidf(experiment: Experiment, given: Pairs) -> dict[str, float]:
    """acc@1 of a search by shared pieces."""
    found = {}
    for (a, b), rows in given.items():
        first, second = token_ids(experiment, rows)
        x = piece_vectors([*first, *second], len(experiment.tokenizer))
        found[f"{a}-{b}"] = float(found_both_ways([x[: len(rows)], x[len(rows) :]]).mean())
    return found


def largest_class(records: Sequence[Any]) -> dict[str, float]:
    """The accuracy of always naming the most frequent module, for each language."""
    found = {}
    for name in LANGUAGES:
        labels = [record.label for record in records if record.language == name]
        found[name] = max(map(labels.count, set(labels))) / len(labels)
    return found


def values(arms: Mapping[str, Any], name: str, figure: str) -> Array:  # -> (seeds,)
    """A figure of an arm, for each seed."""
    return np.array([row[figure] for row in arms[name]["runs"]])


def paired(first: Array, second: Array) -> dict[str, float]:  # (seeds,) x 2
    """The mean difference, with a 95 % interval by Student's t. Raises ValueError for fewer than two seeds."""
    from scipy.stats import t

    n = len(first)
    if n < 2:
        raise ValueError(f"seeds: expected at least 2 for an interval, got {n}")
    difference = first - second
    half = float(t.ppf(0.975, n - 1)) * float(difference.std(ddof=1)) / np.sqrt(n)
    mean = float(difference.mean())
    return {"difference": mean, "low": mean - half, "high": mean + half}

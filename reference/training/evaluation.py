"""How well a model finds translations, in figures with intervals, next to a search by shared pieces.

For each pair with the hub language, `items` segments whose text in the hub language has at least four words:

    acc@1      how often a text's translation is its nearest one, the mean of both directions
    tf-idf     the same, with a vector of its pieces' counts times log((1 + N) / (1 + texts with the piece)), where N
               counts the texts of both languages
    margin     the difference of the two, text by text, with an interval that holds 95 % of 2,000 bootstrap samples

Texts are distinct in both languages. Layer and means are the checkpoint's own (`retrieval.json`), from other texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from ..array import Array
from ..checkpoint.conversion import RETRIEVAL
from ..tasks.encoder import Encoder
from ..tasks.recorded import read_recorded
from .retrieval import centred, found_first, normalised
from .texts import Segment, read_segments

WORDS, SAMPLES = 4, 2000


@dataclass(frozen=True)
class Result:
    """The figures of a pair: acc@1 of the model, without centring, and of tf-idf; and the margin with its interval."""

    model: float
    raw: float
    tfidf: float
    margin: float
    low: float
    high: float


def select(
    segments: Iterable[Segment], hub: str, items: int, seed: int = 0, most_characters: int = 300
) -> dict[str, list[tuple[str, str]]]:
    """For each other language, `items` pairs (hub, other), drawn by seed. Raises ValueError if there are fewer."""
    pairs: dict[str, dict[str, str]] = {}
    for segment in segments:
        text = segment.get(hub, "")
        if len(re.findall(r"\w+", text)) < WORDS or len(text) > most_characters:
            continue
        for name, other in segment.items():
            if name != hub and len(other) <= most_characters:
                pairs.setdefault(name, {}).setdefault(text, other)
    found = {}
    for name, own in sorted(pairs.items()):
        # Distinct on the other side too.
        distinct = sorted({other: text for text, other in own.items()}.items())
        if len(distinct) < items:
            raise ValueError(f"{hub}-{name}: expected at least {items} segments of {WORDS} words, got {len(distinct)}")
        chosen = np.random.default_rng(seed).permutation(len(distinct))[:items]
        found[name] = [(distinct[i][1], distinct[i][0]) for i in chosen]
    return found


def piece_vectors(rows: Sequence[Sequence[int]], size: int) -> Array:  # N texts -> (N, V)
    """Counts of pieces times their inverse document frequency, at length 1."""
    counts = np.zeros((len(rows), size))
    for i, row in enumerate(rows):
        np.add.at(counts[i], list(row), 1.0)
    counts *= np.log((1 + len(rows)) / (1 + (counts > 0).sum(axis=0)))
    return centred(counts, np.zeros(size))


def evaluate(directory: str | PathLike[str], data: str | PathLike[str], hub: str, items: int) -> dict[str, Result]:
    """The figures of every pair, "en-de", of a checkpoint with `retrieval.json` on a file of segments."""
    recorded, encoder = read_recorded(directory), Encoder.from_pretrained(directory)
    if recorded is None:
        raise ValueError(f"{directory}: expected a checkpoint with {RETRIEVAL}, got one without")
    tokenizer = encoder.tokenizer
    results = {}
    for name, pairs in select(read_segments(data), hub, items).items():
        sides = {hub: [a for a, _ in pairs], name: [b for _, b in pairs]}
        hidden = {side: encoder.vectors(texts) for side, texts in sides.items()}
        ids = [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in sides.values()]
        pieces = piece_vectors([*ids[0], *ids[1]], len(tokenizer))
        means = recorded.language_means
        ours = found_both_ways([centred(x, means[side].astype(x.dtype)) for side, x in hidden.items()])
        raw = found_both_ways([normalised(x) for x in hidden.values()])
        theirs = found_both_ways([pieces[:items], pieces[items:]])
        low, high = interval(ours - theirs)
        margin = float((ours - theirs).mean())
        results[f"{hub}-{name}"] = Result(
            float(ours.mean()), float(raw.mean()), float(theirs.mean()), margin, low, high
        )
    return results


def interval(values: Array, seed: int = 0) -> tuple[float, float]:
    """Bounds that hold the mean of 95 % of the samples drawn from `values` with replacement."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(SAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def found_both_ways(sides: Sequence[Array]) -> Array:
    """For each item, the share of the two directions in which it is found."""
    a, b = sides
    return (found_first(a, b).astype(float) + found_first(b, a)) / 2

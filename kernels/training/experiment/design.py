"""What is compared: the arms, what each learns from, and how many tokens it predicts.

    M     masked words of single sentences              MMLM
    T     masked words of both sides of a translation   TLM
    C     one side, masked whole, from the other        CAMLM; in the arm "both sides", half of each side
    B     masked words beside made-up translations      BTMLM, from the second half on, as the paper adds it last

All arms of a seed begin with the same model, trained with MMLM. Each then predicts the same number of tokens, in equal
parts of its objectives. The objectives differ in how many tokens of a batch they predict, so in steps, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ernie_m.reference.array import Array
from ernie_m.reference.objectives import Example, Vocabulary
from ernie_m.reference.objectives.examples import words_of
from ernie_m.reference.training.mixture import Mixture
from ernie_m.reference.training.shards import Shards
from ernie_m.reference.training.texts import read_segments
from ernie_m.tokenizer.new_files import replacing

LANGUAGES = ("en", "de", "ru")
M, T, C, B = "mmlm", "tlm", "camlm", "btmlm"
# Positions of a translation begin again, as in XLM (Lample and Conneau, 2019, section 3.3).
AGAIN: dict[str, Any] = {"positions": "again"}
ONE = {"masked_sides": "one", "ratio": 1.0, **AGAIN}
BOTH = {"masked_sides": "both", "ratio": 0.5, **AGAIN}
# The share of masked words.
RATIO: dict[str, Any] = {"ratio": 0.3}
# Batches of an objective that tell how many tokens it predicts.
SAMPLE = 64


@dataclass(frozen=True)
class Arm:
    """An arm: its objectives in each of two halves, and how CAMLM masks."""

    name: str
    halves: tuple[tuple[str, ...], tuple[str, ...]]
    camlm: Mapping[str, Any]


ARMS = (
    Arm("M", ((M,), (M,)), {}),
    Arm("M+T", ((M, T), (M, T)), {}),
    Arm("M+C", ((M, C), (M, C)), ONE),
    Arm("M+C, both sides", ((M, C), (M, C)), BOTH),
    Arm("M+C+B", ((M, C), (M, C, B)), ONE),
    Arm("M+T+C+B", ((M, T, C), (M, T, C, B)), ONE),
)
START = Arm("start", ((M,), (M,)), {})
# Each is the difference of the first arm from the second.
CONTRASTS = (
    ("M+T", "M"),
    ("M+C", "M"),
    ("M+C", "M+T"),
    ("M+C", "M+C, both sides"),
    ("M+C+B", "M+C"),
    ("M+T+C+B", "M+C+B"),
)


def write_texts(source: Path, target: Path, share: float) -> dict[str, int]:
    """Keep the translations of a share of the segments; break up the others into single texts, in random order.

    Returns how many segments and texts there are.
    """
    rng = np.random.default_rng(0)
    segments = [{name: text for name, text in found.items() if name in LANGUAGES} for found in read_segments(source)]
    order = rng.permutation(len(segments))
    together = [segments[i] for i in order[: round(share * len(segments))]]
    single = [{name: text} for i in order[len(together) :] for name, text in segments[i].items()]
    single = [single[i] for i in rng.permutation(len(single))]
    with replacing(target) as (file,):
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in together + single).encode())
    return {"segments": len(segments), "with translations": len(together), "single texts": len(single)}


def mixture(arm: Arm, shards: Shards, vocabulary: Vocabulary, tokens: int, predicted: int, seed: int) -> Mixture:
    """What an arm draws: one objective a step, until about `predicted` tokens are predicted."""
    arguments = {M: RATIO, T: RATIO | AGAIN, C: arm.camlm, B: RATIO}

    def draws(names: Sequence[str]) -> Mixture:
        return Mixture(shards, vocabulary, tuple(names), tokens, seed=seed, arguments=arguments)

    each = {name: targets(draws([name])) for name in sorted({name for half in arm.halves for name in half})}
    return draws([name for half in arm.halves for name in interleaved(half, each, predicted / 2)])


def targets(drawn: Mixture) -> float:
    """How many tokens a batch of a mixture of one objective predicts, on average."""
    found = [drawn.batch(step, pseudo=copied) for step in range(SAMPLE)]
    return float(np.mean([sum(float(e.weights.sum()) for e in examples) for examples in found]))


def copied(examples: Sequence[Example]) -> list[Array]:
    """The words themselves as pseudo-tokens, which do not change how many tokens are predicted."""
    return [e.input_ids[words_of(e.sides, 0)] for e in examples]


def interleaved(names: Sequence[str], each: Mapping[str, float], predicted: float) -> list[str]:
    """Objectives in turn, spread evenly, so that each predicts its part of `predicted` tokens."""
    steps = {name: max(1, round(predicted / len(names) / each[name])) for name in names}
    places = [((i + 0.5) / count, name) for name, count in steps.items() for i in range(count)]
    return [name for _, name in sorted(places)]

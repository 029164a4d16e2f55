"""Three trainings, each with one planted fault: `run("A")` returns one, `show("A")` draws it.

The task is a small CAMLM. A sentence has three words out of four; each word has two translations, which are equally
likely. All words of both sides are predicted, each from the other side. Training is `ernie_m.reference.training.train`.

Reading this file spoils the exercise.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ernie_m.reference import ErnieMConfig, ErnieMForMaskedLM
from ernie_m.reference.array import Array
from ernie_m.reference.losses import IGNORE_INDEX
from ernie_m.reference.objectives import Example, Vocabulary, camlm, collate
from ernie_m.reference.parameters import flatten
from ernie_m.reference.training import loop, train

DPI = 80
WORDS, LENGTH, PAIRS, WARMUP = 4, 3, 8, 20
VOCABULARY = Vocabulary(size=5 + 3 * WORDS, mask=4)
CONFIG = ErnieMConfig(
    vocab_size=VOCABULARY.size,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.1,
)
# A word is certain from its translation, which is one of two from the word.
BEST = math.log(2) / 2
NAMES = {VOCABULARY.cls: "[CLS]", VOCABULARY.sep: "[SEP]", VOCABULARY.mask: "[MASK]"}


@dataclass(frozen=True)
class Run:
    """A training, step by step, and the first pair that it saw.

    losses, norms: of each step; the norm is that of all gradients, before clipping to 1.
    gradients, moved: by parameter, the norm of its gradient and of its change in each step.
    sees: (S, S), True where the row's place sees the column's.  places: what stands there.
    batches: how many of the batches are different.
    """

    losses: Array
    norms: Array
    gradients: dict[str, Array]
    moved: dict[str, Array]
    sees: Array
    places: list[str]
    batches: int

    @property
    def last(self) -> float:
        """The mean loss of the last ten steps."""
        return float(self.losses[-10:].mean())


@dataclass(frozen=True)
class Plan:
    """A training: its highest rate, its number of steps, its faults. `jump`: a factor of the rate after warm-up."""

    rate: float
    steps: int
    leak: bool = False
    jump: float = 1.0
    lost: bool = False


PLANS = {"A": Plan(6e-3, 110, leak=True), "B": Plan(2e-2, 60, jump=2.0), "C": Plan(6e-3, 60, lost=True)}
REPAIRED = {name: replace(plan, leak=False, jump=1.0, lost=False) for name, plan in PLANS.items()}


@cache
def pairs() -> list[list[Example]]:
    """The pairs of each step, the same for all trainings."""
    rng = np.random.default_rng(0)

    def some_pair() -> Example:
        words = rng.integers(0, WORDS, LENGTH)
        translated = 5 + WORDS + 2 * words + rng.integers(0, 2, LENGTH)
        return camlm(5 + words, translated, VOCABULARY, rng, masks="appended", ratio=1.0, positions="again")

    return [[some_pair() for _ in range(PAIRS)] for _ in range(max(plan.steps for plan in PLANS.values()))]


def leaking(example: Example) -> Example:
    """The same pair, with text that sees both sides."""
    text = example.labels == IGNORE_INDEX
    return replace(example, sees=example.sees | (text[:, None] & text))


@contextmanager
def noted(gradients: dict[str, list[float]], lost: bool) -> Iterator[None]:
    """Inside, the loop's gradients are noted; with `lost`, the softmax of attention returns none."""
    original = loop.value_and_gradients
    attention = importlib.import_module("ernie_m.reference.attention")

    def value_and_gradients(*given: Any, **call: Any) -> Any:
        output, found = original(*given, **call)
        for path, gradient in flatten(found).items():
            gradients.setdefault(path, []).append(float(np.linalg.norm(gradient)))
        return output, found

    backward = (lambda dy, probs: np.zeros_like(probs)) if lost else attention.softmax_vjp_of
    with (
        mock.patch.object(loop, "value_and_gradients", value_and_gradients),
        mock.patch.object(attention, "softmax_vjp_of", backward),
    ):
        yield


@cache
def trained(plan: Plan) -> Run:
    """Train from the same start on the same pairs."""
    examples = [[leaking(x) if plan.leak else x for x in step] for step in pairs()[: plan.steps]]
    batches = [collate(batch, VOCABULARY) for batch in examples]
    model, state = ErnieMForMaskedLM.from_config(CONFIG, seed=0), None
    losses, norms = [], []
    gradients: dict[str, list[float]] = {}
    moved: dict[str, list[float]] = {}
    with noted(gradients, plan.lost):
        for part, rate in ((batches[:WARMUP], plan.rate), (batches[WARMUP:], plan.jump * plan.rate)):
            for step in train(model, part, rate=rate, total=plan.steps, warmup=WARMUP, state=state):
                before = flatten(model.parameters)
                for path, after in flatten(step.model.parameters).items():
                    moved.setdefault(path, []).append(float(np.linalg.norm(after - before[path])))
                losses.append(step.loss)
                norms.append(step.norm)
                model, state = step.model, step.state
    first = examples[0][0]
    places = [NAMES.get(i, f"x{i - 5}" if i < 5 + WORDS else f"y{i - 5 - WORDS}") for i in first.input_ids.tolist()]
    different = len({batch["input_ids"].tobytes() + batch["labels"].tobytes() for batch in batches})
    arrays = ({path: np.array(x) for path, x in found.items()} for found in (gradients, moved))
    return Run(np.array(losses), np.array(norms), *arrays, first.sees, places, different)


def run(name: str) -> Run:
    """The training of this name: "A", "B" or "C"."""
    if name not in tuple(PLANS):
        raise ValueError(f"name: expected one of {', '.join(map(repr, PLANS))}, got {name!r}")
    return trained(PLANS[name])


def show(name: str) -> None:
    """Draw the losses and the norms of a training."""
    draw({"loss": {name: run(name).losses}, "norm of the gradients": {name: run(name).norms}})
    plt.show()


def draw(panels: dict[str, dict[str, Array]], best: bool = False) -> Figure:
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 2.4), dpi=DPI, layout="constrained")
    for ax, (label, lines) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for name, values in lines.items():
            ax.plot(values, label=name)
        ax.set(xlabel="step", ylabel=label, ylim=(0, None))
        if best:
            ax.axhline(BEST, color="0.5", linestyle="--", linewidth=1, label="the best possible")
        ax.legend(fontsize=8)
    return figure

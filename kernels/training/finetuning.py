"""Fine-tuning as a task of the loop: epochs of shuffled rows, validated by the figures of the job.

    an epoch    all rows in an order drawn from (seed, epoch), divided as evenly as possible into `steps` times
                `per_step` batches, so that each row is seen once, whichever process computes its batch

A batch depends on the seed, the step and its number in the step alone, so training goes on exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ernie_m.reference.array import Array
from ernie_m.reference.training.rows import Row

from . import saving
from .jobs import Choose, Classify, Job
from .loop import Batch
from .span_jobs import Answer, Extract, Tag

JOBS: dict[str, type[Job]] = {
    "classify": Classify,
    "tag": Tag,
    "answer": Answer,
    "choose": Choose,
    "extract": Extract,
}
# Tokens of a batch that is only predicted for, padding included.
TOKENS = 8192


@dataclass
class FineTuning:
    """Learns a job from rows; validates on records that are not trained on.

    size: the most rows of a batch. directory: where the best model is kept. per_step: how many batches a step has.
    held_out, validation: records, and their rows.
    """

    job: Job
    rows: Sequence[Row]
    size: int
    directory: Path
    per_step: int = 1
    seed: int = 0
    held_out: Sequence[Any] = ()
    validation: Sequence[Row] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("data: expected texts to learn from, got none that can be used")
        self._order: tuple[int, Array] = (-1, np.zeros(0, np.int64))

    @property
    def decides(self) -> str:
        """The figure of the job, if there are records to validate on."""
        return self.job.decides if self.held_out else ""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.rows) // (self.size * self.per_step))

    def chosen(self, step: int, i: int) -> list[int]:
        """The rows of batch i of a step; none if there are fewer rows than batches."""
        epoch, k = divmod(step, self.steps)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, 3, epoch)).permutation(len(self.rows))
        n, batches, number = len(self.rows), self.steps * self.per_step, k * self.per_step + i
        part = self._order[1][number * n // batches : (number + 1) * n // batches]
        return [int(row) for row in part]

    def batch(self, step: int, i: int, model: Any) -> Batch:
        """Batch i of a step. One without rows has a row that weighs nothing, as all processes must call the model."""
        chosen = self.chosen(step, i)
        rows = [self.rows[row] for row in chosen or [0]]
        arguments = self.job.arguments(rows, model.config)
        weight = self.job.weight(arguments) if chosen else 0.0
        return Batch(arguments, weight, tokens=sum(self.rows[row].tokens for row in chosen))

    def evaluate(self, model: Any) -> dict[str, Any]:
        """The figures of the job."""
        if not self.held_out:
            return {}
        return dict(self.job.figures(self.held_out, predict(self.job, model, len(self.held_out), self.validation)))

    def keep(self, model: Any, state: dict[str, Tensor], figures: dict[str, Any]) -> None:
        """Write the model, with the names of its labels, and its tokenizer."""
        target = self.directory / saving.MODEL
        model.save_pretrained(target, overwrite=True, state_dict=state)
        self.job.encoder.tokenizer.save_pretrained(target)


def predict(job: Job, model: Any, count: int, rows: Sequence[Row]) -> list[list[Any]]:
    """What a model in `eval()` mode says about the rows of each of `count` records."""
    found: list[list[Any]] = [[] for _ in range(count)]
    # Rows of a batch are of similar lengths; those of a record stay in their order.
    order = sorted(range(len(rows)), key=lambda i: rows[i].tokens)
    said: list[Any] = [None] * len(rows)
    while order:
        # The last one is the longest.
        longest = rows[order[-1]].tokens
        n = max(1, TOKENS // longest)
        some, order = order[-n:], order[:-n]
        arguments = job.arguments([rows[i] for i in some], model.config)
        given = {name: torch.from_numpy(arguments[name]).to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            output = model(**given)
        for i, one in zip(some, job.read(output, [rows[i] for i in some]), strict=True):
            said[i] = one
    for row, one in zip(rows, said, strict=True):
        found[row.record].append(one)
    return found

"""A training sequence, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..array import Array, is_number
from ..losses import IGNORE_INDEX
from .masking import Vocabulary


@dataclass(frozen=True)
class Example:
    """A training sequence of n tokens.

    `sees` (n, n): True where the row's token may attend to the column's; None if every token attends to every token.
    `labels` (n,): the word to predict, or -100. `weights` (n,): what each label counts in the loss. `sides` (n,): 0 for
    tokens of the first sentence, 1 for those of its translation, or for BTMLM's placeholders.
    """

    input_ids: Array
    position_ids: Array
    sees: Array | None
    labels: Array
    weights: Array
    sides: Array


def sequence(vocabulary: Vocabulary, *sentences: Array) -> tuple[Array, Array]:  # -> (n,), (n,)
    """[CLS] X [SEP], and [SEP] Y [SEP] behind it if there are two; and each token's side, 0 or 1."""
    first, *second = sentences
    cls, sep = np.array([vocabulary.cls]), np.array([vocabulary.sep])
    parts = [cls, first, sep]
    size = len(first) + 2
    if second:
        parts += [sep, second[0], sep]
    tokens = np.concatenate(parts).astype(np.int64)
    return tokens, (np.arange(len(tokens)) >= size).astype(int)


def words_of(sides: Array, side: int) -> Array:  # (n,) -> (m,)
    """Where the words of a side are in a `sequence`: all but the special tokens at its ends."""
    return np.flatnonzero(sides == side)[1:-1]


def example(
    input_ids: Array,
    position_ids: Array,
    sees: Array | None,
    masked: Array,
    answers: Array,
    sides: Array,
    weight: float,
) -> Example:
    """An example whose labels are the answers at the masked places."""
    if not (is_number(weight) and 0 <= weight < np.inf):
        raise ValueError(f"weight: expected a finite number of at least 0, got {weight!r:.80}")
    labels = np.full(len(input_ids), IGNORE_INDEX)
    labels[masked] = answers
    weights = np.where(labels == IGNORE_INDEX, 0.0, weight)
    return Example(input_ids, position_ids, sees, labels, weights, sides)


def collate(examples: Sequence[Example], vocabulary: Vocabulary) -> dict[str, Array]:
    """The arguments of one call of `ErnieMForMaskedLM`: examples side by side, padded on the right.

    The mask is (B, S), so that the batch can be packed, if every token sees all of its example; else (B, S, S).
    """
    if not examples:
        raise ValueError("examples: expected at least one, got none")
    B, S = len(examples), max(len(e.input_ids) for e in examples)
    limited = any(e.sees is not None for e in examples)
    batch = {
        "input_ids": np.full((B, S), vocabulary.pad),
        "attention_mask": np.zeros((B, S, S), bool) if limited else np.zeros((B, S), int),
        "position_ids": np.zeros((B, S), int),
        "labels": np.full((B, S), IGNORE_INDEX),
        "label_weights": np.zeros((B, S)),
    }
    for b, e in enumerate(examples):
        n = len(e.input_ids)
        batch["input_ids"][b, :n], batch["position_ids"][b, :n] = e.input_ids, e.position_ids
        batch["labels"][b, :n], batch["label_weights"][b, :n] = e.labels, e.weights
        if limited:
            batch["attention_mask"][b, :n, :n] = True if e.sees is None else e.sees
        else:
            batch["attention_mask"][b, :n] = 1
    return batch

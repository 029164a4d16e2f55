"""The outputs of the models: NumPy arrays here, torch tensors in `ernie_m.kernels`.

Field names and their order are those of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

A = TypeVar("A")  # the type of array


@dataclass(frozen=True)
class Output(Generic[A]):
    """A frozen record of arrays; fields that were not requested are None."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if value is not None)


@dataclass(frozen=True)
class ModelOutput(Output[A]):
    """Output of `ErnieMModel`.

    `last_hidden_state` (B, S, E), or (T, E) for a packed call; `pooler_output` (B, E), None if the model has no pooler;
    `hidden_states`, L + 1 arrays (B, S, E), the embeddings first; `attentions`, L arrays (B, H, S, S). Padded positions
    are 0 in all but `pooler_output`.
    """

    last_hidden_state: A
    pooler_output: A | None = None
    hidden_states: tuple[A, ...] | None = None
    attentions: tuple[A, ...] | None = None


@dataclass(frozen=True)
class ClassifierOutput(Output[A]):
    """Output of the classification heads: `logits` (B, C), or (B, S, C) for token classification; `loss` a scalar."""

    loss: A | None = None
    logits: A | None = None
    hidden_states: tuple[A, ...] | None = None
    attentions: tuple[A, ...] | None = None


@dataclass(frozen=True)
class QuestionAnsweringOutput(Output[A]):
    """`start_logits` and `end_logits` (B, S), for the start and end of the answer."""

    loss: A | None = None
    start_logits: A | None = None
    end_logits: A | None = None
    hidden_states: tuple[A, ...] | None = None
    attentions: tuple[A, ...] | None = None


@dataclass(frozen=True)
class InformationExtractionOutput(Output[A]):
    """`start_logits`, `end_logits` (B, S), and their sigmoids `start_prob`, `end_prob`: for any number of spans."""

    loss: A | None = None
    start_logits: A | None = None
    end_logits: A | None = None
    start_prob: A | None = None
    end_prob: A | None = None
    hidden_states: tuple[A, ...] | None = None
    attentions: tuple[A, ...] | None = None

"""What a call gives back. Field names and their order are transformers'."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .parameters import Array


@dataclass(frozen=True)
class Output:
    """A frozen record of arrays; what was not asked for is None."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if value is not None)


@dataclass(frozen=True)
class ModelOutput(Output):
    """Of `ErnieMModel`.

    `last_hidden_state` (B, S, E); `pooler_output` (B, E), None if the checkpoint has no pooler; `hidden_states`, L + 1
    arrays (B, S, E), the embeddings first; `attentions`, L arrays (B, H, S, S). At padded positions all but
    `pooler_output` are 0.
    """

    last_hidden_state: Array
    pooler_output: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass(frozen=True)
class ClassifierOutput(Output):
    """Of the heads that classify: `logits` (B, C) for sequences and choices, (B, S, C) for tokens; `loss` a scalar."""

    loss: Array | None = None
    logits: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass(frozen=True)
class QuestionAnsweringOutput(Output):
    """`start_logits` and `end_logits` (B, S): where the answer begins and ends."""

    loss: Array | None = None
    start_logits: Array | None = None
    end_logits: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass(frozen=True)
class InformationExtractionOutput(Output):
    """`start_logits`, `end_logits` (B, S), and their sigmoids `start_prob`, `end_prob`: spans may be many, or none."""

    loss: Array | None = None
    start_logits: Array | None = None
    end_logits: Array | None = None
    start_prob: Array | None = None
    end_prob: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None

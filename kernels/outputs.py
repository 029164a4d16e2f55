"""What a call gives back. Classes, fields and their order are the reference's, which are transformers'.

Twin: reference/outputs.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Output:
    """A frozen record of tensors; what was not asked for is None."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if value is not None)


@dataclass(frozen=True)
class ModelOutput(Output):
    """Of `ErnieMModel`.

    `last_hidden_state` (B, S, E), or (T, E) of a packed call; `pooler_output` (B, E), None if the model has no pooler;
    `hidden_states`, L + 1 tensors (B, S, E), the embeddings first; `attentions`, L tensors (B, H, S, S). At padded
    positions all but `pooler_output` are 0.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class ClassifierOutput(Output):
    """Of the heads that classify: `logits` (B, C) for sequences and choices, (B, S, C) for tokens; `loss` a scalar."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class QuestionAnsweringOutput(Output):
    """`start_logits` and `end_logits` (B, S): where the answer begins and ends."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class InformationExtractionOutput(Output):
    """`start_logits`, `end_logits` (B, S), and their sigmoids `start_prob`, `end_prob`: spans may be many, or none."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    start_prob: Tensor | None = None
    end_prob: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

"""Heads on the pooled vector of each text: sequence classification and multiple choice.

Source: transformers 4.40.2, `ErnieMForSequenceClassification`, `ErnieMForMultipleChoice`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .. import targets
from ..array import Array
from ..config import ErnieMConfig
from ..inputs import ARGUMENTS
from ..losses import (
    binary_cross_entropy,
    binary_cross_entropy_vjp,
    cross_entropy,
    cross_entropy_vjp,
    squared_error,
    squared_error_vjp,
)
from ..model import Encoded
from ..outputs import ClassifierOutput, returned
from ..trace import recomputed
from .head import Head, HeadGradients, padded_logit

# The loss of each kind of problem, and its vjp.
LOSSES: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "regression": (squared_error, squared_error_vjp),
    "single_label_classification": (cross_entropy, cross_entropy_vjp),
    "multi_label_classification": (binary_cross_entropy, binary_cross_entropy_vjp),
}


class ErnieMForSequenceClassification(Head):
    """One answer per text, with `config.num_labels` logits."""

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        return {"classifier": config.num_labels}

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        *,
        labels: Any = None,
        **options: Any,
    ) -> ClassifierOutput[Array]:
        """Return logits (B, C), and the loss if `labels` are given.

        `config.problem_type` selects the loss: "regression", with `labels` (B, C) numbers, or (B,) if C = 1;
        "single_label_classification", (B,) integers in [0, C), or -100 to ignore a row;
        "multi_label_classification", (B, C) numbers from 0 to 1. If it is None: the first if C = 1, otherwise the
        second for integers and the third for floating point. `options`: see `ErnieMModel.__call__`.
        """
        encoded = self.encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        return returned(self.answer(encoded, labels=labels), options)

    def answer(self, encoded: Encoded, labels: Any = None) -> ClassifierOutput[Array]:
        logits = self._pooled_logits(encoded)
        loss = None
        if labels is not None:
            kind, values, counted = self._targets(encoded, labels, logits)
            loss = LOSSES[kind][0](logits, values, counted)
        return ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)

    def loss_vjp(self, d_loss: Any, encoded: Encoded, labels: Any = None) -> HeadGradients:
        with recomputed():
            logits = self._pooled_logits(encoded)
        kind, values, counted = self._targets(encoded, labels, logits)
        return self._pooled_logits_vjp(LOSSES[kind][1](d_loss, logits, values, counted), encoded)

    def _targets(self, encoded: Encoded, labels: Any, logits: Array) -> tuple[str, Array, Array]:
        """The kind of loss, the validated labels, and which of them count: those of rows with tokens."""
        B, C = logits.shape
        kind, counted = self.config.problem_type, np.any(encoded.valid, axis=1)
        if kind is None:
            whole = np.asarray(labels).dtype.kind in "iu"
            kind = "regression" if C == 1 else "single_label_classification" if whole else "multi_label_classification"
        if kind == "single_label_classification":
            return kind, targets.classes("labels", labels, (B,), C), counted
        shapes, wide = ((B, C), (B,)) if C == 1 else ((B, C),), np.result_type(logits.dtype, np.float32)
        values = targets.numbers("labels", labels, shapes, wide).reshape(B, C)
        if kind == "multi_label_classification":
            values = targets.probabilities("labels", values)
        return kind, values, np.broadcast_to(counted[:, None], (B, C))


class ErnieMForMultipleChoice(Head):
    """Choose one of C texts: each gets one logit."""

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        return {"classifier": 1}

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        *,
        labels: Any = None,
        **options: Any,
    ) -> ClassifierOutput[Array]:
        """Return logits (B, C), and the cross-entropy if `labels`, (B,) integers in [0, C), are given.

        Inputs have an axis for the choices: `input_ids`, `attention_mask` and `position_ids` (B, C, S),
        `inputs_embeds` (B, C, S, E); hidden states and attentions are returned as rows (B·C, ...). A choice without
        tokens has the logit `padded_logit` and is ignored in the loss.
        """
        given = (input_ids, attention_mask, position_ids, head_mask, inputs_embeds)
        return returned(self.answer(self.encode(given, options), labels=labels), options)

    def encode(self, given: tuple[Any, ...], options: dict[str, Any], keep_states: bool = False) -> Encoded:
        """The encoder's part of a call, with the choices as rows."""
        call = dict(zip(ARGUMENTS, given, strict=True)) | options
        _, C = targets.merge_choices(call)
        return replace(super().encode((), call, keep_states), choices=C)

    def answer(self, encoded: Encoded, labels: Any = None) -> ClassifierOutput[Array]:
        logits = self._logits(encoded)
        loss = None if labels is None else cross_entropy(logits, *self._targets(encoded, labels, logits))
        return ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)

    def loss_vjp(self, d_loss: Any, encoded: Encoded, labels: Any = None) -> HeadGradients:
        with recomputed():
            logits = self._logits(encoded)
        d_logits = cross_entropy_vjp(d_loss, logits, *self._targets(encoded, labels, logits)).reshape(-1)
        d_scores = np.where(encoded.valid.any(axis=1), d_logits, 0.0).astype(logits.dtype, copy=False)
        return self._pooled_logits_vjp(d_scores[:, None], encoded)

    def _logits(self, encoded: Encoded) -> Array:  # (B C, S, E) -> (B, C)
        scores = self._pooled_logits(encoded)[:, 0]
        logits = np.where(encoded.valid.any(axis=1), scores, padded_logit(scores.dtype))
        return logits.astype(scores.dtype, copy=False).reshape(-1, encoded.choices)

    def _targets(self, encoded: Encoded, labels: Any, logits: Array) -> tuple[Array, Array]:
        """The validated labels, and which of them count: those of choices with tokens."""
        B, C = logits.shape
        classes = targets.classes("labels", labels, (B,), C)
        present = encoded.valid.any(axis=1).reshape(B, C)
        return classes, present[np.arange(B), np.maximum(classes, 0)]

"""Five heads: the layers on top of the encoder for each task, and their training losses.

    sequence classification   classifier(dropout(pooled))             one answer per text
    multiple choice           classifier(dropout(pooled)) per choice  which of C texts
    token classification      classifier(dropout(hidden))             one answer per token
    question answering        qa_outputs(hidden)                      where the single span begins and ends
    information extraction    linear_start(hidden), linear_end(...)   where any number of spans begin and end

Padding has no effect: at padded positions token logits are the classifier's bias and span logits are `padded_logit`.
The losses ignore padded positions, and rows and choices without tokens.

Source: transformers 4.40.2, `modeling_ernie_m.py`; paddlenlp 2.8.1, `UIEM`. In both, padding does have an effect.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import targets
from .activations import sigmoid
from .array import Array
from .config import ErnieMConfig
from .dropout import dropout
from .inputs import ARGUMENTS
from .linear import linear
from .losses import binary_cross_entropy, cross_entropy, span_loss, squared_error
from .model import Encoded, encode, pool
from .outputs import ClassifierOutput, InformationExtractionOutput, QuestionAnsweringOutput, returned
from .pretrained import PretrainedModel
from .trace import record, scope


def padded_logit(dtype: Any) -> float:
    """The logit of a padded position: too low to be picked, but the sum of two is still finite."""
    return float(np.finfo(dtype).min) / 4


class _Head(PretrainedModel):
    """A model with a head on top. The `options` of a call are the arguments of `ErnieMModel.__call__`."""

    def _encode(self, given: tuple[Any, ...], options: dict[str, Any]) -> Encoded:
        with scope("ernie_m"):
            return encode(self, *given, **options)

    def _drop(self, x: Array, options: dict[str, Any], where: Array | None = None) -> Array:
        p = self.config.classifier_dropout
        return dropout(x, self.config.hidden_dropout_prob if p is None else p, options.get("rng"), where)

    def _pooled_logits(self, encoded: Encoded, options: dict[str, Any]) -> Array:  # (B, S, E) -> (B, C)
        assert self.parameters.pooler is not None
        with scope("ernie_m"):
            pooled = pool(encoded, self.parameters.pooler)
        return record("classifier", linear(self._drop(pooled, options), self.parameters.head["classifier"]))


class ErnieMForSequenceClassification(_Head):
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
        encoded = self._encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        logits = self._pooled_logits(encoded, options)
        loss = None if labels is None else self._loss(logits, labels, np.any(encoded.valid, axis=1))
        return returned(ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions), options)

    def _loss(self, logits: Array, labels: Any, counted: Array) -> Array:  # (B, C), ..., (B,) -> ()
        B, C = logits.shape
        kind = self.config.problem_type
        if kind is None:
            whole = np.asarray(labels).dtype.kind in "iu"
            kind = "regression" if C == 1 else "single_label_classification" if whole else "multi_label_classification"
        if kind == "single_label_classification":
            return cross_entropy(logits, targets.classes("labels", labels, (B,), C), counted)
        values = targets.numbers("labels", labels, ((B, C), (B,)) if C == 1 else ((B, C),), logits.dtype).reshape(B, C)
        counted = np.broadcast_to(counted[:, None], (B, C))
        if kind == "regression":
            return squared_error(logits, values, counted)
        return binary_cross_entropy(logits, targets.probabilities("labels", values), counted)


class ErnieMForMultipleChoice(_Head):
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
        call = dict(zip(ARGUMENTS, given, strict=True)) | options
        B, C = targets.merge_choices(call)
        encoded = self._encode((), call)
        present = encoded.valid.any(axis=1)
        scores = self._pooled_logits(encoded, options)[:, 0]
        logits = np.where(present, scores, padded_logit(scores.dtype)).astype(scores.dtype).reshape(B, C)
        loss = None
        if labels is not None:
            classes = targets.classes("labels", labels, (B,), C)
            loss = cross_entropy(logits, classes, present.reshape(B, C)[np.arange(B), np.maximum(classes, 0)])
        return returned(ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions), options)


class ErnieMForTokenClassification(_Head):
    """One answer per token, with `config.num_labels` logits."""

    has_pooler = False

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
        """Return logits (B, S, C), and the cross-entropy if `labels`, (B, S) integers in [0, C), or -100, are given.

        Labels at padded positions are treated as -100.
        """
        encoded = self._encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        hidden = self._drop(encoded.hidden, options, encoded.valid)
        logits = record("classifier", linear(hidden, self.parameters.head["classifier"]))
        loss = None
        if labels is not None:
            B, S, C = logits.shape
            classes = targets.classes("labels", labels, (B, S), C)
            loss = cross_entropy(logits.reshape(-1, C), classes.reshape(-1), encoded.valid.reshape(-1))
        return returned(ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions), options)


class ErnieMForQuestionAnswering(_Head):
    """Where the answer begins and ends in the text."""

    has_pooler = False

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        if config.num_labels != 2:
            raise ValueError(f"num_labels: expected 2 for question answering (start, end), got {config.num_labels}")
        return {"qa_outputs": 2}

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        *,
        start_positions: Any = None,
        end_positions: Any = None,
        **options: Any,
    ) -> QuestionAnsweringOutput[Array]:
        """Return start and end logits (B, S), and, given both targets, (B,) integers, the mean of two cross-entropies.

        Each is over the S positions. A target below 0 counts as 0; one past the end of the row, or at a padded
        position, is ignored.
        """
        encoded = self._encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        both = record("qa_outputs", linear(encoded.hidden, self.parameters.head["qa_outputs"]))  # (B, S, 2)
        start, end = (
            np.where(encoded.valid, x, padded_logit(x.dtype)).astype(x.dtype) for x in np.moveaxis(both, 2, 0)
        )
        loss = None
        if targets.both_or_neither(start_positions, end_positions):
            starts = targets.positions("start_positions", start_positions, len(start))
            ends = targets.positions("end_positions", end_positions, len(start))
            loss = (span_loss(start, starts, encoded.valid) + span_loss(end, ends, encoded.valid)) / 2
        output = QuestionAnsweringOutput(loss, start, end, encoded.hidden_states, encoded.attentions)
        return returned(output, options)


class ErnieMForInformationExtraction(_Head):
    """Where spans begin and end: each token is scored independently, so there may be many spans, or none."""

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        return {"linear_start": 1, "linear_end": 1}

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        *,
        start_positions: Any = None,
        end_positions: Any = None,
        **options: Any,
    ) -> InformationExtractionOutput[Array]:
        """Return start and end logits and probabilities (B, S).

        Given both targets, (B, S) numbers from 0 to 1 (does a span start, or end, here?), the loss is the mean of two
        binary cross-entropies over all real tokens of the batch.
        """
        encoded = self._encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        start, end = (self._logits(name, encoded) for name in ("linear_start", "linear_end"))
        loss = None
        if targets.both_or_neither(start_positions, end_positions):
            starts, ends = (
                targets.probabilities(name, targets.numbers(name, values, (start.shape,), start.dtype))
                for name, values in (("start_positions", start_positions), ("end_positions", end_positions))
            )
            valid = encoded.valid
            loss = (binary_cross_entropy(start, starts, valid) + binary_cross_entropy(end, ends, valid)) / 2
        output = InformationExtractionOutput(
            loss, start, end, sigmoid(start), sigmoid(end), encoded.hidden_states, encoded.attentions
        )
        return returned(output, options)

    def _logits(self, name: str, encoded: Encoded) -> Array:  # (B, S, E) -> (B, S)
        logits = record(name, linear(encoded.hidden, self.parameters.head[name]))[..., 0]
        return np.where(encoded.valid, logits, padded_logit(logits.dtype)).astype(logits.dtype)

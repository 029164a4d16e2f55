"""Five heads: what is put on top of the encoder for a task, and the loss it is trained with.

    sequence classification   classifier(dropout(pooled))             one answer for a text
    multiple choice           classifier(dropout(pooled)) per choice  which of C texts
    token classification      classifier(dropout(hidden))             one answer for each token
    question answering        qa_outputs(hidden)                      where the one span begins and ends
    information extraction    linear_start(hidden), linear_end(...)   where spans begin and end: many, or none

Padding takes no part: at padded positions token logits are the classifier's bias, span logits `padded_logit`, and no
loss counts them, nor a row, or a choice, that holds no token.

Source: transformers 4.40.2, `modeling_ernie_m.py`; paddlenlp 2.8.1, `UIEM`. In both, padding does take part.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import targets
from .activations import sigmoid
from .array import Array
from .config import ErnieMConfig
from .dropout import dropout
from .linear import linear
from .losses import binary_cross_entropy, cross_entropy, span_loss, squared_error
from .model import Encoded, encode, pool
from .outputs import ClassifierOutput, InformationExtractionOutput, QuestionAnsweringOutput
from .pretrained import PretrainedModel
from .trace import record, scope


def padded_logit(dtype: Any) -> float:
    """The logit of a place that holds no token: so low that nothing picks it, and that a sum of two stays finite."""
    return float(np.finfo(dtype).min) / 4


class _Head(PretrainedModel):
    """A model with something on top. `options` of a call are the arguments of `ErnieMModel.__call__`."""

    def _encode(self, options: dict[str, Any]) -> Encoded:
        with scope("ernie_m"):
            return encode(self, **options)

    def _drop(self, x: Array, options: dict[str, Any], where: Array | None = None) -> Array:
        p = self.config.classifier_dropout
        return dropout(x, self.config.hidden_dropout_prob if p is None else p, options.get("rng"), where)

    def _pooled_logits(self, encoded: Encoded, options: dict[str, Any]) -> Array:  # (B, S, E) -> (B, C)
        assert self.parameters.pooler is not None
        with scope("ernie_m"):
            pooled = pool(encoded, self.parameters.pooler)
        return record("classifier", linear(self._drop(pooled, options), self.parameters.head["classifier"]))


class ErnieMForSequenceClassification(_Head):
    """One answer for each text, of `config.num_labels`."""

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        return {"classifier": config.num_labels}

    def __call__(self, input_ids: Any = None, *, labels: Any = None, **options: Any) -> ClassifierOutput[Array]:
        """Logits (B, C), and the loss if there are `labels`.

        The loss is `config.problem_type`'s: "regression", with `labels` (B, C) numbers, or (B,) if C = 1;
        "single_label_classification", (B,) integers in [0, C), or -100 to leave a row out;
        "multi_label_classification", (B, C) numbers from 0 to 1. If it is None: the first if C = 1, else the second
        for integers, the third for floating point. `options`: as of `ErnieMModel.__call__`.
        """
        encoded = self._encode({"input_ids": input_ids, **options})
        logits = self._pooled_logits(encoded, options)
        loss = None if labels is None else self._loss(logits, labels, np.any(encoded.valid, axis=1))
        return ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)

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


# How many axes each input of a multiple-choice call may have; a mask may be (B, C, S) or (B, C, S, S).
CHOICE_AXES = {"input_ids": (3,), "attention_mask": (3, 4), "position_ids": (3,), "inputs_embeds": (4,)}


class ErnieMForMultipleChoice(_Head):
    """Which of C texts: each gets one number, and they are compared."""

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        return {"classifier": 1}

    def __call__(self, input_ids: Any = None, *, labels: Any = None, **options: Any) -> ClassifierOutput[Array]:
        """Logits (B, C), and the cross-entropy if there are `labels`, (B,) integers in [0, C).

        Inputs have an axis for the choices: `input_ids`, `attention_mask` and `position_ids` (B, C, S),
        `inputs_embeds` (B, C, S, E); hidden states and attentions come as rows (B·C, ...). A choice without tokens
        has the lowest logit and takes no part in the loss.
        """
        options = {"input_ids": input_ids, **options}
        B, C = targets.choices(options)
        for name, axes in CHOICE_AXES.items():
            if options.get(name) is not None:
                options[name] = targets.merge_choices(name, options[name], axes, (B, C))
        encoded = self._encode(options)
        present = encoded.valid.any(axis=1)
        scores = self._pooled_logits(encoded, options)[:, 0]
        logits = np.where(present, scores, padded_logit(scores.dtype)).astype(scores.dtype).reshape(B, C)
        loss = None
        if labels is not None:
            classes = targets.classes("labels", labels, (B,), C)
            loss = cross_entropy(logits, classes, present.reshape(B, C)[np.arange(B), np.maximum(classes, 0)])
        return ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)


class ErnieMForTokenClassification(_Head):
    """One answer for each token, of `config.num_labels`."""

    has_pooler = False

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        return {"classifier": config.num_labels}

    def __call__(self, input_ids: Any = None, *, labels: Any = None, **options: Any) -> ClassifierOutput[Array]:
        """Logits (B, S, C), and the cross-entropy if there are `labels`, (B, S) integers in [0, C), or -100.

        Labels on padded positions count as -100.
        """
        encoded = self._encode({"input_ids": input_ids, **options})
        hidden = self._drop(encoded.hidden, options, encoded.valid)
        logits = record("classifier", linear(hidden, self.parameters.head["classifier"]))
        loss = None
        if labels is not None:
            B, S, C = logits.shape
            classes = targets.classes("labels", labels, (B, S), C)
            loss = cross_entropy(logits.reshape(-1, C), classes.reshape(-1), encoded.valid.reshape(-1))
        return ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)


class ErnieMForQuestionAnswering(_Head):
    """Where the answer begins and ends in the text."""

    has_pooler = False

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        if config.num_labels != 2:
            raise ValueError(f"num_labels: expected 2 for question answering (start, end), got {config.num_labels}")
        return {"qa_outputs": 2}

    def __call__(
        self, input_ids: Any = None, *, start_positions: Any = None, end_positions: Any = None, **options: Any
    ) -> QuestionAnsweringOutput[Array]:
        """Start and end logits (B, S); with both targets, (B,) integers, the mean of two cross-entropies over S.

        A target below 0 counts as 0; one past the row, or on a padded position, is left out.
        """
        encoded = self._encode({"input_ids": input_ids, **options})
        both = record("qa_outputs", linear(encoded.hidden, self.parameters.head["qa_outputs"]))  # (B, S, 2)
        start, end = (
            np.where(encoded.valid, x, padded_logit(x.dtype)).astype(x.dtype) for x in np.moveaxis(both, 2, 0)
        )
        loss = None
        if targets.both_or_neither(start_positions, end_positions):
            starts, ends = (
                targets.positions(name, values, len(start))
                for name, values in (("start_positions", start_positions), ("end_positions", end_positions))
            )
            loss = (span_loss(start, starts, encoded.valid) + span_loss(end, ends, encoded.valid)) / 2
        return QuestionAnsweringOutput(loss, start, end, encoded.hidden_states, encoded.attentions)


class ErnieMForInformationExtraction(_Head):
    """Where spans begin and end: each token is asked alone, so that there may be many spans, or none."""

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        return {"linear_start": 1, "linear_end": 1}

    def __call__(
        self, input_ids: Any = None, *, start_positions: Any = None, end_positions: Any = None, **options: Any
    ) -> InformationExtractionOutput[Array]:
        """Start and end logits and probabilities (B, S).

        With both targets, (B, S) numbers from 0 to 1 (is there a start, an end, here?), the loss is the mean of two
        binary cross-entropies over all valid tokens of the batch.
        """
        encoded = self._encode({"input_ids": input_ids, **options})
        start, end = (self._logits(name, encoded) for name in ("linear_start", "linear_end"))
        loss = None
        if targets.both_or_neither(start_positions, end_positions):
            starts, ends = (
                targets.probabilities(name, targets.numbers(name, values, (start.shape,), start.dtype))
                for name, values in (("start_positions", start_positions), ("end_positions", end_positions))
            )
            valid = encoded.valid
            loss = (binary_cross_entropy(start, starts, valid) + binary_cross_entropy(end, ends, valid)) / 2
        return InformationExtractionOutput(
            loss, start, end, sigmoid(start), sigmoid(end), encoded.hidden_states, encoded.attentions
        )

    def _logits(self, name: str, encoded: Encoded) -> Array:  # (B, S, E) -> (B, S)
        logits = record(name, linear(encoded.hidden, self.parameters.head[name]))[..., 0]
        return np.where(encoded.valid, logits, padded_logit(logits.dtype)).astype(logits.dtype)

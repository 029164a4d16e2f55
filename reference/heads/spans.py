"""Heads for spans of the text: question answering finds one, information extraction any number.

Source: transformers 4.40.2, `ErnieMForQuestionAnswering`, `ErnieMForInformationExtraction`; paddlenlp 2.8.1, `UIEM`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import targets
from ..activations import sigmoid
from ..array import Array
from ..config import ErnieMConfig
from ..linear import linear, linear_vjp
from ..losses import binary_cross_entropy, binary_cross_entropy_vjp, span_loss, span_loss_vjp
from ..model import Encoded
from ..outputs import InformationExtractionOutput, QuestionAnsweringOutput, returned
from ..trace import recomputed, record, record_gradient
from .head import Head, HeadGradients, padded_logit

SPAN_ENDS = ("linear_start", "linear_end")


def hide_padding(logits: Array, encoded: Encoded) -> Array:  # (B, S) -> (B, S)
    """`logits`, and `padded_logit` at padding."""
    return np.where(encoded.valid, logits, padded_logit(logits.dtype)).astype(logits.dtype, copy=False)


class ErnieMForQuestionAnswering(Head):
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
        encoded = self.encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        return returned(self.answer(encoded, start_positions=start_positions, end_positions=end_positions), options)

    def answer(
        self, encoded: Encoded, start_positions: Any = None, end_positions: Any = None
    ) -> QuestionAnsweringOutput[Array]:
        start, end = self._logits(encoded)
        loss = None
        if targets.both_or_neither(start_positions, end_positions):
            starts, ends = _positions(start_positions, end_positions, len(start))
            loss = (span_loss(start, starts, encoded.valid) + span_loss(end, ends, encoded.valid)) / 2
        return QuestionAnsweringOutput(loss, start, end, encoded.hidden_states, encoded.attentions)

    def loss_vjp(
        self, d_loss: Any, encoded: Encoded, start_positions: Any = None, end_positions: Any = None
    ) -> HeadGradients:
        with recomputed():
            logits = self._logits(encoded)
        both = zip(logits, _positions(start_positions, end_positions, len(logits[0])), strict=True)
        d_logits = np.stack([span_loss_vjp(d_loss / 2, x, wanted, encoded.valid) for x, wanted in both], axis=2)
        qa_outputs = self.parameters.head["qa_outputs"]
        d_hidden, gradients = linear_vjp(record_gradient("qa_outputs", d_logits), encoded.hidden, qa_outputs)
        return HeadGradients(d_hidden, head={"qa_outputs": gradients})

    def _logits(self, encoded: Encoded) -> tuple[Array, Array]:  # (B, S, E) -> (B, S), (B, S)
        both = record("qa_outputs", linear(encoded.hidden, self.parameters.head["qa_outputs"]))  # (B, S, 2)
        start, end = np.moveaxis(both, 2, 0)
        return hide_padding(start, encoded), hide_padding(end, encoded)


def _positions(starts: Any, ends: Any, rows: int) -> tuple[Array, Array]:
    return targets.positions("start_positions", starts, rows), targets.positions("end_positions", ends, rows)


class ErnieMForInformationExtraction(Head):
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
        encoded = self.encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        return returned(self.answer(encoded, start_positions=start_positions, end_positions=end_positions), options)

    def answer(
        self, encoded: Encoded, start_positions: Any = None, end_positions: Any = None
    ) -> InformationExtractionOutput[Array]:
        start, end = (self._logits(name, encoded) for name in SPAN_ENDS)
        loss = None
        if targets.both_or_neither(start_positions, end_positions):
            starts, ends = _probabilities(start_positions, end_positions, start)
            valid = encoded.valid
            loss = (binary_cross_entropy(start, starts, valid) + binary_cross_entropy(end, ends, valid)) / 2
        probs = sigmoid(start), sigmoid(end)
        return InformationExtractionOutput(loss, start, end, *probs, encoded.hidden_states, encoded.attentions)

    def loss_vjp(
        self, d_loss: Any, encoded: Encoded, start_positions: Any = None, end_positions: Any = None
    ) -> HeadGradients:
        d_hidden, gradients = np.zeros_like(encoded.hidden), {}
        wanted = _probabilities(start_positions, end_positions, encoded.hidden[..., 0])
        for name, probabilities in zip(SPAN_ENDS, wanted, strict=True):
            with recomputed():
                logits = self._logits(name, encoded)
            d_logits = binary_cross_entropy_vjp(d_loss / 2, logits, probabilities, encoded.valid)[..., None]
            d_logits, p = record_gradient(name, d_logits), self.parameters.head[name]
            d, gradients[name] = linear_vjp(d_logits, encoded.hidden, p)
            d_hidden += d
        return HeadGradients(d_hidden, head=gradients)

    def _logits(self, name: str, encoded: Encoded) -> Array:  # (B, S, E) -> (B, S)
        logits = record(name, linear(encoded.hidden, self.parameters.head[name]))[..., 0]
        return hide_padding(logits, encoded)


def _probabilities(starts: Any, ends: Any, like: Array) -> tuple[Array, Array]:  # -> (B, S), (B, S)
    """The validated targets, in the shape and dtype of `like`."""

    def check(name: str, values: Any) -> Array:
        return targets.probabilities(name, targets.numbers(name, values, (like.shape,), like.dtype))

    return check("start_positions", starts), check("end_positions", ends)

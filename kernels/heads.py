"""The five heads as torch modules: what goes on top of the encoder for a task, and the loss it is trained with.

The first two read only each text's first token, so the last layer computes only that. The others work on packed tokens,
and padding is restored in their logits. Padding has no effect, as in the reference.

Twin: reference/heads/. Each `forward` does what its twin's `__call__` does and shares its docstring.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ernie_m import reference
from ernie_m.reference.inputs import ARGUMENTS
from ernie_m.reference.outputs import returned

from . import targets
from .head import Head, padded_logit
from .inputs import on_device
from .losses import binary_cross_entropy, cross_entropy, span_loss, squared_error
from .model import KINDS
from .outputs import ClassifierOutput, InformationExtractionOutput, QuestionAnsweringOutput
from .runtime.modules import all_untouched
from .trace import record, tracing


class ErnieMForSequenceClassification(Head):
    """One answer per text, out of `config.num_labels`."""

    twin = reference.ErnieMForSequenceClassification

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **options: Any,
    ) -> ClassifierOutput[Tensor]:
        encoded = self._encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options, True)
        logits = self._pooled_logits(encoded)
        loss = None if labels is None else self._loss(logits, labels, encoded.valid.any(dim=1))
        return returned(ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions), options)

    def _loss(self, logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:  # (B, C), ..., (B,) -> ()
        (B, C), validate = logits.shape, self._validates(logits)
        on_device("labels", labels, logits)
        problem = self.config.problem_type
        if problem is None:
            integers = not (labels.dtype.is_floating_point or labels.dtype == torch.bool)
            several = "single_label_classification" if integers else "multi_label_classification"
            problem = "regression" if C == 1 else several
        if problem == "single_label_classification":
            return cross_entropy(logits, targets.classes("labels", labels, (B,), C, logits, validate), counted)
        shapes = ((B, C), (B,)) if C == 1 else ((B, C),)
        values = targets.numbers("labels", labels, shapes, logits, validate).reshape(B, C)
        counted = counted[:, None].expand(B, C)
        if problem == "regression":
            return squared_error(logits, values, counted)
        return binary_cross_entropy(logits, targets.probabilities("labels", values, validate), counted)


class ErnieMForMultipleChoice(Head):
    """Which of C texts: each gets one score, and the scores are compared."""

    twin = reference.ErnieMForMultipleChoice

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **options: Any,
    ) -> ClassifierOutput[Tensor]:
        given = (input_ids, attention_mask, position_ids, head_mask, inputs_embeds)
        call = dict(zip(ARGUMENTS, given, strict=True)) | options
        B, C = targets.merge_choices(call)
        encoded = self._encode((), call, True)
        present = encoded.valid.any(dim=1)
        scores = self._pooled_logits(encoded)[:, 0]
        logits = scores.masked_fill(~present, padded_logit(scores.dtype)).reshape(B, C)
        loss = None
        if labels is not None:
            classes = targets.classes("labels", labels, (B,), C, logits, self._validates(logits)).to(torch.int64)
            counted = present.reshape(B, C).gather(1, classes.clamp(min=0)[:, None])[:, 0]
            loss = cross_entropy(logits, classes, counted)
        return returned(ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions), options)


class ErnieMForTokenClassification(Head):
    """One answer per token, out of `config.num_labels`."""

    twin = reference.ErnieMForTokenClassification

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **options: Any,
    ) -> ClassifierOutput[Tensor]:
        encoded = self._encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        # On the rectangle, so that the logits at padding, where hidden states are 0, are the classifier's own too.
        logits = self._linear("classifier", self._drop(encoded.on_rectangle, encoded))
        if tracing():
            record("classifier", encoded.layout.keep(logits), encoded.layout)
        loss = None
        if labels is not None:
            B, S, C = logits.shape
            classes = targets.classes("labels", labels, (B, S), C, logits, self._validates(logits))
            loss = cross_entropy(logits.flatten(0, 1), classes.flatten(), encoded.valid.flatten())
        return returned(ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions), options)


class ErnieMForQuestionAnswering(Head):
    """Where the answer begins and ends in the text."""

    twin = reference.ErnieMForQuestionAnswering

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **options: Any,
    ) -> QuestionAnsweringOutput[Tensor]:
        encoded = self._encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        start, end = self._span_logits("qa_outputs", encoded).unbind(-1)
        loss = None
        if targets.both_or_neither(start_positions, end_positions):
            starts = targets.positions("start_positions", start_positions, start)
            ends = targets.positions("end_positions", end_positions, end)
            loss = (span_loss(start, starts, encoded.valid) + span_loss(end, ends, encoded.valid)) / 2
        output = QuestionAnsweringOutput(loss, start, end, encoded.hidden_states, encoded.attentions)
        return returned(output, options)


class ErnieMForInformationExtraction(Head):
    """Where spans begin and end: each token is scored independently, so there may be many spans, or none."""

    twin = reference.ErnieMForInformationExtraction

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **options: Any,
    ) -> InformationExtractionOutput[Tensor]:
        encoded = self._encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        pooler = getattr(self.ernie_m, "pooler", None)
        if encoded.pooled is None and pooler is not None and not all_untouched(pooler, KINDS):
            pooler(encoded.first_token())  # for what was put on it or in its place: nothing here reads the result
        start, end = (self._span_logits(name, encoded).squeeze(-1) for name in ("linear_start", "linear_end"))
        loss = None
        if targets.both_or_neither(start_positions, end_positions):
            validate, valid = self._validates(start), encoded.valid
            starts = targets.numbers("start_positions", start_positions, (start.shape,), start, validate)
            ends = targets.numbers("end_positions", end_positions, (start.shape,), start, validate)
            for name, values in (("start_positions", starts), ("end_positions", ends)):
                targets.probabilities(name, values, validate)
            loss = (binary_cross_entropy(start, starts, valid) + binary_cross_entropy(end, ends, valid)) / 2
        output = InformationExtractionOutput(
            loss, start, end, start.sigmoid(), end.sigmoid(), encoded.hidden_states, encoded.attentions
        )
        return returned(output, options)

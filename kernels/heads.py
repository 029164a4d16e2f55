"""The five heads as torch modules: what goes on top of the encoder for a task, and the loss it is trained with.

The first two read only each text's first token, so the last layer computes only that. The others work on packed tokens,
and padding is restored in their logits. Padding has no effect, as in the reference.

Twin: reference/heads.py. Each `forward` does what its twin's `__call__` does and shares its docstring.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear

from ernie_m import reference
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.inputs import ARGUMENTS, check_options
from ernie_m.reference.outputs import returned

from . import targets
from .inputs import check_inputs, on_device
from .layouts import Padded
from .losses import binary_cross_entropy, cross_entropy, span_loss, squared_error
from .model import KINDS, Encoded, ErnieMModel
from .outputs import ClassifierOutput, InformationExtractionOutput, QuestionAnsweringOutput
from .pretrained import PretrainedModel, initialise
from .runtime.dispatch import should_validate
from .runtime.modules import all_untouched, untouched
from .trace import record, tracing


def padded_logit(dtype: torch.dtype) -> float:
    """The logit at padding: low enough never to be picked, high enough that the sum of two stays finite."""
    return torch.finfo(dtype).min / 4


class _Head(PretrainedModel):
    """`ernie_m` and the linear maps that `twin` names. A call takes the `options` of `ErnieMModel.forward`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.forward.__doc__ is None:
            cls.forward.__doc__ = cls.twin.__call__.__doc__

    def __init__(self, config: ErnieMConfig, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(config)
        self.ernie_m = ErnieMModel(config, device, dtype, add_pooling_layer=self.twin.has_pooler, name="ernie_m.")
        for name, outputs in self.twin.head_sizes(config).items():
            setattr(self, name, Linear(config.hidden_size, outputs, device=device, dtype=dtype))
            initialise(getattr(self, name), config)

    def _validates(self, x: Tensor) -> bool:
        return should_validate(x, self.validate)

    def _encode(self, given: tuple[Tensor | None, ...], options: dict[str, Any], first_only: bool = False) -> Encoded:
        """Run the encoder on the positional arguments and the options of a call.

        If something was put around `ernie_m`, or it was replaced, it is called as a module.
        """
        base, call = self.ernie_m, dict(zip(ARGUMENTS, given, strict=False)) | options
        check_options(type(self).__name__, {name: x for name, x in call.items() if name not in ARGUMENTS})
        if untouched(base, ErnieMModel):
            return base.encode(**call, first_only=first_only, validate=self.validate)
        out = base(**{**call, "return_dict": True})
        like, (ids, mask, positions, _, vectors) = out.last_hidden_state, (call.get(name) for name in ARGUMENTS)
        validate = should_validate(like, self.validate)
        valid = check_inputs(self.config, like, ids, mask, positions, vectors, validate).valid
        everywhere = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
        layout = Padded(valid, None, plain=True)
        valid = everywhere if valid is None else valid
        return Encoded(layout, valid, like, None, out.hidden_states, out.attentions, out.pooler_output)

    def _drop(self, x: Tensor) -> Tensor:
        p = self.config.classifier_dropout
        return F.dropout(x, self.config.hidden_dropout_prob if p is None else p, self.training)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        logits = getattr(self, name)(x)
        assert isinstance(logits, Tensor)
        return logits

    def _pooled_logits(self, encoded: Encoded) -> Tensor:  # -> (B, C)
        pooled = encoded.pooled
        if pooled is None:
            assert self.ernie_m.pooler is not None
            pooled = self.ernie_m.pooler(encoded.first_token())
        return record("classifier", self._linear("classifier", self._drop(pooled)))

    def _span_logits(self, name: str, encoded: Encoded) -> Tensor:  # -> (B, S, outputs)
        """The logits of each token; `padded_logit` at padding."""
        assert encoded.hidden is not None
        logits = record(name, self._linear(name, encoded.hidden), encoded.layout)
        logits = encoded.layout.on_rectangle(logits)
        return logits.masked_fill(~encoded.valid[..., None], padded_logit(logits.dtype))


class ErnieMForSequenceClassification(_Head):
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


class ErnieMForMultipleChoice(_Head):
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


class ErnieMForTokenClassification(_Head):
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
        logits = self._linear("classifier", self._drop(encoded.on_rectangle))
        if tracing():
            record("classifier", encoded.layout.keep(logits), encoded.layout)
        loss = None
        if labels is not None:
            B, S, C = logits.shape
            classes = targets.classes("labels", labels, (B, S), C, logits, self._validates(logits))
            loss = cross_entropy(logits.flatten(0, 1), classes.flatten(), encoded.valid.flatten())
        return returned(ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions), options)


class ErnieMForQuestionAnswering(_Head):
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


class ErnieMForInformationExtraction(_Head):
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

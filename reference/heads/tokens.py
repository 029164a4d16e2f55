"""The head on every token: token classification.

Source: transformers 4.40.2, `ErnieMForTokenClassification`.
"""

from __future__ import annotations

from typing import Any

from .. import targets
from ..array import Array
from ..config import ErnieMConfig
from ..linear import linear, linear_vjp
from ..losses import cross_entropy, cross_entropy_vjp
from ..model import Encoded
from ..outputs import ClassifierOutput, returned
from ..trace import recomputed, record, record_gradient
from .head import Head, HeadGradients


class ErnieMForTokenClassification(Head):
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
        encoded = self.encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        return returned(self.answer(encoded, labels=labels), options)

    def answer(self, encoded: Encoded, labels: Any = None) -> ClassifierOutput[Array]:
        hidden = self._drop(encoded.hidden, encoded)
        logits = record("classifier", linear(hidden, self.parameters.head["classifier"]))
        loss = None
        if labels is not None:
            loss = cross_entropy(logits.reshape(-1, logits.shape[-1]), *self._targets(encoded, labels, logits))
        return ClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)

    def loss_vjp(self, d_loss: Any, encoded: Encoded, labels: Any = None) -> HeadGradients:
        classifier, hidden = self.parameters.head["classifier"], self._drop(encoded.hidden, encoded)
        with recomputed():
            logits = record("classifier", linear(hidden, classifier))
        rows = logits.reshape(-1, logits.shape[-1])
        d_logits = cross_entropy_vjp(d_loss, rows, *self._targets(encoded, labels, logits)).reshape(logits.shape)
        d_hidden, gradients = linear_vjp(record_gradient("classifier", d_logits), hidden, classifier)
        return HeadGradients(self._drop(d_hidden, encoded), head={"classifier": gradients})

    def _targets(self, encoded: Encoded, labels: Any, logits: Array) -> tuple[Array, Array]:  # -> (B S,), (B S,)
        """The validated labels, and which of them count: those of real tokens."""
        B, S, C = logits.shape
        return targets.classes("labels", labels, (B, S), C).reshape(-1), encoded.valid.reshape(-1)

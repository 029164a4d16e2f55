"""What the heads share: the encoder below, the pooler, dropout, and logits at padding.

A call is `answer(encode(inputs), targets)`. Its backward pass starts at the loss: `loss_vjp` computes the logits again
from the encoder's output, as a layer's does from its input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..array import Array
from ..dropout import dropout
from ..linear import linear, linear_vjp
from ..model import Encoded, encode, pool, pool_vjp
from ..parameters import Linear, PredictionHead
from ..pretrained import PretrainedModel
from ..trace import recomputed, record, record_gradient, scope


@dataclass(frozen=True)
class HeadGradients:
    """The gradients of the encoder's output, (B, S, E), and of everything above it; None where a model has no such."""

    hidden: Array
    pooler: Linear | None = None
    head: Mapping[str, Linear] = field(default_factory=dict)
    prediction: PredictionHead | None = None
    word_embeddings: Array | None = None  # as far as the head reads the table


def padded_logit(dtype: Any) -> float:
    """The logit of a padded position: too low to be picked, but the sum of two is still finite."""
    return float(np.finfo(dtype).min) / 4


class Head(PretrainedModel):
    """A model with a head on top. The `options` of a call are the arguments of `ErnieMModel.__call__`.

    answer(encoded, **targets): the output of a call, given that of the encoder.
    loss_vjp(d_loss, encoded, **targets): the gradients of `encoded.hidden` and of what is above it, given that of the
        loss.
    """

    answer: Callable[..., Any]
    loss_vjp: Callable[..., HeadGradients]

    def encode(self, given: tuple[Any, ...], options: dict[str, Any], keep_states: bool = False) -> Encoded:
        """The encoder's part of a call."""
        with scope("ernie_m"):
            return encode(self, *given, keep_states=keep_states, **options)

    def _drop(self, x: Array, encoded: Encoded) -> Array:  # (B, E) or (B, S, E)
        p = self.config.classifier_dropout
        index = np.maximum(np.cumsum(encoded.valid) - 1, 0).reshape(encoded.valid.shape)
        if x.ndim == 2:
            index = index[np.arange(len(x)), encoded.valid.argmax(axis=1)]
        return dropout(x, self.config.hidden_dropout_prob if p is None else p, encoded.steps.seed(-1), index)

    def _pooled_logits(self, encoded: Encoded) -> Array:  # (B, S, E) -> (B, C)
        assert self.parameters.pooler is not None
        with scope("ernie_m"):
            pooled = pool(encoded, self.parameters.pooler)
        return record("classifier", linear(self._drop(pooled, encoded), self.parameters.head["classifier"]))

    def _pooled_logits_vjp(self, dy: Array, encoded: Encoded) -> HeadGradients:  # (B, C)
        pooler, classifier = self.parameters.pooler, self.parameters.head["classifier"]
        assert pooler is not None
        with recomputed(), scope("ernie_m"):
            pooled = pool(encoded, pooler)
        dropped, gradients = linear_vjp(record_gradient("classifier", dy), self._drop(pooled, encoded), classifier)
        with scope("ernie_m"):
            d_hidden, d_pooler = pool_vjp(self._drop(dropped, encoded), pooled, encoded, pooler)
        return HeadGradients(d_hidden, d_pooler, {"classifier": gradients})

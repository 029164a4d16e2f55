"""The head that predicts words, with which the model is pretrained.

    h = LayerNorm(activation(dense(hidden)))          (..., E)
    logits = h @ word_embeddings.T + bias             (..., V)

The last map is the table that the model reads words from, transposed: it is "tied". Its gradient is the sum of both
uses. The bias is the head's own.

No head of ERNIE-M's pretraining was released, and the paper does not describe one. This is the usual one of encoders,
as in transformers 4.40.2, `BertLMPredictionHead`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import targets
from ..activations import activation
from ..array import Array
from ..layer_norm import layer_norm, layer_norm_vjp
from ..linear import linear, linear_vjp
from ..losses import IGNORE_INDEX, cross_entropy, cross_entropy_vjp
from ..model import Encoded
from ..outputs import MaskedLMOutput, returned
from ..parameters import LayerNorm, Linear, PredictionHead
from ..slopes import activation_vjp
from ..trace import Tokens, packed_tokens, recomputed, record, record_gradient, scope
from .head import Head, HeadGradients


class ErnieMForMaskedLM(Head):
    """Which word each token is, out of `config.vocab_size`: a masked language model."""

    has_pooler = False
    predicts_words = True

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        *,
        labels: Any = None,
        label_weights: Any = None,
        **options: Any,
    ) -> MaskedLMOutput[Array]:
        """Return logits (B, S, V); or, if `labels` are given, the loss alone.

        labels: (B, S) words in [0, V), or -100 where nothing is predicted. Those at padded positions are treated as
            -100. Logits are computed only where there is a label, and are not returned: with a vocabulary of 250,002,
            those of all tokens would take gigabytes.
        label_weights: (B, S) numbers of at least 0. The loss is Σ w · cross-entropy / Σ w; by default all are 1.
        """
        encoded = self.encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        return returned(self.answer(encoded, labels=labels, label_weights=label_weights), options)

    def answer(self, encoded: Encoded, labels: Any = None, label_weights: Any = None) -> MaskedLMOutput[Array]:
        B, S, _ = encoded.hidden.shape
        if labels is None:
            if label_weights is not None:
                raise ValueError(f"label_weights: expected together with labels, got {np.shape(label_weights)} alone")
            logits = self._words(encoded, np.arange(B * S))[-1].reshape(B, S, -1)
            return MaskedLMOutput(None, logits, encoded.hidden_states, encoded.attentions)
        rows, words, weights = self._targets(encoded, labels, label_weights)
        loss = cross_entropy(self._words(encoded, rows)[-1], words, weights=weights)
        return MaskedLMOutput(loss, None, encoded.hidden_states, encoded.attentions)

    def loss_vjp(self, d_loss: Any, encoded: Encoded, labels: Any = None, label_weights: Any = None) -> HeadGradients:
        p, table = self._head, self.parameters.word_embeddings
        rows, words, weights = self._targets(encoded, labels, label_weights)
        with recomputed():
            hidden, dense, active, normed, logits = self._words(encoded, rows)
        with packed_tokens(_tokens(encoded, rows)), scope("prediction"):
            d_logits = record_gradient("decoder", cross_entropy_vjp(d_loss, logits, words, weights=weights))
            d_normed, decoder = linear_vjp(d_logits, normed, Linear(table, p.bias))
            d_normed = record_gradient("layer_norm", d_normed)
            d_active, *d_norm = layer_norm_vjp(d_normed, active, p.layer_norm.weight, self.config.layer_norm_eps)
            d_active = record_gradient("activation", d_active)
            d_dense = record_gradient("dense", activation_vjp(self.config.hidden_act)(d_active, dense))
            d_rows, d_weights = linear_vjp(d_dense, hidden, p.dense)
        d_hidden = np.zeros_like(encoded.hidden)
        d_hidden.reshape(-1, d_hidden.shape[-1])[rows] = d_rows
        prediction = PredictionHead(d_weights, LayerNorm(*d_norm), decoder.bias)
        return HeadGradients(d_hidden, prediction=prediction, word_embeddings=decoder.weight)

    @property
    def _head(self) -> PredictionHead:
        assert self.parameters.prediction is not None
        return self.parameters.prediction

    def _words(self, encoded: Encoded, rows: Array) -> tuple[Array, ...]:  # (M,) -> (M, E) x 4, (M, V)
        """At some rows of the flattened rectangle: hidden states, dense, activation, LayerNorm and logits."""
        p, table = self._head, self.parameters.word_embeddings
        hidden = encoded.hidden.reshape(-1, encoded.hidden.shape[-1])[rows]
        with packed_tokens(_tokens(encoded, rows)), scope("prediction"):
            dense = record("dense", linear(hidden, p.dense))
            active = record("activation", activation(self.config.hidden_act)(dense))
            norm = p.layer_norm
            normed = record("layer_norm", layer_norm(active, norm.weight, norm.bias, self.config.layer_norm_eps))
            return hidden, dense, active, normed, record("decoder", linear(normed, Linear(table, p.bias)))

    def _targets(
        self, encoded: Encoded, labels: Any, label_weights: Any
    ) -> tuple[Array, Array, Array | None]:  # -> (M,) x 3
        """The rows of the flattened rectangle that count, their words and their weights."""
        shape = encoded.valid.shape
        words = targets.classes("labels", labels, shape, self.config.vocab_size)
        rows = np.flatnonzero((words != IGNORE_INDEX) & encoded.valid)
        if label_weights is None:
            return rows, words.reshape(-1)[rows], None
        wide = np.result_type(encoded.hidden.dtype, np.float32)
        weights = targets.numbers("label_weights", label_weights, (shape,), wide).reshape(-1)
        targets.check_weights("label_weights", weights)
        return rows, words.reshape(-1)[rows], weights[rows]


def _tokens(encoded: Encoded, rows: Array) -> Tokens:
    """The places of the rows, for a trace."""
    return Tokens(rows, *encoded.valid.shape)

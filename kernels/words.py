"""The head that predicts words as a torch module, with which the model is pretrained.

    h = LayerNorm(activation(dense(hidden)))
    loss = linear_cross_entropy(h, word_embeddings, bias, labels)

With labels, only the tokens that have one reach the head, and their logits never exist all at once.

Twin: reference/heads/words.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Linear, Module, Parameter

from ernie_m import reference
from ernie_m.reference.array import Array
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.losses import IGNORE_INDEX
from ernie_m.reference.outputs import returned
from ernie_m.reference.trace import Entry, Tokens

from . import targets
from .activations import activate
from .encoded import Encoded
from .head import Head
from .linear_cross_entropy import linear_cross_entropy
from .outputs import MaskedLMOutput
from .pretrained import initialise
from .runtime.dispatch import transformed, without_values
from .runtime.dtypes import wide_dtype, widen
from .runtime.modules import untouched
from .trace import record


@dataclass(frozen=True)
class Rows:
    """The places of some rows of the flattened (B, S) rectangle, for a trace."""

    indices: Tensor
    batch: int
    length: int

    def entry(self, name: str, value: Array) -> Entry:
        """The value as a trace entry."""
        return Entry(name, value, Tokens(self.indices.cpu().numpy(), self.batch, self.length))


class Transform(Module):
    """LayerNorm(activation(dense(x))). The modules have the names of transformers' BERT."""

    def __init__(self, config: ErnieMConfig, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        E, self.activation = config.hidden_size, config.hidden_act
        self.dense = Linear(E, E, device=device, dtype=dtype)
        self.LayerNorm = LayerNorm(E, eps=config.layer_norm_eps, device=device, dtype=dtype)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:  # (M, E) -> (M, E)
        """What the table is multiplied with."""
        dense = record("prediction.dense", self.dense(x), rows)
        active = record("prediction.activation", activate(self.activation, dense), rows)
        return record("prediction.layer_norm", self.LayerNorm(active), rows)


class Predictions(Module):
    """The transform, and the bias of the words."""

    def __init__(self, config: ErnieMConfig, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.transform = Transform(config, device, dtype)
        self.bias = Parameter(torch.empty(config.vocab_size, device=device, dtype=dtype))

    def forward(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:  # (M, E) -> (M, E), (V,)
        """What the table is multiplied with, and the bias: the product is made with the loss, or makes the logits."""
        return self.transform(x, rows), self.bias


class Pretraining(Module):
    """What is on top of the encoder: the head that predicts words. As in BERT, it is a module in a module."""

    def __init__(self, config: ErnieMConfig, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.predictions = Predictions(config, device, dtype)

    def forward(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:  # (M, E) -> (M, E), (V,)
        """As `Predictions`."""
        found: tuple[Tensor, Tensor] = self.predictions(x, rows)
        return found


class ErnieMForMaskedLM(Head):
    """Which word each token is, out of `config.vocab_size`: a masked language model."""

    twin = reference.ErnieMForMaskedLM

    def __init__(self, config: ErnieMConfig, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, device, dtype)
        self.cls = Pretraining(config, device, dtype)
        with torch.no_grad():
            initialise(self.cls, config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        **options: Any,
    ) -> MaskedLMOutput[Tensor]:
        encoded = self._encode((input_ids, attention_mask, position_ids, head_mask, inputs_embeds), options)
        loss, logits = None, None
        if labels is not None:
            loss = self._loss(encoded, labels, label_weights)
        elif label_weights is not None:
            raise ValueError(f"label_weights: expected together with labels, got {tuple(label_weights.shape)} alone")
        else:
            hidden = encoded.on_rectangle
            B, S, _ = hidden.shape
            rows = Rows(torch.arange(B * S, device=hidden.device), B, S)
            top, bias = self.cls(hidden.flatten(0, 1), rows)
            logits = top @ self._table(hidden).T + bias
            logits = record("prediction.decoder", logits, rows).unflatten(0, (B, S))
        return returned(MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions), options)

    def resize_token_embeddings(self, size: int | None = None, pad_to_multiple_of: int | None = None) -> Module:
        """As in the other classes; the bias of the words follows, with 0 for new ones."""
        embeddings = super().resize_token_embeddings(size, pad_to_multiple_of)
        head, V = self.cls.predictions, self.config.vocab_size
        kept = head.bias.detach()[:V]
        head.bias = Parameter(torch.cat([kept, kept.new_zeros(V - len(kept))]), head.bias.requires_grad)
        return embeddings

    def _table(self, like: Tensor) -> Tensor:  # (V, E)
        """The words' vectors; if something was put around their module, or in its place, as it returns them."""
        words = self.ernie_m.embeddings.word_embeddings
        if untouched(words, Embedding):
            return words.weight
        table: Tensor = words(torch.arange(self.config.vocab_size, device=like.device))
        return table

    def _loss(self, encoded: Encoded, labels: Tensor, label_weights: Tensor | None) -> Tensor:
        hidden = encoded.on_rectangle
        B, S, _ = hidden.shape
        classes = targets.classes("labels", labels, (B, S), self.config.vocab_size, hidden, self._validates(hidden))
        counted = ((classes != IGNORE_INDEX) & encoded.valid).flatten()
        shapes_only = without_values(hidden)
        if shapes_only:
            # How many tokens count is unknown: the others get a label and a weight that count for nothing.
            classes = classes.masked_fill(~counted.view(B, S), IGNORE_INDEX)
            keep = torch.arange(B * S, device=hidden.device)
        else:
            keep = counted.nonzero()[:, 0]
        weights = None
        if label_weights is not None:
            validate = self._validates(hidden)
            targets.weights("label_weights", label_weights, (B, S), hidden, validate)
            weights = label_weights.to(wide_dtype(hidden)).flatten()[keep]
        rows, bias = self.cls(hidden.flatten(0, 1)[keep], Rows(keep, B, S))
        table, words = self._table(hidden), classes.flatten()[keep]
        if transformed() or shapes_only:
            # `torch.func` differentiates what autograd's functions of our own hide.
            losses = F.cross_entropy(widen(rows @ table.T + bias), words.long(), reduction="none")
            shares = (words != IGNORE_INDEX) * (torch.ones_like(losses) if weights is None else weights)
            return (shares * losses).sum() / shares.sum()
        return linear_cross_entropy(rows, table, bias, words, weights=weights)

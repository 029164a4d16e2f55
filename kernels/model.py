"""The bare model as a torch module: embeddings, encoder, pooler.

    x = dropout(embed(ids))                     (T, E), without padding; or (B, S, E)
    x = layer(x) for each layer
    pooled = tanh(dense(first token))           (B, E)

A call is packed on entry if possible: padding is removed once, everything is computed on tokens alone, and padding is
restored once. Only the number of tokens is read on the way, so a call is one graph for `torch.compile(fullgraph=True)`.

If gradients are needed or dropout is on, the same is computed in plain torch on the rectangle, as the kernels have no
backward pass yet.

Twin: reference/model.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

from ernie_m import reference
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.embedding import POSITION_OFFSET
from ernie_m.reference.inputs import POSITIONS, VOCABULARY, Inputs
from ernie_m.reference.outputs import ModelOutput

from .encoder import Embeddings, EncoderLayer, Layout, Pooler
from .inputs import check_head_mask, check_inputs, integers, on_device
from .layouts import Packed, Padded, pack, rows_of_first_tokens
from .padding import cu_seqlens, token_indices
from .pretrained import PretrainedModel, initialise
from .runtime.arguments import check_range
from .runtime.dispatch import should_validate


@dataclass(frozen=True)
class Encoded:
    """What the encoder returns to a head.

    `hidden`: (T, E) or (B, S, E), depending on `layout`; or, if that is enough, `first`: only the first tokens, (B, E).
    `valid` (B, S): which positions hold real tokens. `hidden_states`, `attentions`: on the rectangle, if requested.
    """

    layout: Layout
    valid: Tensor
    hidden: Tensor | None = None
    first: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def on_rectangle(self) -> Tensor:
        """`hidden` as (B, S, E)."""
        assert self.hidden is not None
        return self.layout.on_rectangle(self.hidden)

    def first_token(self, rectangle: Tensor | None = None) -> Tensor:  # (B, S, E) -> (B, E)
        """Each row's first token: column 0, or the first valid column if that is masked; 0 in a row without tokens."""
        if self.first is not None:
            return self.first
        hidden = self.on_rectangle if rectangle is None else rectangle
        columns = self.valid.to(torch.uint8).argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), columns]


class Encoder(Module):
    """The stack of layers."""

    def __init__(self, config: ErnieMConfig, name: str, device: Any, dtype: Any) -> None:
        super().__init__()
        names = [f"{name}.layers.{i}" for i in range(config.num_hidden_layers)]
        self.layers = ModuleList(EncoderLayer(config, i, name, device, dtype) for i, name in enumerate(names))


class ErnieMModel(PretrainedModel):
    """The encoder without a head. Build one with `from_pretrained(directory)` or `from_config(config, seed=0)`.

    `ErnieMModel(config)` draws random weights from torch's generator and, like any new module, is in `train()` mode.
    """

    twin = reference.ErnieMModel

    def __init__(
        self,
        config: ErnieMConfig,
        device: Any = None,
        dtype: torch.dtype | None = None,
        add_pooling_layer: bool = True,
        name: str = "",
    ) -> None:
        """`name`: the prefix of names in a trace, "ernie_m." inside a head."""
        super().__init__(config)
        factory = {"device": device, "dtype": dtype}
        self.embeddings = Embeddings(config, f"{name}embeddings", **factory)
        self.encoder = Encoder(config, f"{name}encoder", **factory)
        self.pooler = Pooler(config.hidden_size, f"{name}pooler", **factory) if add_pooling_layer else None
        initialise(self, config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> ModelOutput[Tensor]:
        """Encode a batch.

        input_ids: (B, S) integers in [0, vocab_size). Alternatively,
        inputs_embeds: (B, S, E) word vectors, to which positions are still added.
        attention_mask: (B, S) of 0 and 1, 1 = token, 0 = padding; or (B, S, S) of booleans, True = the row's token may
            attend to the column's. By default, `config.default_mask` decides what is masked.
        position_ids: (B, S) integers in [0, max_position_embeddings - 2); by default each token's column.
        head_mask: (H,) or (L, H) factors for the heads' attention probabilities.
        output_hidden_states, output_attentions: whether to return them.

        All are tensors on the model's device. Raises TypeError or ValueError, naming the argument, the value and what
        was expected.
        """
        given = (input_ids, attention_mask, position_ids, head_mask, inputs_embeds)
        encoded = self.encode(*given, output_hidden_states, output_attentions)
        hidden = encoded.on_rectangle
        pooled = None if self.pooler is None else self.pooler(encoded.first_token(hidden))
        return ModelOutput(hidden, pooled, encoded.hidden_states, encoded.attentions)

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        first_only: bool = False,
        validate: bool | None = None,
    ) -> Encoded:
        """Run embeddings and encoder for a head. `first_only`: the head reads only each row's first token."""
        config, like = self.config, self.embeddings.word_embeddings.weight
        validate = should_validate(like, self.validate if validate is None else validate)
        inputs = check_inputs(config, like, input_ids, attention_mask, position_ids, inputs_embeds, validate)
        head_masks = check_head_mask(config, like, head_mask)
        layout = choose_layout(inputs, self._plain(inputs.inputs_embeds), output_attentions)
        first_only = first_only and isinstance(layout, Packed) and not output_hidden_states
        ids, vectors = (None if x is None else layout.keep(x) for x in (inputs.input_ids, inputs.inputs_embeds))
        x = self.embeddings(ids, vectors, layout.keep(inputs.position_ids), layout)
        states: list[Tensor] = []
        maps: list[Tensor] = []
        valid = torch.ones_like(inputs.position_ids, dtype=torch.bool) if inputs.valid is None else inputs.valid
        for i, layer in enumerate(self.encoder.layers):
            assert isinstance(layer, EncoderLayer)
            if first_only and i == len(self.encoder.layers) - 1:
                assert isinstance(layout, Packed)
                return Encoded(layout, valid, first=layer.first_tokens(x, layout, head_masks[i]))
            if output_hidden_states:
                states.append(layout.on_rectangle(x))
            x, probs = layer(x, layout, head_masks[i])
            if output_attentions:
                maps.append(probs)
        if output_hidden_states:
            states.append(layout.on_rectangle(x))
        kept = (tuple(states) if output_hidden_states else None, tuple(maps) if output_attentions else None)
        return Encoded(layout, valid, x, None, *kept)

    def packed(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, position_ids: Tensor | None = None
    ) -> ModelOutput[Tensor]:  # (T,), (B + 1,), (T,) -> (T, E), (B, E)
        """Encode B sequences stored one after the other: sequence b is tokens cu_seqlens[b] to cu_seqlens[b+1].

        input_ids: (T,) integers. cu_seqlens: (B + 1,) int32, from 0 to T; a sequence may be empty.
        max_seqlen: at least the longest sequence's length. position_ids: (T,); by default 0, 1, ... in each sequence.

        No value is read on the host, so that CUDA graphs apply; on a CPU, or with `validate`, values are checked.
        Raises TypeError or ValueError, naming the argument, the value and what was expected.
        """
        like = self.embeddings.word_embeddings.weight
        validate = should_validate(like, self.validate)
        ids = integers("input_ids", input_ids, like)
        if ids.dim() != 1:
            raise ValueError(f"input_ids: expected shape (T,), got {tuple(ids.shape)}")
        cu_seqlens = on_device("cu_seqlens", cu_seqlens, like)
        layout, column = pack(cu_seqlens, len(ids), max_seqlen, self._plain(None), validate)
        positions = column if position_ids is None else integers("position_ids", position_ids, like)
        if positions.shape != ids.shape:
            raise ValueError(f"position_ids: expected shape (T,) = {tuple(ids.shape)}, got {tuple(positions.shape)}")
        if validate:
            check_range("input_ids", ids, self.config.vocab_size, VOCABULARY)
            limit = self.config.max_position_embeddings - POSITION_OFFSET
            check_range("position_ids", positions, limit, POSITIONS)
        x = self.embeddings(ids, None, positions, layout)
        for layer in self.encoder.layers:
            x, _ = layer(x, layout)
        return ModelOutput(x, None if self.pooler is None else self.pooler(rows_of_first_tokens(x, cu_seqlens)))

    def _plain(self, vectors: Tensor | None) -> bool:
        """Whether plain torch is needed: for gradients, dropout, or the dtypes that autocast picks."""
        config, like = self.config, self.embeddings.word_embeddings.weight
        p_activation = config.hidden_dropout_prob if config.act_dropout is None else config.act_dropout
        drops = max(config.hidden_dropout_prob, config.attention_probs_dropout_prob, p_activation) > 0
        if (self.training and drops) or torch.is_autocast_enabled(like.device.type):
            return True
        return torch.is_grad_enabled() and (
            (vectors is not None and vectors.requires_grad) or any(x.requires_grad for x in self.parameters())
        )


def choose_layout(inputs: Inputs[Tensor], plain: bool, output_attentions: bool) -> Layout:
    """Packed unless something needs the rectangle."""
    valid, mask = inputs.valid, inputs.mask
    B, S = inputs.position_ids.shape
    if mask is not None or plain or output_attentions:
        if mask is None and valid is not None:
            mask = valid[:, None, :, None] & valid[:, None, None, :]
        return Padded(valid, mask, plain)
    if valid is None:
        ends = torch.arange(0, (B + 1) * S, S, dtype=torch.int32, device=inputs.position_ids.device)
        return Packed(None, ends, S, plain)
    return Packed(token_indices(valid), cu_seqlens(valid), S, plain)

"""The bare model as a torch module: embeddings, encoder, pooler.

    x = dropout(embed(ids))                     (T, E), without padding; or (B, S, E)
    x = layer(x) for each layer
    pooled = tanh(dense(first token))           (B, E)

A call is packed on entry if possible: padding is removed once, everything is computed on tokens alone, and padding is
restored once. Only the number of tokens is read on the way, so a call is one graph for `torch.compile(fullgraph=True)`.

Training runs on the kernels too, packed: each has a backward pass. In float64 and without Triton, the same is computed
in plain torch; in training packed too on a CPU, elsewhere on the rectangle. Autocast runs on the kernels as well; which
dtypes it gets is in `encoder.py`. Dropout drops what the reference's does, given the same seeds.

Twin: reference/model.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Linear, Module, ModuleList

from ernie_m import reference
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.embedding import POSITION_OFFSET
from ernie_m.reference.inputs import OPTIONS, POSITIONS, VOCABULARY, check_length, check_options
from ernie_m.reference.outputs import returned

from .dropping import call_seeds
from .encoded import Encoded, choose_layout
from .encoder import Embeddings, Encoder, EncoderLayer, Pooler, reduces
from .inputs import check_head_mask, check_inputs, check_token_types, integers, on_device, warn_of_mask
from .layouts import Packed, pack, rows_of_first_tokens
from .outputs import ModelOutput
from .pretrained import PretrainedModel, initialise
from .runtime.arguments import check_range
from .runtime.dispatch import (
    autocasts,
    eager_on_cpu,
    exports_onnx,
    runs_triton,
    should_validate,
    transformed,
    without_values,
)
from .runtime.modules import all_untouched, untouched
from .self_attention import Attention, SelfAttention
from .trace import tracing


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
        **options: Any,
    ) -> ModelOutput[Tensor]:
        """Encode a batch.

        input_ids: (B, S) integers in [0, vocab_size). Alternatively,
        inputs_embeds: (B, S, E) word vectors, to which positions are still added.
        attention_mask: (B, S) of 0 and 1, 1 = token, 0 = padding; or (B, S, S) of booleans, True = the row's token may
            attend to the column's. By default, `config.default_mask` decides what is masked.
        position_ids: (B, S) integers in [0, max_position_embeddings - 2); by default each token's column.
        head_mask: (H,) or (L, H) factors for the heads' attention probabilities.
        options: output_hidden_states and output_attentions, whether to return them; return_dict, False for a tuple;
            token_type_ids, which ERNIE-M does not have, and which must be 0; and for dropout in `train()` mode
            dropout_seeds, (4 L + 2,) int64, drawn from torch's generator by default, and first_token, the index of the
            batch's first token if other processes compute other parts of it.

        All are tensors on the model's device. Raises TypeError or ValueError, naming the argument, the value and what
        was expected.
        """
        check_options(type(self).__name__, options, CALL_OPTIONS)
        encoded = self.encode(input_ids, attention_mask, position_ids, head_mask, inputs_embeds, **options)
        hidden = encoded.on_rectangle
        pooled = None if self.pooler is None else self.pooler(encoded.first_token(hidden))
        return returned(ModelOutput(hidden, pooled, encoded.hidden_states, encoded.attentions), options)

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        first_only: bool = False,
        validate: bool | None = None,
        head_drops: bool = False,
        **options: Any,
    ) -> Encoded:
        """Run embeddings and encoder for a head. `first_only`: the head reads only each row's first token.

        `head_drops`: the head needs a seed, even if nothing here does.
        """
        config, like = self.config, self.like(input_ids, inputs_embeds)
        shapes_only = without_values(like, input_ids, inputs_embeds)
        validate = not shapes_only and should_validate(like, self.validate if validate is None else validate)
        inputs = check_inputs(config, like, input_ids, attention_mask, position_ids, inputs_embeds, validate)
        warn_of_mask(self, inputs.input_ids, attention_mask)
        check_token_types(options.get("token_type_ids"), inputs.position_ids, validate)
        head_masks = check_head_mask(config, like, head_mask)
        wanted = [bool(options.get(name)) for name in ("output_hidden_states", "output_attentions")]
        given = options.get("dropout_seeds"), options.get("first_token", 0)
        drops, seeds, first_token = call_seeds(self, config, like, *given, head_drops)
        differentiates = drops or self._differentiates(like, inputs.inputs_embeds)
        plain = self._is_plain(like, differentiates)
        # In training, the rectangle: where plain torch cannot read lengths, and for what was put on the embeddings.
        packs = all_untouched(self.embeddings, KINDS) and (not plain or eager_on_cpu(like))
        # And for `torch.jit.trace`, which would keep this batch's length as the longest that attention can read, and
        # where the number of tokens is unknown.
        rectangle = (differentiates and not packs) or wanted[1] or torch.jit.is_tracing() or shapes_only
        layout = choose_layout(inputs, plain, rectangle, wanted[1])
        first_only = first_only and isinstance(layout, Packed) and not wanted[0] and reduces(self.encoder)
        # With gradients, a trace records every value. The kernel for first tokens drops nothing.
        first_only = first_only and not drops and not (differentiates and tracing())
        ids, vectors = (None if x is None else layout.keep(x) for x in (inputs.input_ids, inputs.inputs_embeds))
        positions = layout.keep(inputs.position_ids)
        if drops:
            assert seeds is not None
            layout = layout.with_drops(seeds, first_token, positions)
        x = self.embeddings(ids, vectors, positions, layout)
        x, states, maps = self.encoder(x, layout, head_masks, first_only, *wanted)
        valid = torch.ones_like(inputs.position_ids, dtype=torch.bool) if inputs.valid is None else inputs.valid
        if first_only:
            return Encoded(layout, valid, first=x, seeds=seeds, offset=first_token)
        hidden_states, attentions = (tuple(x) if kept else None for x, kept in zip((states, maps), wanted, strict=True))
        return Encoded(layout, valid, x, None, hidden_states, attentions, None, seeds, first_token)

    def like(self, *given: Tensor | None) -> Tensor:
        """A tensor with the model's dtype and device: the word table or, if that is offloaded, one like the inputs."""
        weight = getattr(getattr(self.embeddings, "word_embeddings", None), "weight", None)
        table = weight if isinstance(weight, Tensor) else next(self.parameters())
        if table.device.type != "meta":
            return table
        devices = [x.device for x in given if isinstance(x, Tensor)]
        if devices and devices[0].type != "meta" and untouched(self.embeddings.word_embeddings, Embedding):
            # Nothing is on it that could fetch its weights.
            raise ValueError(f"model: expected weights on {devices[0]} like the inputs, got {NO_WEIGHTS}")
        return torch.empty(0, dtype=table.dtype, device=devices[0] if devices else "cpu")

    def packed(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        position_ids: Tensor | None = None,
        dropout_seeds: Tensor | None = None,
        first_token: int = 0,
    ) -> ModelOutput[Tensor]:  # (T,), (B + 1,), (T,) -> (T, E), (B, E)
        """Encode B sequences stored one after the other: sequence b is tokens cu_seqlens[b] to cu_seqlens[b+1].

        input_ids: (T,) integers. cu_seqlens: (B + 1,) int32, from 0 to T; a sequence may be empty.
        max_seqlen: at least the longest sequence's length. position_ids: (T,); by default 0, 1, ... in each sequence.
        dropout_seeds, first_token: as in `forward`.

        No value is read on the host, so that CUDA graphs apply; on a CPU, or with `validate`, values are checked.
        Raises TypeError or ValueError, naming the argument, the value and what was expected.
        """
        like = self.like(input_ids)
        validate = should_validate(like, self.validate)
        ids = integers("input_ids", input_ids, like)
        if ids.dim() != 1:
            raise ValueError(f"input_ids: expected shape (T,), got {tuple(ids.shape)}")
        cu_seqlens = on_device("cu_seqlens", cu_seqlens, like)
        drops, seeds, first_token = call_seeds(self, self.config, like, dropout_seeds, first_token)
        plain = self._is_plain(like, drops or self._differentiates(like, None))
        layout, column = pack(cu_seqlens, len(ids), max_seqlen, plain, validate)
        positions = column if position_ids is None else integers("position_ids", position_ids, like)
        if positions.shape != ids.shape:
            raise ValueError(f"position_ids: expected shape (T,) = {tuple(ids.shape)}, got {tuple(positions.shape)}")
        limit = self.config.max_position_embeddings - POSITION_OFFSET
        if validate:
            check_range("input_ids", ids, self.config.vocab_size, VOCABULARY)
            check_range("position_ids", positions, limit, POSITIONS)
        elif position_ids is None:
            check_length("max_seqlen", max_seqlen, limit, padded=True)
        if drops:
            assert seeds is not None
            layout = layout.with_drops(seeds, first_token, ids)
        x, _, _ = self.encoder(self.embeddings(ids, None, positions, layout), layout)
        return ModelOutput(x, None if self.pooler is None else self.pooler(rows_of_first_tokens(x, cu_seqlens)))

    def _is_plain(self, like: Tensor, differentiates: bool) -> bool:
        """Whether to compute in plain torch: where no kernel runs, under the transforms of `torch.func`, for ONNX, and
        for a trace of a training step, which records every value."""
        return transformed() or not runs_triton(like) or exports_onnx() or (differentiates and tracing())

    def _differentiates(self, like: Tensor, vectors: Tensor | None) -> bool:
        """Whether a gradient may be asked for.

        What is put on or in place of a module may bring in tensors that need gradients and are no parameters here.
        """
        if transformed() or (autocasts(like) and not runs_triton(like)):
            return True
        return torch.is_grad_enabled() and (
            (vectors is not None and vectors.requires_grad)
            or any(x.requires_grad for x in self.parameters())
            or not all_untouched(self, KINDS)
        )


# The options of a call.
CALL_OPTIONS = (*OPTIONS, "dropout_seeds", "first_token")
NO_WEIGHTS = "some on the meta device, without values: load_state_dict(weights, assign=True) fills them"
# What a model is made of.
KINDS: tuple[type[Module], ...] = (
    *(ErnieMModel, Embeddings, Encoder, ModuleList, EncoderLayer, Attention, SelfAttention, Pooler),
    *(Linear, LayerNorm, Embedding),
)

"""The encoder's parts: embeddings, post-norm Transformer layers, the pooler.

    x = LayerNorm(x + out_proj(attention(x)))           norm1
    x = LayerNorm(x + linear2(activation(linear1(x))))  norm2

There are two paths. The fast one fuses: product, add + LayerNorm, product, bias + GELU, product, add + LayerNorm, where
each bias is added in the step after its product. It reads the weights of modules that are exactly as this package built
them (`runtime/modules.py`); any other module is called, and its neighbours are not fused with it. Its operations have
gradients of their own. The plain path, without Triton and in float64, calls torch's own operations throughout. The
layout decides which path is taken.

Under autocast, of a model in float32, both take the same dtypes: products and what lies between two of them (queries,
keys, values, attention, GELU) are in half precision; embeddings, sums, normalisations and their statistics, and so what
a layer takes and returns, are float32. A parameter is read and gets its gradient in its own dtype; its copy in half
precision is the product's alone, so the fused operations add biases unrounded.

Modules are named as in Hugging Face's files.

Twin: reference/encoder.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Linear, Module, ModuleList
from torch.utils.checkpoint import checkpoint

from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.embedding import POSITION_OFFSET

from .activations import EXACT_GELU, activate
from .dropped_layer_norm import dropped_layer_norm_unchecked, fuses_dropout
from .dropping import ACTIVATION, ATTENTION, EMBEDDINGS, OUTPUT, drop
from .embedding import clamped, embed_unchecked
from .gelu import bias_gelu_unchecked
from .layer_norm import add_layer_norm_unchecked, plain_layer_norm
from .layouts import FirstTokens, Layout, Packed, first_tokens, of_layer
from .runtime.derivative import without_row
from .runtime.dispatch import autocasts
from .runtime.dtypes import widen
from .runtime.modules import all_untouched, untouched
from .self_attention import Attention, SelfAttention
from .trace import record

# Where the dropout before each normalisation has its seed.
PLACES = {"norm1": ATTENTION, "norm2": OUTPUT}


class Embeddings(Module):
    """Word and position tables, and the normalisation of their sum."""

    def __init__(self, config: ErnieMConfig, name: str, device: Any, dtype: Any) -> None:
        super().__init__()
        E, factory = config.hidden_size, {"device": device, "dtype": dtype}
        # As in transformers, the padding token's row gets no gradient in either table.
        pad = config.pad_token_id
        self.word_embeddings = Embedding(config.vocab_size, E, padding_idx=pad, **factory)
        positions = config.max_position_embeddings
        self.position_embeddings = Embedding(positions, E, padding_idx=pad if pad < positions else None, **factory)
        self.layer_norm = LayerNorm(E, config.layer_norm_eps, **factory)
        self.name, self.p = name, config.hidden_dropout_prob

    def forward(
        self, input_ids: Tensor | None, vectors: Tensor | None, position_ids: Tensor, layout: Layout
    ) -> Tensor:  # (...,) or (..., E), (...,) -> (..., E)
        """Embed ids, or word vectors in their place, at positions; then apply dropout."""
        word, table, norm = self.word_embeddings, self.position_embeddings, self.layer_norm
        own = untouched(word, Embedding) and untouched(table, Embedding) and untouched(norm, LayerNorm, word.weight)
        # `torch.jit.save` knows no function of ours such as `without_row`, but torch's embedding.
        if input_ids is not None and own and not layout.plain and not torch.jit.is_tracing():
            words, places = (without_row(x.weight, x.padding_idx) for x in (word, table))
            x = embed_unchecked(input_ids, position_ids, words, places, norm.weight, norm.bias, norm.eps)
        else:
            positions, outside = ids_within(position_ids, table, POSITION_OFFSET)
            if input_ids is not None:
                ids, unknown = ids_within(input_ids, word)
                vectors, outside = record(f"{self.name}.word_embeddings", word(ids), layout), outside | unknown
            assert vectors is not None
            rows = record(f"{self.name}.position_embeddings", table(positions + POSITION_OFFSET), layout)
            # The nan is a constant: no gradient passes it, so it poisons no table.
            x = normalised_sum(vectors, rows, norm).masked_fill(outside[..., None], math.nan)
        x = layout.zero_padding(record(f"{self.name}.layer_norm", x, layout))
        return drop(x, self.p if self.training else 0.0, layout.drops, EMBEDDINGS)


def ids_within(ids: Tensor, table: Module, offset: int = 0) -> tuple[Tensor, Tensor]:  # (...,) -> (...,) x 2
    """`clamped` for the rows of `table` from `offset` on; any other module than an Embedding judges ids itself."""
    if isinstance(table, Embedding):
        return clamped(ids, table.num_embeddings - offset)
    return ids, torch.zeros_like(ids, dtype=torch.bool)


def normalised_sum(x: Tensor, y: Tensor, norm: LayerNorm) -> Tensor:  # (..., E) x 2 -> (..., E)
    """`norm` of x + y in the dtype of `x`; half precision is added, and by our own LayerNorm normalised, in float32."""
    v = widen(x) + widen(y)
    if untouched(norm, LayerNorm, x):
        return plain_layer_norm(v, widen(norm.weight), widen(norm.bias), norm.eps)[0].to(x.dtype)
    # Normalisations are often kept in float32 while the rest is in half precision.
    weight = getattr(norm, "weight", None)
    normalised = norm(v.to(weight.dtype if isinstance(weight, Tensor) else x.dtype))
    assert isinstance(normalised, Tensor)
    return normalised if autocasts(x) else normalised.to(x.dtype)


class EncoderLayer(Module):
    """One Transformer layer; a pruned one has fewer heads."""

    def __init__(self, config: ErnieMConfig, i: int, name: str, device: Any, dtype: Any) -> None:
        super().__init__()
        E, intermediate, factory = config.hidden_size, config.intermediate_size, {"device": device, "dtype": dtype}
        heads = config.num_attention_heads - len(config.pruned_heads.get(i, ()))
        self.self_attn = Attention(heads, config, f"{name}.self_attn", **factory)
        self.linear1 = Linear(E, intermediate, **factory)
        self.linear2 = Linear(intermediate, E, **factory)
        self.norm1 = LayerNorm(E, config.layer_norm_eps, **factory)
        self.norm2 = LayerNorm(E, config.layer_norm_eps, **factory)
        self.name = name
        self.hidden_act = config.hidden_act
        self.p_hidden = config.hidden_dropout_prob
        self.p_activation = config.activation_dropout

    def forward(
        self, x: Tensor, layout: Layout, head_mask: Tensor | None = None, first_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:  # (..., E) -> (..., E), the probabilities if the layout keeps them
        """Attention, then a feed-forward network on each token; each with a residual and a normalisation.

        With `first_only`, for a layer that `is_untouched` and a packed layout, only each sequence's first token is
        computed, and the result is (B, E); of the other tokens only the keys and values.
        """
        attention, residual = self.self_attn, x
        places: Layout | FirstTokens = layout
        if first_only:
            assert isinstance(layout, Packed)
            residual, places = first_tokens(x, layout.cu_seqlens), FirstTokens(layout)
        if untouched(attention, Attention):
            context, probs = attention.self_attn(x, layout, head_mask, first_only)
            x = self._add_norm(context, attention.out_proj, "self_attn.out_proj", residual, "norm1", places)
        else:
            attended, probs = attention(x, layout, head_mask)
            x = self._norm(attended, residual, "norm1", layout)
        return self._add_norm(self._intermediate(x, places), self.linear2, "linear2", x, "norm2", places), probs

    def is_untouched(self) -> bool:
        """Whether the layer and everything in it are exactly as this package built them."""
        return all_untouched(self, (EncoderLayer, Attention, SelfAttention, Linear, LayerNorm))

    def _intermediate(self, x: Tensor, layout: Layout | FirstTokens) -> Tensor:  # (..., E) -> (..., F)
        """The activation of the feed-forward network, after dropout."""
        linear1, exact = self.linear1, self.hidden_act in EXACT_GELU
        if exact and not layout.plain and untouched(linear1, Linear, x):
            intermediate = bias_gelu_unchecked(F.linear(x, linear1.weight), linear1.bias)
        else:
            intermediate = activate(self.hidden_act, record(f"{self.name}.linear1", linear1(x), layout))
        intermediate = record(f"{self.name}.activation", intermediate, layout)
        return drop(intermediate, self.p_activation if self.training else 0.0, layout.drops, ACTIVATION)

    def _add_norm(
        self, x: Tensor, linear: Linear, name: str, residual: Tensor, norm_name: str, layout: Layout | FirstTokens
    ) -> Tensor:  # (..., inputs), ..., (..., E) -> (..., E)
        """LayerNorm(residual + dropout(linear(x))), with padding reset to 0; fused if both modules may be."""
        norm: LayerNorm = getattr(self, norm_name)
        # Autocast brings the product's operands to one dtype itself.
        like = residual if autocasts(x) else x
        if layout.plain or not (untouched(linear, Linear, like) and untouched(norm, LayerNorm, residual)):
            return self._norm(record(f"{self.name}.{name}", linear(x), layout), residual, norm_name, layout)
        bias, affine = linear.bias, (norm.weight, norm.bias, norm.eps)
        drops = layout.drops if self.training and self.p_hidden > 0.0 else None
        if drops is None:
            x = add_layer_norm_unchecked(F.linear(x, linear.weight), bias, residual, *affine)[0]
        elif fuses_dropout(x):
            seed = drops.seeds[PLACES[norm_name]]
            y = F.linear(x, linear.weight)
            x = dropped_layer_norm_unchecked(y, bias, residual, *affine, self.p_hidden, seed, drops.tokens)
        else:
            y = self._dropped(linear(x), norm_name, layout)
            x = add_layer_norm_unchecked(y, torch.zeros_like(bias), residual, *affine)[0]
        return record(f"{self.name}.{norm_name}", layout.zero_padding(x), layout)

    def _norm(
        self, y: Tensor, residual: Tensor, norm_name: str, layout: Layout | FirstTokens
    ) -> Tensor:  # (..., E) x 2 -> (..., E)
        """LayerNorm(residual + dropout(y)), with padding reset to 0."""
        x = normalised_sum(residual, self._dropped(y, norm_name, layout), getattr(self, norm_name))
        return record(f"{self.name}.{norm_name}", layout.zero_padding(x), layout)

    def _dropped(self, y: Tensor, norm_name: str, layout: Layout | FirstTokens) -> Tensor:  # (..., E) -> (..., E)
        """Dropout before the sum that a normalisation takes."""
        return drop(y, self.p_hidden if self.training else 0.0, layout.drops, PLACES[norm_name])


class Encoder(Module):
    """The stack of layers.

    gradient_checkpointing: keyword arguments of `torch.utils.checkpoint.checkpoint`, with which layers are computed
    again in the backward pass; None: their intermediates are kept.
    """

    gradient_checkpointing: dict[str, Any] | None = None

    def __init__(self, config: ErnieMConfig, name: str, device: Any, dtype: Any) -> None:
        super().__init__()
        names = [f"{name}.layers.{i}" for i in range(config.num_hidden_layers)]
        self.layers = ModuleList(EncoderLayer(config, i, name, device, dtype) for i, name in enumerate(names))

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        head_masks: list[Tensor | None] | None = None,
        first_only: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # (..., E) -> (..., E) or (B, E), L + 1 states, L maps
        """Run the layers. With `first_only` the last one computes only first tokens (see `reduces`)."""
        states: list[Tensor] = []
        maps: list[Tensor] = []
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            if output_hidden_states:
                states.append(layout.on_rectangle(x))
            arguments = (x, of_layer(layout, i), None if head_masks is None else head_masks[i])
            if first_only and i == last:
                x, probs = layer(*arguments, True)
            elif self.gradient_checkpointing is not None and self.training and torch.is_grad_enabled():
                x, probs = checkpoint(layer, *arguments, **self.gradient_checkpointing)
            else:
                x, probs = layer(*arguments)
            if output_attentions:
                maps.append(probs)
        if output_hidden_states:
            states.append(layout.on_rectangle(x))
        return x, states, maps


def reduces(encoder: Module) -> bool:
    """Whether the last layer of `encoder` can compute first tokens alone: it is neither wrapped nor replaced."""
    last = encoder.layers[-1] if type(encoder) is Encoder and len(encoder.layers) else None
    return isinstance(last, EncoderLayer) and last.is_untouched() and untouched(encoder, Encoder)


class Pooler(Module):
    """`tanh(dense(h))` of each row's first token h; a row without tokens has h = 0, so the result is tanh(bias)."""

    def __init__(self, hidden: int, name: str, device: Any, dtype: Any) -> None:
        super().__init__()
        self.dense = Linear(hidden, hidden, device=device, dtype=dtype)
        self.name = name

    def forward(self, first: Tensor) -> Tensor:  # (B, E) -> (B, E)
        """Pool the first tokens."""
        return record(f"{self.name}.activation", record(f"{self.name}.dense", self.dense(first)).tanh())

"""The encoder's parts: embeddings, post-norm Transformer layers, the pooler.

    x = LayerNorm(x + out_proj(attention(x)))           norm1
    x = LayerNorm(x + linear2(activation(linear1(x))))  norm2

There are two paths. The fast one takes eight steps a layer: a product for queries, keys and values; attention; then
product, add + LayerNorm, product, bias + GELU, product, add + LayerNorm, where each bias is added in the step after
its product. The plain one uses torch's own operations with dropout in between, for gradients. The layout decides
which path is taken.

Modules are named as in Hugging Face's files and hold the weights. The operations read the weights directly, so hooks
on the inner modules do not fire.

Twin: reference/encoder.py.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Linear, Module

from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.embedding import POSITION_OFFSET

from .activations import EXACT_GELU, activate
from .embedding import embed_unchecked
from .first_token import first_token_attention_unchecked
from .fused_qkv import NAMES, FusedQKV
from .gelu import bias_gelu_unchecked
from .layer_norm import add_layer_norm_unchecked, plain_layer_norm
from .layouts import FirstTokens, Packed, Padded, first_tokens
from .runtime.dtypes import widen
from .trace import record, tracing

Layout = Packed | Padded


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
        norm, table = self.layer_norm, self.position_embeddings
        if input_ids is not None and not layout.plain:
            word = self.word_embeddings.weight
            x = embed_unchecked(input_ids, position_ids, word, table.weight, norm.weight, norm.bias, norm.eps)
        else:
            if input_ids is not None:
                vectors = record(f"{self.name}.word_embeddings", self.word_embeddings(input_ids), layout)
            assert vectors is not None
            rows = record(f"{self.name}.position_embeddings", table(position_ids + POSITION_OFFSET), layout)
            no_bias = vectors.new_zeros(vectors.shape[-1])
            x = add_layer_norm_unchecked(vectors, no_bias, rows, norm.weight, norm.bias, norm.eps)[0]
        x = layout.zero_padding(record(f"{self.name}.layer_norm", x, layout))
        return F.dropout(x, self.p, self.training)


class Attention(Module):
    """`self_attn`, the fused projections, and `out_proj`, which mixes the heads."""

    def __init__(self, heads: int, config: ErnieMConfig, device: Any, dtype: Any) -> None:
        super().__init__()
        E, D = config.hidden_size, config.head_dim
        self.self_attn = FusedQKV(heads, D, E, device=device, dtype=dtype)
        self.out_proj = Linear(heads * D, E, device=device, dtype=dtype)


class EncoderLayer(Module):
    """One Transformer layer; a pruned one has fewer heads."""

    def __init__(self, config: ErnieMConfig, i: int, name: str, device: Any, dtype: Any) -> None:
        super().__init__()
        E, intermediate, factory = config.hidden_size, config.intermediate_size, {"device": device, "dtype": dtype}
        self.self_attn = Attention(config.num_attention_heads - len(config.pruned_heads.get(i, ())), config, **factory)
        self.linear1 = Linear(E, intermediate, **factory)
        self.linear2 = Linear(intermediate, E, **factory)
        self.norm1 = LayerNorm(E, config.layer_norm_eps, **factory)
        self.norm2 = LayerNorm(E, config.layer_norm_eps, **factory)
        self.name = name
        self.hidden_act = config.hidden_act
        self.p_hidden, self.p_attention = config.hidden_dropout_prob, config.attention_probs_dropout_prob
        self.p_activation = config.hidden_dropout_prob if config.act_dropout is None else config.act_dropout

    def forward(
        self, x: Tensor, layout: Layout, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:  # (..., E) -> (..., E), the probabilities if the layout keeps them
        """Attention, then a feed-forward network on each token; each with a residual and a normalisation."""
        name = f"{self.name}.self_attn.self_attn"
        qkv = self.self_attn.self_attn(x)
        self._record_projections(qkv, layout, 0)
        context, probs = layout.attend(qkv, head_mask, self.p_attention if self.training else 0.0, name)
        return self._after_attention(context, x, layout), probs

    def first_tokens(self, x: Tensor, layout: Packed, head_mask: Tensor | None = None) -> Tensor:  # (T, E) -> (B, E)
        """The same for each sequence's first token only; for the others, only keys and values are computed."""
        first = FirstTokens(layout)
        residual = first_tokens(x, layout.cu_seqlens)
        kv, q = self.self_attn.self_attn(x, 1, 3), self.self_attn.self_attn(residual, 0, 1)
        self._record_projections(kv, layout, 1)
        self._record_projections(q, first, 0)
        context = first_token_attention_unchecked(q.squeeze(-3), kv, layout.cu_seqlens)
        context = context if head_mask is None else context * head_mask[:, None]
        return self._after_attention(context, residual, first)

    def _record_projections(self, projected: Tensor, places: Layout | FirstTokens, first: int) -> None:
        if tracing():
            for i, x in enumerate(projected.unbind(-3), start=first):
                record(f"{self.name}.self_attn.self_attn.{NAMES[i]}", x.flatten(-2), places)

    def _after_attention(
        self, context: Tensor, residual: Tensor, layout: Layout | FirstTokens
    ) -> Tensor:  # (..., H, D), (..., E) -> (..., E)
        """The rest of the layer, which works on each token independently."""
        context = record(f"{self.name}.self_attn.self_attn.context", context.flatten(-2), layout)
        x = self._add_norm(context, self.self_attn.out_proj, "self_attn.out_proj", residual, "norm1", layout)
        linear1, exact = self.linear1, self.hidden_act in EXACT_GELU
        if exact and not layout.plain:
            intermediate = bias_gelu_unchecked(F.linear(x, linear1.weight), linear1.bias)
        else:
            y = F.linear(x, linear1.weight, linear1.bias)
            intermediate = activate(self.hidden_act, record(f"{self.name}.linear1", y, layout))
        intermediate = record(f"{self.name}.activation", intermediate, layout)
        intermediate = F.dropout(intermediate, self.p_activation, self.training)
        return self._add_norm(intermediate, self.linear2, "linear2", x, "norm2", layout)

    def _add_norm(
        self, x: Tensor, linear: Linear, name: str, residual: Tensor, norm_name: str, layout: Layout | FirstTokens
    ) -> Tensor:  # (..., inputs), ..., (..., E) -> (..., E)
        """LayerNorm(residual + dropout(linear(x))), with padding reset to 0."""
        norm: LayerNorm = getattr(self, norm_name)
        if layout.plain:
            y = record(f"{self.name}.{name}", F.linear(x, linear.weight, linear.bias), layout)
            v = widen(residual) + widen(F.dropout(y, self.p_hidden, self.training))
            x = plain_layer_norm(v, widen(norm.weight), widen(norm.bias), norm.eps)[0].to(residual.dtype)
        else:
            y = F.linear(x, linear.weight)
            x = add_layer_norm_unchecked(y, linear.bias, residual, norm.weight, norm.bias, norm.eps)[0]
        return record(f"{self.name}.{norm_name}", layout.zero_padding(x), layout)


class Pooler(Module):
    """`tanh(dense(h))` of each row's first token h; a row without tokens has h = 0, so the result is tanh(bias)."""

    def __init__(self, hidden: int, name: str, device: Any, dtype: Any) -> None:
        super().__init__()
        self.dense = Linear(hidden, hidden, device=device, dtype=dtype)
        self.name = name

    def forward(self, first: Tensor) -> Tensor:  # (B, E) -> (B, E)
        """Pool the first tokens."""
        dense = record(f"{self.name}.dense", F.linear(first, self.dense.weight, self.dense.bias))
        return record(f"{self.name}.activation", dense.tanh())

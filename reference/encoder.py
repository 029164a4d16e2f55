"""The encoder: a stack of post-norm Transformer layers.

    x = LayerNorm(x + out_proj(attention(x)))         norm1
    x = LayerNorm(x + linear2(activation(linear1(x))))  norm2

"Post-norm": the sum is normalised after the residual has been added, as in the original Transformer. Only attention
reads more than one token; a `Layout` tells it how the tokens are arranged. Everything else works on the last axis.

Source: transformers 4.40.2, `ErnieMEncoderLayer`, `ErnieMAttention`; dropout in the same places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .activations import activation
from .array import Array
from .attention import attention, attention_by_sequence
from .config import ErnieMConfig
from .dropout import dropout
from .layer_norm import layer_norm
from .linear import linear
from .parameters import EncoderLayer
from .trace import Tokens, record, scope

# Dropout of attention probabilities, where the second argument is True (None: everywhere).
Drop = Callable[["Array", "Array | None"], "Array"]


class Layout(Protocol):
    """How tokens are arranged in an array: `Padded` (B, S, ...) or `Packed` (T, ...)."""

    @property
    def valid(self) -> Array | None:
        """(B, S), True at real tokens; None if the array holds no padding."""

    def attend(
        self, q: Array, k: Array, v: Array, head_mask: Array | None, drop: Drop
    ) -> tuple[Array, Array | None]:  # (..., H, D) x 3 -> (..., H, D), the probabilities if they are kept
        """Attention in this layout."""


@dataclass(frozen=True)
class Padded:
    """A (B, S) rectangle. `mask` broadcasts to (B, H, S, S), boolean or added to the scores; None: no mask."""

    valid: Array | None  # (B, S)
    mask: Array | None

    def attend(
        self, q: Array, k: Array, v: Array, head_mask: Array | None, drop: Drop
    ) -> tuple[Array, Array | None]:  # (B, S, H, D) x 3 -> (B, S, H, D), (B, H, S, S)
        """Attention on the rectangle, with the mask."""
        pairs = None if self.valid is None else self.valid[:, None, :, None] & self.valid[:, None, None, :]
        q, k, v = q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)  # (B, H, S, D)
        context, probs = attention(q, k, v, self.mask, head_mask, lambda x: drop(x, pairs))
        return context.swapaxes(1, 2), probs


@dataclass(frozen=True)
class Packed:
    """T real tokens; sequence b is rows cu_seqlens[b] to cu_seqlens[b+1].

    `tokens` holds their original positions, for traces and to pad them again; None for a group of sequences.
    """

    tokens: Tokens | None
    cu_seqlens: Array  # (B + 1,)
    valid: None = None

    def attend(
        self, q: Array, k: Array, v: Array, head_mask: Array | None, drop: Drop
    ) -> tuple[Array, None]:  # (T, H, D) x 3 -> (T, H, D)
        """Attention within each sequence."""
        return attention_by_sequence(q, k, v, self.cu_seqlens, head_mask, lambda x: drop(x, None)), None


def zero_padding(x: Array, valid: Array | None) -> Array:  # (B, S, E), (B, S) -> (B, S, E)
    """Set padded positions to 0, even if they hold nan. Without padding, return `x`."""
    return x if valid is None else np.where(valid[..., None], x, 0.0).astype(x.dtype, copy=False)


def self_attention(
    x: Array,
    p: EncoderLayer,
    layout: Layout,
    config: ErnieMConfig,
    head_mask: Array | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Array, Array | None]:  # (..., E) -> (..., E), the probabilities if the layout keeps them
    """Project to queries, keys and values, attend, and mix the heads. A pruned layer has fewer heads."""
    D = config.hidden_size // config.num_attention_heads

    def heads(name: str) -> Array:  # (..., E) -> (..., H, D)
        projected = record(name, linear(x, getattr(p, name)))
        return projected.reshape(*x.shape[:-1], projected.shape[-1] // D, D)

    def drop(probs: Array, where: Array | None) -> Array:
        return dropout(probs, config.attention_probs_dropout_prob, rng, where)

    with scope("self_attn"):
        context, probs = layout.attend(heads("q_proj"), heads("k_proj"), heads("v_proj"), head_mask, drop)
        context = record("context", context.reshape(*x.shape[:-1], p.out_proj.weight.shape[1]))
    return record("out_proj", linear(context, p.out_proj)), probs


def encoder_layer(
    x: Array,
    p: EncoderLayer,
    layout: Layout,
    config: ErnieMConfig,
    head_mask: Array | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Array, Array | None]:  # (..., E) -> (..., E), the probabilities if the layout keeps them
    """One layer: attention, then a feed-forward network on each token, each with a residual and a LayerNorm."""
    eps, valid = config.layer_norm_eps, layout.valid
    p_hidden = config.hidden_dropout_prob

    with scope("self_attn"):
        attended, probs = self_attention(x, p, layout, config, head_mask, rng)
    x = layer_norm(x + dropout(attended, p_hidden, rng, valid), p.norm1.weight, p.norm1.bias, eps)
    x = record("norm1", zero_padding(x, valid))

    intermediate = record("linear1", linear(x, p.linear1))  # (..., F)
    intermediate = record("activation", activation(config.hidden_act)(intermediate))
    output = record("linear2", linear(dropout(intermediate, config.activation_dropout, rng, valid), p.linear2))
    x = layer_norm(x + dropout(output, p_hidden, rng, valid), p.norm2.weight, p.norm2.bias, eps)
    return record("norm2", zero_padding(x, valid)), probs

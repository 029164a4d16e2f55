"""The encoder: a stack of post-norm Transformer layers.

    x = LayerNorm(x + out_proj(attention(x)))         norm1
    x = LayerNorm(x + linear2(activation(linear1(x))))  norm2

"Post-norm": the sum is normalised after the residual has been added, as in the original Transformer. Only attention
reads more than one token; a `Layout` tells it how the tokens are arranged. Everything else works on the last axis.

The backward pass, `encoder_layer_vjp`, computes the layer again from its input and then goes through the same lines
from the bottom to the top. A residual splits the cotangent: the sum's goes to both of its terms, and where x was read
twice, its two cotangents are added.

Source: transformers 4.40.2, `ErnieMEncoderLayer`, `ErnieMAttention`; dropout in the same places.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .activations import activation
from .array import Array
from .config import ErnieMConfig
from .dropout import dropout
from .layer_norm import layer_norm, layer_norm_vjp
from .layouts import Layout, zero_padding
from .linear import linear, linear_vjp
from .parameters import EncoderLayer, LayerNorm, Linear
from .slopes import activation_vjp
from .trace import recomputed, record, record_gradient, scope

# The seeds of a layer's four dropouts, or None without dropout.
NO_SEEDS = (None, None, None, None)


class AttentionSteps(NamedTuple):
    """The values of self-attention that its backward pass needs."""

    q: Array  # (..., H, D)
    k: Array
    v: Array
    context: Array  # (..., H D)
    output: Array  # (..., E)
    probs: Array | None


class LayerSteps(NamedTuple):
    """The values of a layer that its backward pass needs, in the order of computation."""

    attention: AttentionSteps
    sum1: Array  # (..., E)
    norm1: Array  # (..., E)
    linear1: Array  # (..., F)
    dropped: Array  # (..., F), the activation after dropout
    sum2: Array  # (..., E)
    norm2: Array  # (..., E)


def self_attention(
    x: Array,
    p: EncoderLayer,
    layout: Layout,
    config: ErnieMConfig,
    head_mask: Array | None = None,
    seed: Any = None,
) -> AttentionSteps:  # (..., E)
    """Project to queries, keys and values, attend, and mix the heads. A pruned layer has fewer heads."""
    D = config.hidden_size // config.num_attention_heads

    def heads(name: str) -> Array:  # (..., E) -> (..., H, D)
        projected = record(name, linear(x, getattr(p, name)))
        return projected.reshape(*x.shape[:-1], projected.shape[-1] // D, D)

    with scope("self_attn"):
        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        context, probs = layout.attend(q, k, v, head_mask, config.attention_probs_dropout_prob, seed)
        context = record("context", context.reshape(*x.shape[:-1], p.out_proj.weight.shape[1]))
    return AttentionSteps(q, k, v, context, record("out_proj", linear(context, p.out_proj)), probs)


def self_attention_vjp(
    dy: Array,
    x: Array,
    steps: AttentionSteps,
    p: EncoderLayer,
    layout: Layout,
    config: ErnieMConfig,
    head_mask: Array | None = None,
    seed: Any = None,
) -> tuple[Array, dict[str, Linear]]:  # (..., E) x 2 -> (..., E), the gradients of the four projections
    """The gradients of x, which three projections read, and of the projections."""
    q, k, v = steps[:3]
    gradients: dict[str, Linear] = {}
    d_context, gradients["out_proj"] = linear_vjp(record_gradient("out_proj", dy), steps.context, p.out_proj)
    with scope("self_attn"):
        d_context = record_gradient("context", d_context).reshape(q.shape)
        d_heads = layout.attend_vjp(d_context, q, k, v, head_mask, config.attention_probs_dropout_prob, seed)
        dx: Array = np.zeros_like(x)
        for name, d in zip(("q_proj", "k_proj", "v_proj"), d_heads, strict=True):
            d = record_gradient(name, d.reshape(steps.context.shape))
            d_input, gradients[name] = linear_vjp(d, x, getattr(p, name))
            dx += d_input
    return dx, gradients


def encoder_layer(
    x: Array,
    p: EncoderLayer,
    layout: Layout,
    config: ErnieMConfig,
    head_mask: Array | None = None,
    seeds: Any = None,
) -> tuple[Array, Array | None]:  # (..., E) -> (..., E), the probabilities if the layout keeps them
    """One layer: attention, then a feed-forward network on each token, each with a residual and a LayerNorm.

    `seeds` are those of its four dropouts: attention probabilities, attention, activation, output; None: no dropout.
    """
    steps = layer_steps(x, p, layout, config, head_mask, seeds)
    return steps.norm2, steps.attention.probs


def layer_steps(
    x: Array,
    p: EncoderLayer,
    layout: Layout,
    config: ErnieMConfig,
    head_mask: Array | None = None,
    seeds: Any = None,
) -> LayerSteps:
    """`encoder_layer`, with the values in between."""
    eps, valid, index = config.layer_norm_eps, layout.valid, layout.index
    p_hidden = config.hidden_dropout_prob
    seeds = NO_SEEDS if seeds is None else seeds

    with scope("self_attn"):
        attention = self_attention(x, p, layout, config, head_mask, seeds[0])
    sum1 = x + dropout(attention.output, p_hidden, seeds[1], index)
    norm1 = record("norm1", zero_padding(layer_norm(sum1, p.norm1.weight, p.norm1.bias, eps), valid))

    linear1 = record("linear1", linear(norm1, p.linear1))  # (..., F)
    active = record("activation", activation(config.hidden_act)(linear1))
    dropped = dropout(active, config.activation_dropout, seeds[2], index)
    output = record("linear2", linear(dropped, p.linear2))
    sum2 = norm1 + dropout(output, p_hidden, seeds[3], index)
    norm2 = record("norm2", zero_padding(layer_norm(sum2, p.norm2.weight, p.norm2.bias, eps), valid))
    return LayerSteps(attention, sum1, norm1, linear1, dropped, sum2, norm2)


def encoder_layer_vjp(
    dy: Array,
    x: Array,
    p: EncoderLayer,
    layout: Layout,
    config: ErnieMConfig,
    head_mask: Array | None = None,
    seeds: Any = None,
) -> tuple[Array, EncoderLayer]:  # (..., E) x 2 -> (..., E), the gradients of the layer's parameters
    """The gradients of x and of the parameters; the same `seeds` drop what the forward pass dropped."""
    eps, valid, index = config.layer_norm_eps, layout.valid, layout.index
    p_hidden = config.hidden_dropout_prob
    with recomputed():
        steps = layer_steps(x, p, layout, config, head_mask, seeds)
    seeds = NO_SEEDS if seeds is None else seeds

    dy = zero_padding(record_gradient("norm2", dy), valid)
    d_sum2, *d_norm2 = layer_norm_vjp(dy, steps.sum2, p.norm2.weight, eps)
    d_output = record_gradient("linear2", dropout(d_sum2, p_hidden, seeds[3], index))
    d_dropped, d_linear2 = linear_vjp(d_output, steps.dropped, p.linear2)
    d_active = record_gradient("activation", dropout(d_dropped, config.activation_dropout, seeds[2], index))
    d_intermediate = record_gradient("linear1", activation_vjp(config.hidden_act)(d_active, steps.linear1))
    d_norm1_output, d_linear1 = linear_vjp(d_intermediate, steps.norm1, p.linear1)

    dy = zero_padding(record_gradient("norm1", d_norm1_output + d_sum2), valid)
    d_sum1, *d_norm1 = layer_norm_vjp(dy, steps.sum1, p.norm1.weight, eps)
    d_attention = dropout(d_sum1, p_hidden, seeds[1], index)
    with scope("self_attn"):
        dx, projections = self_attention_vjp(d_attention, x, steps.attention, p, layout, config, head_mask, seeds[0])
    return dx + d_sum1, EncoderLayer(
        **projections,
        norm1=LayerNorm(*d_norm1),
        linear1=d_linear1,
        linear2=d_linear2,
        norm2=LayerNorm(*d_norm2),
    )

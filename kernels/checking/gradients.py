"""The rows of the registry (`operations`) for gradients.

Each takes the cotangent first, then the forward's inputs. Dropout's gradient is dropout: its kernel is the forward's.
"""

from __future__ import annotations

from typing import Any

from ernie_m.reference.array import Array

from .. import (
    attention_groups_vjp,
    attention_vjp,
    dropout,
    dropped_layer_norm,
    dropped_layer_norm_backward,
    embedding,
    first_token,
    gelu,
    layer_norm,
    linear_cross_entropy,
)
from . import attention_gradient_bounds, drawing, gradient_bounds, loss_gradient_bounds, loss_inputs
from .drawing import EPSILONS, FIRST_LENGTHS, GROUPS, LENGTHS, drawn_rows, with_cotangent
from .letters import Made, drawn
from .operation import Operation


def token_indices(rng: Any, N: int) -> Array:  # -> (N,)
    """Indices of tokens in a large batch, in no order; a later process's tokens do not begin at 0."""
    return rng.integers(0, 2**31, N)


# What dropout takes besides numbers.
BITS: dict[str, Any] = {"p": (0.1, 0.5, 0.9), "seed": (5, 2**64 - 59), "tokens": Made("N", token_indices)}
DROPPED_LAYER_NORM = drawn(dy="N E", x="N E", bias="E", residual="N E", gamma="E", eps=EPSILONS, **BITS)

GRADIENTS: dict[str, Operation] = {
    "bias_gelu_vjp": Operation(
        call="f(dy, x, bias)",
        expected=gradient_bounds.bias_gelu_vjp,
        results=("dx", "dbias"),
        draw=drawn_rows(dy=2, x=2, bias=1),
        fixed=lambda normal: {"dy": normal(16, 4096), "x": 1.5 * normal(16, 4096), "bias": normal(4096)},
        kernel=gelu.bias_gelu_vjp,
        variants=gelu.variants_backward,
    ),
    "add_layer_norm_vjp": Operation(
        call="f(dy, x, bias, residual, gamma, eps)",
        expected=gradient_bounds.add_layer_norm_vjp,
        results=("dx", "dbias", "dresidual", "dgamma", "dbeta"),
        draw=drawn_rows(dy=2, x=2, bias=1, residual=2, gamma=1, eps=0),
        fixed=lambda normal: drawn_rows(dy=2, x=2, bias=1, residual=2, gamma=1, eps=0).at(normal, 16, 4096),
        kernel=layer_norm.add_layer_norm_vjp,
        variants=layer_norm.variants_backward,
        examples=12,
    ),
    "dropped_layer_norm_vjp": Operation(
        call="f(dy, x, bias, residual, gamma, eps, p, seed, tokens)",
        expected=gradient_bounds.dropped_layer_norm_vjp,
        results=("dx", "dbias", "dresidual", "dgamma", "dbeta"),
        draw=DROPPED_LAYER_NORM,
        fixed=lambda normal: DROPPED_LAYER_NORM.sized(N=16, E=4096).fixed(normal),
        kernel=dropped_layer_norm.dropped_layer_norm_vjp,
        variants=dropped_layer_norm_backward.variants_backward,
        examples=12,
    ),
    "embed_vjp": Operation(
        call="f(dy, input_ids, position_ids, word, position, gamma, eps)",
        expected=gradient_bounds.embed_vjp,
        results=("dword", "dposition", "dgamma", "dbeta"),
        draw=drawing.draw_embedding_vjp,
        fixed=drawing.fixed_embedding_vjp,
        kernel=embedding.embed_vjp,
        variants=embedding.variants_backward,
        examples=12,
    ),
    "packed_attention_vjp": Operation(
        call="f(d_context, qkv, cu_seqlens)",
        expected=attention_gradient_bounds.packed_attention_vjp,
        draw=with_cotangent(drawing.draw_attention),
        fixed=lambda normal: {"d_context": normal(300, 1, 64), "qkv": normal(300, 3, 1, 64), "cu_seqlens": LENGTHS},
        kernel=attention_vjp.packed_attention_vjp,
        variants=attention_vjp.variants_backward,
        examples=12,
    ),
    "group_attention_vjp": Operation(
        call="f(d_context, qkv, groups)",
        expected=attention_gradient_bounds.group_attention_vjp,
        draw=with_cotangent(drawing.draw_groups),
        fixed=lambda normal: {"d_context": normal(640, 1, 64), "qkv": normal(640, 3, 1, 64), "groups": GROUPS},
        kernel=attention_groups_vjp.group_attention_vjp,
        variants=attention_groups_vjp.variants_backward,
        examples=12,
    ),
    "first_token_attention_vjp": Operation(
        call="f(d_context, q, kv, cu_seqlens)",
        expected=attention_gradient_bounds.first_token_attention_vjp,
        results=("dq", "dkv"),
        draw=with_cotangent(drawing.draw_first_token),
        fixed=lambda normal: {
            "d_context": normal(4, 8, 128),
            "q": normal(4, 8, 128),
            "kv": normal(1626, 2, 8, 128),
            "cu_seqlens": FIRST_LENGTHS,
        },
        kernel=first_token.first_token_attention_vjp,
        variants=first_token.variants_backward,
        examples=12,
    ),
    "dropout_vjp": Operation(
        call="f(dy, p, seed, tokens)",
        expected=gradient_bounds.dropout_vjp,
        draw=drawn(dy="N E", **BITS),
        kernel=dropout.dropout_vjp,
        variants=dropout.variants,
    ),
    "linear_cross_entropy_vjp": Operation(
        call="f(d_loss, hidden, weight, bias, labels)",
        expected=loss_gradient_bounds.linear_cross_entropy_vjp,
        results=("d_hidden", "d_weight", "d_bias"),
        draw=loss_inputs.draw_loss_vjp,
        fixed=lambda normal: loss_inputs.loss_vjp(normal, 192, 4200, 64, spread=2.0, d_loss=1024.0),
        kernel=linear_cross_entropy.linear_cross_entropy_vjp,
        variants=linear_cross_entropy.variants,
        examples=12,
    ),
}

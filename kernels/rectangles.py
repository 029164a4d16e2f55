"""Packed attention in plain torch, differentiable: the sequences of one length together, or all in one rectangle.

On a CPU, where lengths can be read without waiting, sequences of equal length are computed together, without padding or
a mask, by torch's fused attention, which never writes the scores to memory. Only dropout and derivatives of derivatives
need the scores. On a GPU, and in a graph that is being compiled or traced, the lengths are unknown on the host: there
is one rectangle of B x max_seqlen.

A token that belongs to no sequence, or lies past `max_seqlen` in its own, gets nan.
Twin: reference/attention.py, `packed_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from .dropping import ProbabilityDrops
from .padding import sequence_of_tokens
from .runtime.dispatch import eager_on_cpu, wants_derivative
from .runtime.dtypes import wide_dtype, widen
from .trace import record

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Grouping:
    """Packed tokens in the order of their sequences' lengths.

    order: (T,), the token at each place; None: they are in this order. inverse: the place of each token.
    shapes: in this order, how many sequences there are of a length, and that length.
    """

    order: Tensor | None
    inverse: Tensor | None
    shapes: tuple[tuple[int, int], ...]


def grouping(cu_seqlens: Tensor, T: int, max_seqlen: int) -> Grouping | None:
    """Group the sequences by length; reads `cu_seqlens`. None if a token belongs to none, to two, or past the end."""
    bounds = cu_seqlens.numpy().astype(np.int64)
    lengths = np.diff(bounds)
    if bounds[0] != 0 or bounds[-1] != T or lengths.min() < 0 or lengths.max() > max_seqlen:
        return None
    present = np.argsort(lengths, kind="stable")[(lengths == 0).sum() :]
    starts, lengths = bounds[present], lengths[present]
    order = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    shapes = tuple((int(count), int(n)) for n, count in zip(*np.unique(lengths, return_counts=True), strict=True))
    if np.array_equal(order, np.arange(T)):
        return Grouping(None, None, shapes)
    return Grouping(torch.from_numpy(order), torch.from_numpy(np.argsort(order)), shapes)


class _Permuted(Function):
    """x[order], where `order` is a permutation: its gradient is gathered, which is much faster than adding rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return permuted(gradient, inverse, order), None, None


def permuted(x: Tensor, order: Tensor | None, inverse: Tensor | None) -> Tensor:  # (T, ...), (T,) x 2 -> (T, ...)
    """x[order], for a permutation and its inverse; None: `x`."""
    if order is None:
        return x
    result: Tensor = _Permuted.apply(x, order, inverse)
    return result


class _Attention(Function):
    """Fused attention and its log-sum-exps. Torch's own backward has no derivative, and none for log-sum-exps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        context, lse = _fused(q, k, v)
        ctx.save_for_backward(q, k, v, context, lse)
        ctx.set_materialize_grads(False)
        return context, lse

    @staticmethod
    def backward(ctx: Any, d_context: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, context, lse = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()
        if d_lse is None and not create_graph:
            return tuple(_fused_backward(d_context, q, k, v, context, lse, 0.0, False))
        with torch.enable_grad():
            q, k, v = (x if x.requires_grad else x.detach().requires_grad_() for x in (q, k, v))
            results = zip(scored_attention(q, k, v, with_lse=True), (d_context, d_lse), strict=True)
            outputs, gradients = zip(*[(y, dy) for y, dy in results if dy is not None], strict=True)
            return torch.autograd.grad(outputs, (q, k, v), gradients, create_graph=create_graph, allow_unused=True)


def scored_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    drop: Callable[[Tensor], Tensor] | None = None,
    missing: Tensor | None = None,
    with_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:  # (B, H, S, D) x 3, (B, S) -> (B, H, S, D), (B, H, S)
    """Attention that writes its scores, and the log-sum-exps if requested; `missing`: keys to which nobody attends.

    Half precision works as in the kernel: scores and softmax in float32, probabilities rounded for the second product.
    """
    wide = wide_dtype(q)
    scores = (q.to(wide) / math.sqrt(q.shape[-1])) @ k.to(wide).mT
    if missing is not None:
        # The lowest finite number of the scores' dtype, which autocast may choose. Not -inf: an empty sequence's result
        # is unused, but its gradients would be nan.
        scores = scores.masked_fill(missing[:, None, None, :], torch.finfo(scores.dtype).min)
    probs = scores.softmax(dim=-1).to(v.dtype)
    context = (probs if drop is None else drop(probs)) @ v
    return context.to(v.dtype), scores.logsumexp(dim=-1) if with_lse else None


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:  # (B, H, S, D) x 3 -> (B, H, S, D), (B, H, S)
    """Attention and its log-sum-exps without writing the scores, on a CPU."""
    context, lse = (_Attention.apply if wants_derivative(q, k, v) else _fused)(q, k, v)
    return context, lse


def attention_by_length(
    qkv: tuple[Tensor, ...], groups: Grouping, drops: ProbabilityDrops | None = None, with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:  # (T, H, D) x 3 -> (T, H, D), (H, T)
    """Attention within each sequence; `drops`: which probabilities to drop."""
    T, H, D = qkv[0].shape
    if not groups.shapes:
        return qkv[2].clone(), qkv[0].new_zeros(H, T, dtype=torch.float32)
    sizes = [count * n for count, n in groups.shapes]
    parts = [permuted(x, groups.order, groups.inverse).split(sizes) for x in qkv]
    own = None if drops is None else permuted(drops.tokens, groups.order, groups.inverse).split(sizes)
    contexts, sums = [], []
    for i, (count, n) in enumerate(groups.shapes):
        q, k, v = (part[i].view(count, n, H, D).transpose(1, 2) for part in parts)
        drop = None if own is None or drops is None else drops.of(own[i].view(count, n))
        context, lse = fused_attention(q, k, v) if drop is None else scored_attention(q, k, v, drop, with_lse=with_lse)
        contexts.append(context.transpose(1, 2).reshape(count * n, H, D))
        if lse is not None:
            sums.append(lse.transpose(0, 1).reshape(H, count * n))
    context = permuted(contexts[0] if len(contexts) == 1 else torch.cat(contexts), groups.inverse, groups.order)
    if not with_lse:
        return context, None
    lse = torch.cat(sums, dim=1)
    return context, (lse if groups.inverse is None else lse[:, groups.inverse]).to(torch.float32)


def plain_packed_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, drops: ProbabilityDrops | None = None
) -> tuple[Tensor, Tensor]:  # (T, 3, H, D), (B + 1,) -> (T, H, D), (H, T)
    """`packed_attention` and its log-sum-exps in plain torch; `drops`: which probabilities to drop."""
    T, _, H, _ = qkv.shape
    if cu_seqlens.shape[0] < 2:
        return qkv[:, 0] * math.nan, qkv.new_full((H, T), math.nan, dtype=torch.float32)
    groups = grouping(cu_seqlens, T, max_seqlen) if eager_on_cpu(cu_seqlens) else None
    if groups is not None:
        context, lse = attention_by_length(qkv.unbind(1), groups, drops, with_lse=True)
        assert lse is not None
        return context, lse
    bounds = cu_seqlens.clamp(0, T)
    starts, lengths = bounds[:-1], bounds.diff().clamp(0, max_seqlen)
    S = max(max_seqlen, 1)
    own = sequence_of_tokens(cu_seqlens, T)
    column = torch.arange(T, device=qkv.device) - starts[own]
    outside = (column < 0) | (column >= lengths[own])
    # One more row of the rectangle takes the tokens outside.
    place = (own * S + column).masked_fill(outside, lengths.shape[0] * S)
    context, lse = _in_rectangle(qkv, place, lengths, S, drops)
    return context.masked_fill(outside[:, None, None], math.nan), lse.masked_fill(outside, math.nan)


def _in_rectangle(
    qkv: Tensor, place: Tensor, lengths: Tensor, S: int, drops: ProbabilityDrops | None
) -> tuple[Tensor, Tensor]:  # (T, 3, H, D), (T,), (B,) -> (T, H, D), (H, T)
    """Attention on a (B, S) rectangle, flattened; `place`: where in it each token is, or B·S for none."""
    _, _, H, D = qkv.shape
    B = lengths.shape[0]
    rectangle = qkv.new_zeros(B * S + 1, 3, H, D).index_copy(0, place, qkv)[:-1]
    q, k, v = rectangle.view(B, S, 3, H, D).permute(2, 0, 3, 1, 4)  # (B, H, S, D)
    missing = torch.arange(S, device=qkv.device) >= lengths[:, None]  # (B, S)
    drop = None
    if drops is not None:
        drop = drops.of(place.new_zeros(B * S + 1).index_copy(0, place, drops.tokens)[:-1].view(B, S))
    context, lse = scored_attention(q, k, v, drop, missing, with_lse=True)
    assert lse is not None
    place = place.clamp(max=B * S - 1)
    at_tokens = context.transpose(1, 2).reshape(B * S, H, D)[place]
    return at_tokens, lse.transpose(0, 1).reshape(H, B * S)[:, place].to(torch.float32)


def padded_attention(
    qkv: Tensor, mask: Tensor | None, head_mask: Tensor | None, drop: Callable[[Tensor], Tensor] | None, name: str
) -> tuple[Tensor, Tensor]:  # (B, S, 3, H, D) -> (B, S, H, D), (B, H, S, S)
    """The context and its attention probabilities, in plain torch; scores and softmax in float32.

    `mask` as in `Padded`; a row that may attend to nothing is 0. `drop` is applied to the probabilities.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, S, D)
    scores = record(f"{name}.scores", (widen(q) / math.sqrt(q.shape[-1])) @ widen(k).transpose(-1, -2))
    if mask is None:
        probs = scores.softmax(dim=-1)
    elif mask.dtype == torch.bool:
        # The lowest finite number, not -inf: in a fully masked row, -inf would turn the gradient into nan.
        lowest = torch.finfo(scores.dtype).min
        probs = scores.masked_fill(~mask, lowest).softmax(dim=-1).masked_fill(~mask, 0.0)
    else:
        probs = (scores + mask).softmax(dim=-1)
    probs = probs.to(qkv.dtype)
    if drop is not None:
        probs = drop(probs)
    if head_mask is not None:
        probs = probs * head_mask[:, None, None]
    return (record(f"{name}.probs", probs) @ v).transpose(1, 2), probs

"""Packed attention in plain torch, differentiable: sequences of similar length are padded into rectangles.

A rectangle of B sequences padded to S tokens has B·S² scores in each head, however short most of them are. On a CPU,
where lengths can be read without waiting, sequences are therefore grouped: within a group the longest is at most √2
times as long as the shortest, so at most half of the scores are padding; and a group with more than one sequence has at
most `GROUP_SCORES` scores. On a GPU, and in a graph that is being compiled or traced, the lengths are unknown on the
host: there is one rectangle of B x max_seqlen.

A token that belongs to no sequence, or lies past `max_seqlen` in its own, gets nan.
Twin: reference/attention.py, `packed_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .padding import sequence_of_tokens
from .runtime.dtypes import wide_dtype

# 64 MiB in float32.
GROUP_SCORES = 2**24


def groups(lengths: Sequence[int], heads: int) -> list[list[int]]:
    """The numbers of all sequences that are not empty, longest first, in groups of similar length."""
    found: list[list[int]] = []
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
        area = lengths[found[-1][0]] ** 2 if found else 0
        if area and 2 * lengths[b] ** 2 >= area and (len(found[-1]) + 1) * heads * area <= GROUP_SCORES:
            found[-1].append(b)
        elif lengths[b]:
            found.append([b])
    return found


def plain_packed_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, p: float = 0.0
) -> tuple[Tensor, Tensor]:  # (T, 3, H, D), (B + 1,) -> (T, H, D), (H, T)
    """`packed_attention` and its log-sum-exps in plain torch; `p`: the dropout rate of the probabilities.

    Half precision works as in the kernel: scores and softmax in float32, probabilities rounded for the second product.
    """
    T = qkv.shape[0]
    bounds = cu_seqlens.clamp(0, T)
    starts, lengths = bounds[:-1], bounds.diff().clamp(0, max_seqlen)
    if not lengths.shape[0]:
        return qkv[:, 0] * math.nan, qkv.new_full((qkv.shape[2], T), math.nan, dtype=torch.float32)
    if cu_seqlens.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return _by_groups(qkv, starts, lengths, p)
    S = max(max_seqlen, 1)
    own = sequence_of_tokens(cu_seqlens, T)
    column = torch.arange(T, device=qkv.device) - starts[own]
    outside = (column < 0) | (column >= lengths[own])
    # One more row of the rectangle takes the tokens outside.
    place = (own * S + column).masked_fill(outside, lengths.shape[0] * S)
    context, lse = _attend(qkv, place, lengths, S, p)
    return context.masked_fill(outside[:, None, None], math.nan), lse.masked_fill(outside, math.nan)


def _by_groups(qkv: Tensor, starts: Tensor, lengths: Tensor, p: float) -> tuple[Tensor, Tensor]:
    T, _, H, _ = qkv.shape
    # Without any sequence, the result still belongs to the graph of `qkv`.
    tokens, contexts = [starts.new_empty(0, dtype=torch.int64)], [qkv[:0, 0]]
    sums = [qkv.new_empty(H, 0, dtype=torch.float32)]
    sizes = lengths.tolist()
    for group in groups(sizes, H):
        S = sizes[group[0]]
        columns = torch.arange(S)
        valid = columns < lengths[group, None]
        tokens.append((starts[group, None] + columns)[valid])
        context, lse = _attend(qkv[tokens[-1]], valid.flatten().nonzero().squeeze(1), lengths[group], S, p)
        contexts.append(context)
        sums.append(lse)
    places = torch.cat(tokens)
    context = qkv.new_full((T, *qkv.shape[2:]), math.nan).index_copy(0, places, torch.cat(contexts))
    lse = qkv.new_full((H, T), math.nan, dtype=torch.float32).index_copy(1, places, torch.cat(sums, dim=1))
    return context, lse


def _attend(
    qkv: Tensor, place: Tensor, lengths: Tensor, S: int, p: float
) -> tuple[Tensor, Tensor]:  # (T, 3, H, D), (T,), (B,) -> (T, H, D), (H, T)
    """Attention on a (B, S) rectangle, flattened; `place`: where in it each token is, or B·S for none."""
    _, _, H, D = qkv.shape
    B = lengths.shape[0]
    rectangle = qkv.new_zeros(B * S + 1, 3, H, D).index_copy(0, place, qkv)[:-1]
    q, k, v = rectangle.view(B, S, 3, H, D).permute(2, 0, 3, 1, 4)  # (B, H, S, D)
    wide = wide_dtype(qkv)
    scores = (q.to(wide) / math.sqrt(D)) @ k.to(wide).mT
    missing = torch.arange(S, device=qkv.device) >= lengths[:, None]  # (B, S)
    # The lowest finite number of the scores' dtype, which autocast may choose. Not -inf: an empty sequence's result is
    # unused, but its gradients would be nan.
    scores = scores.masked_fill(missing[:, None, None, :], torch.finfo(scores.dtype).min)
    context = F.dropout(scores.softmax(dim=-1).to(qkv.dtype), p) @ v
    lse = scores.logsumexp(dim=-1)  # (B, H, S)
    place = place.clamp(max=B * S - 1)
    at_tokens = context.to(qkv.dtype).transpose(1, 2).reshape(B * S, H, D)[place]
    return at_tokens, lse.transpose(0, 1).reshape(H, B * S)[:, place].to(torch.float32)

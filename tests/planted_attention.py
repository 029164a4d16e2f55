"""Attention in plain torch that is right by default; optional arguments plant the mistakes that people make."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def store(x: Tensor, like: Tensor, truncated: bool = False) -> Tensor:
    """Round float32 to the dtype of `like`; `truncated` drops the low bits (bfloat16 only)."""
    if not truncated or like.dtype != torch.bfloat16:
        return x.to(like.dtype)
    return (x.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


def in_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float = 1.0,
    drop_tail: bool = False,
    rounded_probs: bool = True,
    accumulate_low: bool = False,
    truncated: bool = False,
) -> Tensor:
    """Attention in one head, (N, D), (S, D) x 2 -> (N, D), in blocks of 64 keys."""
    S, D = k.shape
    scores = (q.float() @ k.float().T) * (scale / math.sqrt(D))
    if drop_tail and S % 64 == 1 and S > 1:
        scores[:, -1] = -torch.inf
    e = torch.exp(scores - scores.max(-1, keepdim=True).values)
    total = e.sum(-1, keepdim=True)
    e = e.to(v.dtype).float() if rounded_probs else e
    context = torch.zeros(len(q), v.shape[1], device=q.device)
    for start in range(0, S, 64):
        context = context + e[:, start : start + 64] @ v[start : start + 64].float()
        context = context.to(v.dtype).float() if accumulate_low else context
    return store(context / total, v, truncated)


def attention_head(q: Tensor, k: Tensor, v: Tensor, form: str = "right", **faults: Any) -> Tensor:
    """Attention in one head; `form` is what is wrong, `faults` are those of `in_blocks`."""
    S, D = k.shape
    one = form in ("no last key", "no first key") and S == 1
    forms: dict[str, Any] = {
        "right": lambda: in_blocks(q, k, v, **faults),
        "no scale": lambda: in_blocks(q, k, v, scale=math.sqrt(D)),
        "scale twice": lambda: in_blocks(q, k, v, scale=1 / math.sqrt(D)),
        "no last key": lambda: in_blocks(q, k[:-1], v[:-1]),
        "no first key": lambda: in_blocks(q, k[1:], v[1:]),
        "padded": lambda: in_blocks(q, *(pad(x, (0, 0, 0, -S % 16)) for x in (k, v))),
        "values as keys": lambda: in_blocks(q, v, k),
        "no maximum": lambda: unshifted(q, k, v),
        "no rescale": lambda: online(q, k, v, 32, rescaled=False),
        "online": lambda: online(q, k, v, 32),
        "no sum": lambda: unnormalised(q, k, v),
        "transposed key": lambda: in_blocks(q, k.T if S == D else k, v),
    }
    return forms["right" if one else form]()


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    """Scaled scores, float32."""
    return q.float() @ k.float().T / math.sqrt(q.shape[-1])


def unshifted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax without subtracting the maximum."""
    e = torch.exp(scores_of(q, k))
    return (e / e.sum(-1, keepdim=True) @ v.float()).to(q.dtype)


def unnormalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax without its denominator."""
    s = scores_of(q, k)
    return (torch.exp(s - s.amax(-1, keepdim=True)) @ v.float()).to(q.dtype)


def online(q: Tensor, k: Tensor, v: Tensor, block: int, rescaled: bool = True) -> Tensor:
    """Online softmax, with or without rescaling what was summed before."""
    s = scores_of(q, k)
    top = torch.full((q.shape[0], 1), -math.inf, device=q.device)
    total, found = torch.zeros_like(top), torch.zeros(q.shape, device=q.device)
    for start in range(0, k.shape[0], block):
        part = s[:, start : start + block]
        new = torch.maximum(top, part.amax(-1, keepdim=True))
        factor = torch.exp(top - new) if rescaled else torch.ones_like(top)
        e = torch.exp(part - new)
        total = total * factor + e.sum(-1, keepdim=True)
        found = found * factor + e @ v[start : start + block].float()
        top = new
    return (found / total).to(q.dtype)


def keys(layout: str, start: int, end: int, T: int) -> tuple[int, int]:
    """The keys that a sequence of these tokens attends to."""
    return {
        "all keys": (0, T),
        "next key": (start, min(end + 1, T)),
        "key before": (max(start - 1, 0), end),
        "from the start": (0, end - start),
    }.get(layout, (start, end))


def attention(qkv: Tensor, cu_seqlens: Tensor, layout: str = "right", most: int = 0, **faults: Any) -> Tensor:
    """Packed attention; `layout` is what is wrong between heads and sequences, `faults` within one.

    most: ignore keys past that many, if not 0.
    """
    H = qkv.shape[2]
    context = torch.empty_like(qkv[:, 0])
    for start, end in pairwise(cu_seqlens.tolist()):
        first, last = keys(layout, start, end, len(qkv))
        last = min(last, first + most) if most else last
        for h in range(H if start < end else 0):
            kv = {"next head": (h + 1) % H, "head 0": 0}.get(layout, h)
            q, k, v = qkv[start:end, 0, h], qkv[first:last, 1, kv], qkv[first:last, 2, kv]
            context[start:end, H - 1 - h if layout == "reversed" else h] = attention_head(q, k, v, **faults)
    return context


def first_token_attention(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, layout: str = "right", most: int = 0, **faults: Any
) -> Tensor:
    """The same with one query per sequence."""
    H = q.shape[1]
    context = torch.zeros_like(q)
    for b, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        first, last = keys(layout, start, end, len(kv))
        last = min(last, first + most) if most else last
        for h in range(H if start < end else 0):
            own = {"next head": (h + 1) % H, "head 0": 0}.get(layout, h)
            k, v = kv[first:last, 0, own], kv[first:last, 1, own]
            context[b, h] = attention_head(q[b, None, h], k, v, **faults)[0]
    return context


def group_scores(
    qkv: Tensor,
    group: list[int],
    own: str = "from first",
    keys: str = "right",
    scale: float = 1.0,
    own_scale: float = 1.0,
) -> tuple[Tensor, Tensor, slice, slice]:  # -> (H, N, S + 1), (N,)
    """The scores of one group's rows in float32, the last with themselves, who sees itself, the rows, and the keys."""
    q0, q1, first, k0, k1 = group
    start, end = {
        "of the queries": (q0, q0 + k1 - k0),
        "one more": (k0, k1 + 1),
        "all but one": (k0, max(k0, k1 - 1)),
    }.get(keys, (k0, k1))
    rows, seen, at = slice(q0, q1), slice(start, end), torch.arange(q0, q1, device=qkv.device)
    q, k, _ = (x.float().transpose(0, 1) for x in qkv.unbind(1))
    sees = {"none": at < 0, "all": at >= q0, "after first": at > first}.get(own, at >= first)
    mine = (q[:, rows] * k[:, rows]).sum(-1, keepdim=True) * own_scale
    scores = torch.cat([q[:, rows] @ k[:, seen].mT, mine], -1) * (scale / math.sqrt(qkv.shape[-1]))
    scores[..., -1].masked_fill_(~sees, -math.inf)
    return scores, sees, rows, seen


def group_attention(
    qkv: Tensor,
    groups: Tensor,
    value: str = "right",
    rounded_probs: bool = True,
    truncated: bool = False,
    heads: str = "right",
    **faults: Any,
) -> Tensor:
    """Attention between ranges; `faults` are those of `group_scores`. `value`: whether a row's own is "not summed"."""
    context = torch.zeros(qkv[:, 0].shape, device=qkv.device)
    for group in groups.tolist():
        scores, sees, rows, keys = group_scores(qkv, group, **faults)
        top = scores.amax(-1, keepdim=True)
        e = torch.exp(scores - torch.where(top == -math.inf, 0.0, top))
        total = (e[..., :-1] if value == "not summed" else e).sum(-1, keepdim=True)
        e = torch.cat([e[..., :-1].to(qkv.dtype).float() if rounded_probs else e[..., :-1], e[..., -1:]], -1)
        v = qkv[:, 2].float().transpose(0, 1)
        found = e[..., :-1] @ v[:, keys] + e[..., -1:] * v[:, rows].masked_fill(~sees[:, None], 0.0)
        context[rows] = (found / torch.where(total == 0, 1.0, total)).transpose(0, 1)
    return store(context.roll(1, 1) if heads == "next" else context, qkv, truncated)

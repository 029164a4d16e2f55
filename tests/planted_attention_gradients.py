"""Gradients of attention in plain torch that are right by default; `fault` plants the mistakes that people make.

As in `planted`, half precision is widened to float32; `rounded_probs`: P and dS are rounded for their products.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from planted_attention import group_scores
from torch import Tensor


def head_gradients(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, like: Tensor, fault: str, rounded_probs: bool
) -> tuple[Tensor, Tensor, Tensor]:  # (H, N, D) x 2, (H, S, D) x 2, float32
    """dq, dk and dv."""
    root = math.sqrt(q.shape[-1])
    dy = torch.ones_like(dy) if fault == "ones" else dy
    scores = q @ k.mT / root
    probs = scores.softmax(-1)
    d_probs = dy @ v.mT
    delta = (probs * d_probs).sum(-1, keepdim=True)
    if fault == "next head":
        delta = delta.roll(1, 0)
    d_scores = probs * (d_probs if fault == "no delta" else d_probs - delta)
    d_scores = d_scores / root if fault == "scaled twice" else d_scores
    if rounded_probs:
        probs, d_scores = (x.to(like.dtype).float() for x in (probs, d_scores))
    if fault == "last key":
        d_scores = torch.cat([d_scores[..., :-1], 0 * d_scores[..., -1:]], -1)
    if fault == "1 %":
        d_scores = 1.01 * d_scores
    dk = d_scores.mT @ (dy if fault == "of the cotangent" else q) / root
    return d_scores @ k / root, dk, (probs if fault != "values of dS" else d_scores).mT @ dy


def packed_attention_vjp(
    d_context: Tensor, qkv: Tensor, cu_seqlens: Tensor, fault: str = "right", rounded_probs: bool = True
) -> Tensor:
    """The gradient of qkv, sequence by sequence."""
    found = torch.zeros_like(qkv, dtype=torch.float32)
    for start, end in pairwise(cu_seqlens.tolist()):
        rows = (x.float().transpose(0, 1) for x in (d_context[start:end], *qkv[start:end].unbind(1)))
        parts = head_gradients(*rows, qkv, fault, rounded_probs)
        found[start:end] = torch.stack([x.transpose(0, 1) for x in parts], 1)
    return found.to(qkv.dtype)


def first_token_attention_vjp(
    d_context: Tensor, q: Tensor, kv: Tensor, cu_seqlens: Tensor, fault: str = "right", rounded_probs: bool = True
) -> tuple[Tensor, Tensor]:
    """dq and dkv, sequence by sequence."""
    dq, dkv = torch.zeros_like(q, dtype=torch.float32), torch.zeros_like(kv, dtype=torch.float32)
    for b, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        if start < end:
            k, v = (x.float().transpose(0, 1) for x in kv[start:end].unbind(1))
            first = (x[b].float()[:, None] for x in (d_context, q))
            own, *others = head_gradients(*first, k, v, q, fault, rounded_probs)
            dq[b], dkv[start:end] = own[:, 0], torch.stack([x.transpose(0, 1) for x in others], 1)
    return dq.to(q.dtype), dkv.to(kv.dtype)


def group_attention_vjp(
    d_context: Tensor, qkv: Tensor, groups: Tensor, fault: str = "right", rounded_probs: bool = True
) -> Tensor:
    """The gradient of qkv, group by group."""
    found, root = torch.zeros_like(qkv, dtype=torch.float32), math.sqrt(qkv.shape[-1])
    dq, dk, dv = (x.transpose(0, 1) for x in found.unbind(1))  # views, (H, T, D)
    q, k, v = (x.float().transpose(0, 1) for x in qkv.unbind(1))
    given = torch.ones_like(d_context) if fault == "ones" else d_context
    for group in groups.tolist():
        scores, sees, rows, keys = group_scores(qkv, group, own={"all see themselves": "all"}.get(fault, "from first"))
        nothing = ~sees[:, None] & (keys.start == keys.stop)
        probs = scores.softmax(-1).masked_fill(nothing, 0.0)
        dy = given[rows].float().transpose(0, 1)
        own_k, own_v = (x[:, rows].masked_fill(~sees[:, None], 0.0) for x in (k, v))
        d_probs = torch.cat([dy @ v[:, keys].mT, (dy * own_v).sum(-1, keepdim=True)], -1)
        delta = (probs * d_probs).sum(-1, keepdim=True)
        d_scores = probs * (d_probs if fault == "no delta" else d_probs - delta)
        d_scores = d_scores * {"1 %": 1.01, "scaled twice": 1 / root}.get(fault, 1.0)
        own, own_p = d_scores[..., -1:], probs[..., -1:]
        d_scores, probs = (
            x[..., :-1].to(qkv.dtype).float() if rounded_probs else x[..., :-1] for x in (d_scores, probs)
        )
        dq[:, rows] = (d_scores @ k[:, keys] + (fault != "dq without itself") * own * own_k) / root
        dk[:, keys] += d_scores.mT @ q[:, rows] / root
        dv[:, keys] += probs.mT @ dy
        dk[:, rows] += (fault != "dk without itself") * (own * q[:, rows]).masked_fill(~sees[:, None], 0.0) / root
        dv[:, rows] += (fault != "dv without itself") * (own_p * dy).masked_fill(~sees[:, None], 0.0)
    return found.to(qkv.dtype)


KERNELS: dict[str, Any] = {
    "packed_attention_vjp": packed_attention_vjp,
    "group_attention_vjp": group_attention_vjp,
    "first_token_attention_vjp": first_token_attention_vjp,
}
COMMON = ("ones", "no delta", "scaled twice", "last key", "1 %", "of the cotangent", "values of dS")
FAULTS: dict[str, tuple[str, ...]] = {
    "packed_attention_vjp": (*COMMON, "next head"),
    "first_token_attention_vjp": (*COMMON, "next head"),
    "group_attention_vjp": (
        *("ones", "no delta", "scaled twice", "1 %", "dq without itself", "dk without itself", "dv without itself"),
        "all see themselves",
    ),
}

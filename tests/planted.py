"""Plain torch kernels that are right by default; optional arguments plant one fault each.

Half precision is widened to float32 and rounded once at the end, as the bounds require of a kernel.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import gelu as torch_gelu


def truncate(x: Tensor, like: Tensor) -> Tensor:
    """Convert float32 to bfloat16 by dropping the low bits."""
    assert like.dtype == torch.bfloat16
    return (x.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


def store(x: Tensor, like: Tensor, truncated: bool = False) -> Tensor:
    """Round to the dtype of `like`."""
    return truncate(x, like) if truncated else x.to(like.dtype)


def wide_gelu(x: Tensor, form: str = "none") -> Tensor:
    """GELU of float32 numbers; the forms "tanh", "sigmoid" and "cubic" are other functions, "erf" has no tail."""
    if form == "sigmoid":
        return x * torch.sigmoid(1.702 * x)
    if form == "erf":
        return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))
    if form != "none":
        return torch_gelu(x, approximate=form)
    a = x.abs().clamp(max=40.0)
    return torch.copysign(x.clamp(min=0.0) - 0.5 * a * torch.erfc(a * math.sqrt(0.5)), x)


def gelu(x: Tensor, form: str = "none", truncated: bool = False) -> Tensor:
    """GELU."""
    return store(wide_gelu(x.float(), form), x, truncated)


def bias_gelu(x: Tensor, bias: Tensor, form: str = "none", read_bias: bool = True, truncated: bool = False) -> Tensor:
    """GELU of x + bias."""
    z = x.float() + bias.float() if read_bias else x.float()
    return store(wide_gelu(z, form), x, truncated)


def softmax(scores: Tensor, shift: bool = True, truncated: bool = False) -> Tensor:
    """Softmax over the last axis."""
    wide = scores.float()
    e = torch.exp(wide - wide.max(-1, keepdim=True).values) if shift else torch.exp(wide)
    return store(e / e.sum(-1, keepdim=True), scores, truncated)


def layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    unbiased: bool = False,
    eps_factor: float = 1.0,
    read_affine: bool = True,
    wrong_column: bool = False,
    truncated: bool = False,
    one_pass: bool = False,
    like: Tensor | None = None,
) -> Tensor:
    """LayerNorm in two passes."""
    wide = x.float()
    E, mean = wide.shape[-1], wide.mean(-1, keepdim=True)
    centred = wide - mean
    variance = (
        (wide * wide).mean(-1, keepdim=True) - mean * mean if one_pass else (centred * centred).mean(-1, keepdim=True)
    )
    if unbiased and E > 1:
        variance = variance * (E / (E - 1))
    y = centred * torch.rsqrt(variance + eps * eps_factor)
    if read_affine:
        y = y * gamma.float() + beta.float()
    if wrong_column:
        y[..., E // 2] *= 1.02
    return store(y, gamma if like is None else like, truncated)


def add_layer_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    read_bias: bool = True,
    rounded_sum: bool = False,
    **faults: bool | float,
) -> Tensor:
    """LayerNorm of a sum."""
    z = x.float() + residual.float()
    z = z + bias.float() if read_bias else z
    z = z.to(x.dtype).float() if rounded_sum else z
    return layer_norm(z, gamma, beta, eps, like=x, **faults)


def embedding(
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    offset: int = 2,
    **faults: bool | float,
) -> Tensor:
    """LayerNorm of the sum of two rows."""
    z = word[input_ids].float() + position[position_ids + offset].float()
    return layer_norm(z, gamma, beta, eps, like=word, **faults)


def attention_head(
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
    context = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    for start in range(0, S, 64):
        context = context + e[:, start : start + 64] @ v[start : start + 64].float()
        context = context.to(v.dtype).float() if accumulate_low else context
    return store(context / total, v, truncated)


def attention(qkv: Tensor, cu_seqlens: Tensor, read_neighbour: bool = False, **faults: bool | float) -> Tensor:
    """Attention in each head of each sequence; `read_neighbour` includes one key of the next sequence."""
    context = torch.empty_like(qkv[:, 0])
    for start, end in pairwise(cu_seqlens.tolist()):
        last = min(end + read_neighbour, qkv.shape[0])
        for h in range(qkv.shape[2] if start < end else 0):
            q, k, v = qkv[start:end, 0, h], qkv[start:last, 1, h], qkv[start:last, 2, h]
            context[start:end, h] = attention_head(q, k, v, **faults)
    return context


def first_token_attention(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, read_neighbour: bool = False, **faults: bool | float
) -> Tensor:
    """Attention of one query per sequence."""
    context = torch.zeros_like(q)
    for b, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        last = min(end + read_neighbour, kv.shape[0])
        for h in range(q.shape[1] if start < end else 0):
            context[b, h] = attention_head(q[b, None, h], kv[start:last, 0, h], kv[start:last, 1, h], **faults)[0]
    return context


KERNELS = {
    "gelu": gelu,
    "bias_gelu": bias_gelu,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "add_layer_norm": add_layer_norm,
    "embed": embedding,
    "packed_attention": attention,
    "first_token_attention": first_token_attention,
    "attention_head": attention_head,
}

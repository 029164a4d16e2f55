"""Functions with common mistakes, in torch, written as people write them; `tests/kernels/checking/test_diagnosis.py`
says what each must be called, and has some as Triton kernels.

They work in float32 and round once, so that nothing but the mistake is wrong.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from planted import attention_head
from torch import Tensor


def norm(
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    variance: str = "two passes",
    divisor: str = "root",
    affine: str = "gamma, beta",
    mean: str = "mean",
) -> Tensor:
    """LayerNorm of float32 numbers, in its ways to be wrong."""
    E = z.shape[-1]
    z, g, b = z.float(), gamma.float(), beta.float()
    centre = z.sum(-1, keepdim=True) * (1 if mean == "sum" else 0 if mean == "none" else 1 / E)
    centred = z - centre
    true = z.mean(-1, keepdim=True)
    found = {
        "two passes": lambda: (centred**2).mean(-1, keepdim=True),
        "one pass": lambda: (z**2).mean(-1, keepdim=True) - true**2,
        "unbiased": lambda: ((z - true) ** 2).sum(-1, keepdim=True) / (E - 1),
        "sum": lambda: (centred**2).sum(-1, keepdim=True),
        "about zero": lambda: (z**2).mean(-1, keepdim=True),
    }[variance]()
    y = {
        "root": lambda: centred / torch.sqrt(found + eps),
        "no root": lambda: centred / (found + eps),
        "eps outside": lambda: centred / (torch.sqrt(found) + eps),
        "no eps": lambda: centred / torch.sqrt(found),
        "times": lambda: centred * torch.sqrt(found + eps),
    }[divisor]()
    return {
        "gamma, beta": lambda: y * g + b,
        "swapped": lambda: y * b + g,
        "sum": lambda: y * (g + b),
        "beta first": lambda: (y + b) * g,
        "no beta": lambda: y * g,
        "no gamma": lambda: y + b,
        "none": lambda: y,
        "gamma twice": lambda: y * g + g,
        "beta twice": lambda: y * b + b,
        "one plus": lambda: y * (1 + g) + b,
        "minus": lambda: y * g - b,
    }[affine]()


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, rows: str = "right", **how: str) -> Tensor:
    """LayerNorm; `rows` is what is wrong with the addresses."""
    z = x.float()
    if rows == "transposed input" and z.shape[0] == z.shape[1]:
        z = z.T
    if rows == "first row":
        z = z[:1].expand(z.shape)
    y = norm(z, gamma, beta, eps, **how)
    if rows == "transposed result" and z.shape[0] == z.shape[1]:
        y = y.T
    if rows == "no last column":
        part = norm(z[:, :-1], gamma[:-1], beta[:-1], eps)
        y = torch.cat([part, torch.full_like(part[:, :1], math.nan)], 1)
    if rows == "no first column":
        part = norm(z[:, 1:], gamma[1:], beta[1:], eps)
        y = torch.cat([torch.full_like(part[:, :1], math.nan), part], 1)
    return y.to(x.dtype)


def add_layer_norm(
    x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float, read: str = "xbr", **how: str
) -> Tensor:
    """LayerNorm of a sum; `read` says which of x, bias and residual are read."""
    terms = {"x": x.float(), "b": bias.float().expand(x.shape), "r": residual.float()}
    z = sum((terms[name] for name in read), torch.zeros(x.shape))
    return norm(z, gamma, beta, eps, **how).to(x.dtype)


def embed(
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    offset: int = 2,
    positions: bool = True,
    **how: str,
) -> Tensor:
    """The embedding."""
    z = word[input_ids].float()
    z = z + position[position_ids + offset].float() if positions else z
    return norm(z, gamma, beta, eps, **how).to(word.dtype)


def gelu(x: Tensor, bias: Tensor | None = None, form: str = "erf", place: str = "inside") -> Tensor:
    """GELU of x + bias, from one of several formulas."""
    z = x.float()
    z = z + bias.float() if bias is not None and place == "inside" else z
    forms = {
        "erf": lambda: 0.5 * z * torch.erfc(-z / math.sqrt(2)),
        "tanh": lambda: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        "sigmoid": lambda: z * torch.sigmoid(1.702 * z),
        "silu": lambda: torch.nn.functional.silu(z),
        "relu": lambda: torch.relu(z),
        "no root": lambda: 0.5 * z * (1 + torch.erf(z)),
        "no half": lambda: z * torch.erfc(-z / math.sqrt(2)),
        "no tail": lambda: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))),
    }
    y = forms[form]()
    return (y + bias.float() if bias is not None and place == "after" else y).to(x.dtype)


def softmax(scores: Tensor, form: str = "right") -> Tensor:
    """Softmax in its ways to be wrong."""
    z = scores.float()
    forms = {
        "right": lambda: torch.softmax(z, -1),
        "no maximum": lambda: torch.exp(z) / torch.exp(z).sum(-1, keepdim=True),
        "columns": lambda: torch.softmax(z, 0),
        "all": lambda: torch.softmax(z.reshape(-1), 0).reshape(z.shape),
        "no sum": lambda: torch.exp(z - z.amax(-1, keepdim=True)),
        "mean": lambda: torch.softmax(z, -1) * z.shape[-1],
        "padded": lambda: torch.softmax(torch.nn.functional.pad(z, (0, -z.shape[1] % 16)), -1)[:, : z.shape[1]],
        "no last": lambda: torch.nn.functional.pad(torch.softmax(z[:, :-1], -1), (0, 1)),
        "no first": lambda: torch.nn.functional.pad(torch.softmax(z[:, 1:], -1), (1, 0)),
        "base 2": lambda: base_2(z),
        "transposed": lambda: torch.softmax(z.T, -1) if z.shape[0] == z.shape[1] else torch.softmax(z, -1),
    }
    return forms[form]().to(scores.dtype)


def base_2(z: Tensor) -> Tensor:
    """Softmax with powers of 2."""
    powers = torch.exp2(z - z.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def head(q: Tensor, k: Tensor, v: Tensor, form: str = "right") -> Tensor:
    """Attention in one head, in its ways to be wrong."""
    D = q.shape[-1]
    S = k.shape[0]
    forms: dict[str, Any] = {
        "right": lambda: attention_head(q, k, v),
        "no scale": lambda: attention_head(q, k, v, scale=math.sqrt(D)),
        "scale twice": lambda: attention_head(q, k, v, scale=1 / math.sqrt(D)),
        "no last key": lambda: attention_head(q, k[:-1], v[:-1]) if S > 1 else attention_head(q, k, v),
        "no first key": lambda: attention_head(q, k[1:], v[1:]) if S > 1 else attention_head(q, k, v),
        "padded": lambda: attention_head(q, *(torch.nn.functional.pad(x, (0, 0, 0, -S % 16)) for x in (k, v))),
        "values as keys": lambda: attention_head(q, v, k),
        "no maximum": lambda: unshifted(q, k, v),
        "no rescale": lambda: online(q, k, v, 32, rescaled=False),
        "online": lambda: online(q, k, v, 32),
        "no sum": lambda: unnormalised(q, k, v),
        "transposed key": lambda: attention_head(q, k.T, v) if S == D else attention_head(q, k, v),
    }
    return forms[form]()


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
    top = torch.full((q.shape[0], 1), -math.inf)
    total, found = torch.zeros_like(top), torch.zeros(q.shape)
    for start in range(0, k.shape[0], block):
        part = s[:, start : start + block]
        new = torch.maximum(top, part.amax(-1, keepdim=True))
        factor = torch.exp(top - new) if rescaled else torch.ones_like(top)
        e = torch.exp(part - new)
        total = total * factor + e.sum(-1, keepdim=True)
        found = found * factor + e @ v[start : start + block].float()
        top = new
    return (found / total).to(q.dtype)


def packed(qkv: Tensor, cu_seqlens: Tensor, form: str = "right", layout: str = "right") -> Tensor:
    """Packed attention; `layout` is what is wrong between heads and sequences, `form` within one."""
    H = qkv.shape[2]
    context = torch.empty_like(qkv[:, 0])
    for start, end in pairwise(cu_seqlens.tolist()):
        first, last = {
            "all keys": (0, qkv.shape[0]),
            "next key": (start, min(end + 1, qkv.shape[0])),
            "key before": (max(start - 1, 0), end),
            "from the start": (0, end - start),
        }.get(layout, (start, end))
        for h in range(H if start < end else 0):
            kv = {"next head": (h + 1) % H, "head 0": 0}.get(layout, h)
            q, k, v = qkv[start:end, 0, h], qkv[first:last, 1, kv], qkv[first:last, 2, kv]
            to = H - 1 - h if layout == "reversed" else h
            context[start:end, to] = head(q, k, v, form)
    return context


def first_token(q: Tensor, kv: Tensor, cu_seqlens: Tensor, form: str = "right", layout: str = "right") -> Tensor:
    """The same with one query per sequence."""
    H = q.shape[1]
    context = torch.zeros_like(q)
    for b, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        first, last = {
            "all keys": (0, kv.shape[0]),
            "next key": (start, min(end + 1, kv.shape[0])),
            "from the start": (0, end - start),
        }.get(layout, (start, end))
        for h in range(H if start < end else 0):
            own = {"next head": (h + 1) % H, "head 0": 0}.get(layout, h)
            context[b, h] = head(q[b, None, h], kv[first:last, 0, own], kv[first:last, 1, own], form)[0]
    return context


FUNCTIONS: dict[str, Any] = {
    "gelu": gelu,
    "bias_gelu": gelu,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "add_layer_norm": add_layer_norm,
    "embed": embed,
    "attention_head": head,
    "packed_attention": packed,
    "first_token_attention": first_token,
}

"""Functions in plain torch that are right by default; optional arguments plant the mistakes that people make.

Half precision is widened to float32 and rounded once at the end, as the bounds require of a kernel, so that nothing
but the mistake is wrong. Attention is in `planted_attention`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from planted_attention import attention, attention_head, first_token_attention, group_attention, store
from planted_attention_gradients import KERNELS as ATTENTION_GRADIENTS
from planted_gradients import KERNELS as GRADIENTS
from torch import Tensor
from torch.nn.functional import gelu as torch_gelu
from torch.nn.functional import pad


def wide_gelu(x: Tensor, form: str = "right") -> Tensor:
    """GELU of float32 numbers, or another function; "no tail" is right but for the tail."""
    a = x.abs().clamp(max=40.0)
    forms = {
        "right": lambda: torch.copysign(x.clamp(min=0.0) - 0.5 * a * torch.erfc(a * math.sqrt(0.5)), x),
        "tanh": lambda: torch_gelu(x, approximate="tanh"),
        "sigmoid": lambda: x * torch.sigmoid(1.702 * x),
        "silu": lambda: torch.nn.functional.silu(x),
        "relu": lambda: torch.relu(x),
        "no root": lambda: 0.5 * x * (1 + torch.erf(x)),
        "no half": lambda: x * torch.erfc(-x * math.sqrt(0.5)),
        "no tail": lambda: 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5))),
    }
    return forms[form]()


def gelu(x: Tensor, form: str = "right", truncated: bool = False) -> Tensor:
    """GELU."""
    return store(wide_gelu(x.float(), form), x, truncated)


def bias_gelu(x: Tensor, bias: Tensor, form: str = "right", place: str = "inside", truncated: bool = False) -> Tensor:
    """GELU of x + bias; `place` says where the bias is added: inside, after or none."""
    y = wide_gelu(x.float() + bias.float() if place == "inside" else x.float(), form)
    return store(y + bias.float() if place == "after" else y, x, truncated)


def softmax(scores: Tensor, form: str = "right", truncated: bool = False) -> Tensor:
    """Softmax over the last axis."""
    z = scores.float()
    e = torch.exp(z - z.amax(-1, keepdim=True))
    powers = torch.exp2(z - z.amax(-1, keepdim=True))
    forms = {
        "right": lambda: e / e.sum(-1, keepdim=True),
        "no maximum": lambda: torch.exp(z) / torch.exp(z).sum(-1, keepdim=True),
        "whole maximum": lambda: torch.exp(z - z.max()) / torch.exp(z - z.max()).sum(-1, keepdim=True),
        "column maximum": lambda: torch.exp(z - z.amax(0)) / torch.exp(z - z.amax(0)).sum(-1, keepdim=True),
        "exp": lambda: torch.exp(z),
        "log": lambda: torch.log(torch.softmax(z, -1)),
        "columns": lambda: torch.softmax(z, 0),
        "column sums": lambda: e / e.sum(0),
        "all": lambda: torch.softmax(z.reshape(-1), 0).reshape(z.shape),
        "sum of all": lambda: e / e.sum(),
        "no sum": lambda: e,
        "mean": lambda: torch.softmax(z, -1) * z.shape[-1],
        "padded": lambda: torch.softmax(pad(z, (0, -z.shape[1] % 16)), -1)[:, : z.shape[1]],
        "padded with -1000": lambda: torch.softmax(pad(z, (0, -z.shape[1] % 16), value=-1e3), -1)[:, : z.shape[1]],
        "no last": lambda: pad(torch.softmax(z[:, :-1], -1), (0, 1)),
        "no first": lambda: pad(torch.softmax(z[:, 1:], -1), (1, 0)),
        "base 2": lambda: powers / powers.sum(-1, keepdim=True),
        "transposed": lambda: torch.softmax(z.T if z.shape[0] == z.shape[1] else z, -1),
    }
    return store(forms[form](), scores, truncated)


def norm(
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    variance: str = "two passes",
    divisor: str = "root",
    affine: str = "gamma, beta",
    mean: str = "mean",
    eps_factor: float = 1.0,
    column: float = 1.0,
) -> Tensor:
    """LayerNorm of float32 numbers; the column in the middle is multiplied by `column`."""
    E, eps = z.shape[-1], eps * eps_factor
    z, g, b = z.float(), gamma.float(), beta.float()
    true = z.mean(-1, keepdim=True)
    means = {"mean": true, "sum": z.sum(-1, keepdim=True), "none": torch.zeros_like(true), "all": z.mean()}
    centred = z - means[mean]
    found = {
        "two passes": lambda: (centred**2).mean(-1, keepdim=True),
        "one pass": lambda: (z**2).mean(-1, keepdim=True) - true**2,
        "unbiased": lambda: ((z - true) ** 2).sum(-1, keepdim=True) / max(E - 1, 1),
        "sum": lambda: (centred**2).sum(-1, keepdim=True),
        "all": lambda: (centred**2).mean(),
        "about zero": lambda: (z**2).mean(-1, keepdim=True),
    }[variance]()
    y = {
        "root": lambda: centred / torch.sqrt(found + eps),
        "no root": lambda: centred / (found + eps),
        "eps outside": lambda: centred / (torch.sqrt(found) + eps),
        "no eps": lambda: centred / torch.sqrt(found),
        "times": lambda: centred * torch.sqrt(found + eps),
    }[divisor]()
    y = {
        "gamma, beta": lambda: y * g + b,
        "swapped": lambda: y * b + g,
        "sum": lambda: y * (g + b),
        "beta first": lambda: (y + b) * g,
        "no beta": lambda: y * g,
        "no gamma": lambda: y + b,
        "none": lambda: y.clone(),
        "gamma twice": lambda: y * g + g,
        "beta twice": lambda: y * b + b,
        "one plus": lambda: y * (1 + g) + b,
        "minus": lambda: y * g - b,
    }[affine]()
    y[..., E // 2] *= column
    return y


def layer_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float, rows: str = "right", truncated: bool = False, **how: Any
) -> Tensor:
    """LayerNorm; `rows` is what is wrong with the addresses, `how` the rest, see `norm`."""
    z = x.float()
    square = z.shape[0] == z.shape[-1]
    if rows == "transposed input" and square:
        z = z.T
    if rows == "first row":
        z = z[:1].expand(z.shape)
    y = norm(z, gamma, beta, eps, **how)
    if rows == "transposed result" and square:
        y = y.T
    if rows == "no last column":
        y = pad(norm(z[:, :-1], gamma[:-1], beta[:-1], eps), (0, 1), value=math.nan)
    if rows == "no first column":
        y = pad(norm(z[:, 1:], gamma[1:], beta[1:], eps), (1, 0), value=math.nan)
    return store(y, x, truncated)


def add_layer_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    read: str = "xbr",
    rounded_sum: bool = False,
    truncated: bool = False,
    **how: Any,
) -> Tensor:
    """LayerNorm of a sum; `read` says which of x, bias and residual are read."""
    terms = {"x": x.float(), "b": bias.float().expand(x.shape), "r": residual.float()}
    z = sum((terms[name] for name in read), torch.zeros(x.shape, device=x.device))
    z = z.to(x.dtype).float() if rounded_sum else z
    return store(norm(z, gamma, beta, eps, **how), x, truncated)


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
    truncated: bool = False,
    **how: Any,
) -> Tensor:
    """LayerNorm of the sum of two rows."""
    z = word[input_ids].float()
    z = z + position[position_ids + offset].float() if positions else z
    return store(norm(z, gamma, beta, eps, **how), word, truncated)


KERNELS: dict[str, Any] = {
    "gelu": gelu,
    "bias_gelu": bias_gelu,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "add_layer_norm": add_layer_norm,
    "embed": embed,
    "packed_attention": attention,
    "group_attention": group_attention,
    "first_token_attention": first_token_attention,
    "attention_head": attention_head,
    **GRADIENTS,
    **ATTENTION_GRADIENTS,
}

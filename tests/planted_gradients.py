"""Gradients in plain torch that are right by default; `fault` plants the mistakes that people make.

As in `planted`, half precision is widened to float32 and rounded once, so that nothing but the mistake is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from planted_attention import store
from torch import Tensor

from ernie_m.reference.dropout import random_bits


def total(values: Tensor, like: Tensor, fault: str) -> Tensor:  # (N, E) -> (E,)
    """The sum over rows, in float32 and rounded once."""
    if fault == "low sums":
        sums = torch.zeros_like(values[0]).to(like.dtype)
        for row in values:
            sums = (sums.float() + row).to(like.dtype)
        return sums
    if fault == "last rows":
        values = values[: max(1, len(values) - max(1, len(values) // 8))]
    if fault == "last column":
        values = torch.cat([values[:, :-1], 0 * values[:, -1:]], 1)
    return store(values.sum(0), like)


def bias_gelu_vjp(dy: Tensor, x: Tensor, bias: Tensor, fault: str = "right") -> tuple[Tensor, Tensor]:
    """dx and dbias."""
    z = x.float() + bias.float() * (fault != "no bias")
    wide = torch.ones_like(z) if fault == "ones" else dy.float()
    z64 = z.double()
    density = torch.exp(-0.5 * z64 * z64) / math.sqrt(2 * math.pi)
    slopes = {
        "no density": lambda: 0.5 * torch.erfc(-z64 / math.sqrt(2)),
        "density twice": lambda: 0.5 * torch.erfc(-z64 / math.sqrt(2)) + 2 * z64 * density,
        "sigmoid": lambda: torch.sigmoid(1.702 * z64) * (1 + 1.702 * z64 * torch.sigmoid(-1.702 * z64)),
        "of the result": lambda: torch.erfc(-z64 / math.sqrt(2)) * z64 * 0.5,
        "1 %": lambda: 1.01 * (0.5 * torch.erfc(-z64 / math.sqrt(2)) + z64 * density),
    }
    inside = z64.abs() < 40
    right = 0.5 * torch.erfc(-z64 / math.sqrt(2)) + torch.where(inside, z64, torch.zeros_like(z64)) * density
    slope = slopes[fault]() if fault in slopes else torch.where(z.isnan(), z64, right)
    dx = wide * slope.float()
    return store(dx, x, fault == "truncated"), total(dx, bias, fault)


def layer_norm_gradients(
    dy: Tensor, z: Tensor, gamma: Tensor, eps: float, like: Tensor, fault: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of z, float32, γ and β, in float32 but for the sums."""
    wide = torch.ones_like(z) if fault == "ones" else dy.float()
    mean = z.mean(-1, keepdim=True)
    rstd = 1.0 / torch.sqrt(((z - mean) ** 2).mean(-1, keepdim=True) + eps * (fault != "no eps"))
    if fault == "low statistics":
        mean, rstd = mean.to(like.dtype).float(), rstd.to(like.dtype).float()
    n, g = (z - mean) * rstd, wide * (1.0 if fault == "no gamma" else gamma.float())
    along, centre = (g * n).mean(-1, keepdim=True), g.mean(-1, keepdim=True)
    factors = {"mean twice": (2, 1), "no mean": (0, 1), "no variance": (1, 0), "variance twice": (1, 2)}
    a, b = factors.get(fault, (1, 1))
    dz = (g - a * centre - b * n * along) * (1.0 if fault == "no rstd" else rstd)
    normalised = {"unnormalised": z, "centred only": z - mean}.get(fault, n)
    return dz, total((wide * normalised).flatten(0, -2), gamma, fault), total(wide.flatten(0, -2), gamma, fault)


def add_layer_norm_vjp(
    dy: Tensor, x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, eps: float, fault: str = "right"
) -> tuple[Tensor, ...]:
    """dx, dbias, dresidual, dγ and dβ."""
    z = x.float() + bias.float() * (fault != "no bias") + residual.float()
    dz, dgamma, dbeta = layer_norm_gradients(dy, z, gamma, eps, x, fault)
    dx = store(dz, x, fault == "truncated")
    swapped = (dbeta, dgamma) if fault == "swapped" else (dgamma, dbeta)
    residual_too = dx + dy if fault == "residual twice" else dx.clone()
    return dx, total(dz.flatten(0, -2), bias, fault), residual_too, *swapped


def embed_vjp(
    dy: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    gamma: Tensor,
    eps: float,
    fault: str = "right",
) -> tuple[Tensor, ...]:
    """The gradients of the tables, γ and β."""
    rows = position_ids.long() + 2
    z = word[input_ids.long()].float() + position[rows].float()
    dz, dgamma, dbeta = layer_norm_gradients(dy, z, gamma, eps, word, fault)
    rows = rows - 2 if fault == "no offset" else rows
    tables = [summed(table, ids.long(), dz, fault) for table, ids in ((word, input_ids), (position, rows))]
    return *tables, dgamma, dbeta


def summed(table: Tensor, ids: Tensor, dz: Tensor, fault: str) -> Tensor:
    """The sum of the rows of `dz` for each row of the table."""
    if fault == "low sums":
        found = torch.zeros_like(table)
        for i, row in zip(ids.tolist(), dz, strict=True):
            found[i] = (found[i].float() + row).to(table.dtype)
        return found
    found = torch.zeros_like(table, dtype=torch.float32)
    if fault == "last of a row":
        found[ids] = dz
        return store(found, table)
    return store(found.index_add(0, ids, dz), table)


def dropping(
    shape: torch.Size, p: float, seed: int, tokens: Tensor, fault: str
) -> tuple[Tensor, float]:  # -> (N, E), ()
    """Which elements are dropped, and what the others are multiplied with."""
    counted = torch.arange(len(tokens)) if fault == "counted in order" else tokens.long()
    seed = seed + 1 if fault == "other bits" else seed % 2**63 if fault == "seed of 63 bits" else seed
    bits = torch.from_numpy(random_bits(seed, counted.numpy(), shape[-1] + 1).astype(np.int64))
    bits = bits[:, 1:] if fault == "next column" else bits[:, :-1]
    scale = {"no scale": 1.0, "scale twice": (1 - p) ** -2, "scale by p": 1 / p}.get(fault, 1 / (1 - p))
    return (bits < round(p * 2**32)) ^ (fault == "the others"), scale


def dropout_vjp(dy: Tensor, p: float, seed: int, tokens: Tensor, fault: str = "right") -> Tensor:
    """dx."""
    dropped, scale = dropping(dy.shape, p, seed, tokens, fault)
    wide = torch.ones_like(dy).float() if fault == "ones" else dy.float()
    dx = torch.where(dropped, 0.0, wide * scale)
    if fault == "last column":
        dx = torch.cat([dx[:, :-1], wide[:, -1:] * scale], 1)
    return store(dx, dy)


def dropped_layer_norm_vjp(
    dy: Tensor,
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gamma: Tensor,
    eps: float,
    p: float,
    seed: int,
    tokens: Tensor,
    fault: str = "right",
) -> tuple[Tensor, ...]:
    """dx, dbias, dresidual, dγ and dβ."""
    dropped, scale = dropping(x.shape, p, seed, tokens, fault)
    added = {"no bias": 0 * bias, "bias after dropout": 0 * bias}.get(fault, bias).float()
    product = x.float() + added + (residual.float() if fault == "residual in dropout" else 0.0)
    kept = torch.where(dropped, 0.0, product * (1.0 if fault == "scale of dx alone" else scale))
    z = {"sum not dropped": product * scale, "bias after dropout": kept + bias.float()}.get(fault, kept)
    z = z if fault == "residual in dropout" else z + residual.float()
    dz, dgamma, dbeta = layer_norm_gradients(dy, z, gamma, eps, x, fault)
    dx = dz * (1.0 if fault == "scale of the sum alone" else scale)
    dx = dx if fault == "dx not dropped" else torch.where(dropped, 0.0, dx)
    swapped = (dbeta, dgamma) if fault == "swapped" else (dgamma, dbeta)
    dbias = total({"bias of the residual": dz, "bias not scaled": dx / scale}.get(fault, dx), bias, fault)
    return store(dx, x), dbias, store(dx if fault == "residual dropped" else dz, x), *swapped


def linear_cross_entropy_vjp(
    d_loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, fault: str = "right"
) -> tuple[Tensor, ...]:
    """The gradients of the hidden states, the table and the bias."""
    rows = torch.ones_like(labels, dtype=torch.bool) if fault == "ignored rows" else labels != -100
    h, w, own = hidden[rows].float(), weight.float(), labels[rows].clamp(min=0)
    z = h @ w.T + (0.0 if fault == "no bias" else bias.float())
    if fault == "last word" and z.shape[1] > 1:
        z[:, -1] = -math.inf
    dz = z.softmax(-1)
    if fault != "no label":
        dz[torch.arange(len(own)), own] -= 1.0
    count = {"all rows": len(labels), "sum": 1}.get(fault, int((labels != -100).sum()))
    dz *= (1.0 if fault == "ones" else d_loss.float()) * {"1 %": 1.01}.get(fault, 1.0) / max(count, 1)
    d_hidden = torch.zeros_like(hidden)
    d_hidden[rows] = store(dz @ w, hidden)
    if fault == "last part":
        # The product of the last rows takes the place of the sum of all.
        half = len(own) // 2
        return d_hidden, store(dz[half:].T @ h[half:], weight), store(dz.sum(0), bias)
    if fault == "low sums":
        d_weight = torch.zeros_like(weight)
        for own_dz, row in zip(dz, h, strict=True):
            d_weight = (d_weight.float() + own_dz[:, None] * row).to(weight.dtype)
        return d_hidden, d_weight, store(dz.sum(0), bias)
    return d_hidden, store(dz.T @ h, weight), store(dz.sum(0), bias)


KERNELS: dict[str, Any] = {
    "dropout_vjp": dropout_vjp,
    "bias_gelu_vjp": bias_gelu_vjp,
    "add_layer_norm_vjp": add_layer_norm_vjp,
    "dropped_layer_norm_vjp": dropped_layer_norm_vjp,
    "embed_vjp": embed_vjp,
    "linear_cross_entropy_vjp": linear_cross_entropy_vjp,
}
# The faults of each, but for those that only show in sums of thousands of rows or in half precision.
FAULTS: dict[str, tuple[str, ...]] = {
    "bias_gelu_vjp": (
        *("ones", "no bias", "no density", "density twice", "sigmoid", "of the result", "1 %", "last rows"),
        "last column",
    ),
    "add_layer_norm_vjp": (
        *("ones", "no bias", "no eps", "no gamma", "mean twice", "no mean", "no variance", "variance twice", "no rstd"),
        *("unnormalised", "centred only", "last rows", "last column", "swapped", "residual twice"),
    ),
    "dropped_layer_norm_vjp": (
        *("ones", "no bias", "no eps", "no gamma", "no mean", "no variance", "no rstd", "unnormalised", "last rows"),
        *("last column", "swapped", "counted in order", "other bits", "seed of 63 bits", "next column", "the others"),
        *("no scale", "scale twice", "scale by p", "scale of dx alone", "scale of the sum alone", "sum not dropped"),
        *("dx not dropped", "residual dropped", "residual in dropout", "bias of the residual", "bias not scaled"),
        "bias after dropout",
    ),
    "embed_vjp": (
        *("ones", "no gamma", "mean twice", "no variance", "unnormalised", "last rows", "no offset", "last of a row"),
    ),
    "linear_cross_entropy_vjp": (
        *("ones", "no label", "no bias", "ignored rows", "all rows", "sum", "1 %", "last word", "last part"),
    ),
}

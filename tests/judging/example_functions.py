"""Functions for the worked examples, in torch and in Triton: right by default; `fault` names one to plant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ernie_m.kernels.runtime.optional_triton import tl, triton
from ernie_m.kernels.runtime.variants import next_power_of_2


def rms_norm(x: Tensor, gamma: Tensor, eps: float, fault: str = "") -> Tensor:
    wide = x.float()
    if fault == "mean subtracted":
        wide = wide - wide.mean(-1, keepdim=True)
    square = wide.square().mean(-1, keepdim=True)
    factor = 1 / (square.sqrt() + eps) if fault == "eps outside the root" else torch.rsqrt(square + eps)
    if fault == "eps left out":
        factor = torch.rsqrt(square)
    return (wide * factor * (1.0 if fault == "gamma not read" else gamma.float())).to(x.dtype)


@triton.jit
def rms_norm_kernel(x, gamma, y, eps, E: tl.constexpr, BLOCK: tl.constexpr, FAULT: tl.constexpr):
    i_row = tl.program_id(0).to(tl.int64)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    b_x = tl.load(x + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    square = tl.sum(b_x * b_x, 0) / E
    if FAULT == "mean over the block":
        square = tl.sum(b_x * b_x, 0) / BLOCK
    b_y = b_x / tl.sqrt(square + eps) * tl.load(gamma + o_e, mask=m_e, other=0.0).to(tl.float32)
    tl.store(y + i_row * E + o_e, b_y.to(y.dtype.element_ty), mask=m_e)


def triton_rms_norm(x: Tensor, gamma: Tensor, eps: float, fault: str = "") -> Tensor:
    x, gamma = x.contiguous(), gamma.contiguous()
    y, E = torch.empty_like(x), x.shape[-1]
    rms_norm_kernel[(x.shape[0],)](x, gamma, y, eps, E=E, BLOCK=next_power_of_2(E), FAULT=fault)
    return y


def rotary(x: Tensor, cos: Tensor, sin: Tensor, fault: str = "") -> Tensor:
    wide, c, s = x.float(), cos.float()[:, None], sin.float()[:, None]
    if fault == "neighbours paired":
        first, second = wide[..., 0::2], wide[..., 1::2]
        return torch.stack([first * c - second * s, second * c + first * s], -1).flatten(-2).to(x.dtype)
    first, second = wide.chunk(2, -1)
    if fault == "the other direction":
        s = -s
    if fault == "the first token's angles":
        c, s = c[:1], s[:1]
    rotated = torch.cat([first * c - second * s, second * c + first * s], -1)
    if fault == "first head only":
        rotated[:, 1:] = wide[:, 1:]
    return rotated.to(x.dtype)


@triton.jit
def rotary_kernel(x, cos, sin, y, H, HALF: tl.constexpr, FAULT: tl.constexpr):
    i_t, i_h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_d = tl.arange(0, HALF)
    p_first = (i_t * H + i_h) * 2 * HALF + o_d
    b_c = tl.load(cos + i_t * HALF + o_d).to(tl.float32)
    b_s = tl.load(sin + i_t * HALF + o_d).to(tl.float32)
    b_first, b_second = tl.load(x + p_first).to(tl.float32), tl.load(x + p_first + HALF).to(tl.float32)
    b_other = b_first * b_c - b_second * b_s
    if FAULT == "the new first half used for the second":
        b_first = b_other
    tl.store(y + p_first, b_other.to(y.dtype.element_ty))
    tl.store(y + p_first + HALF, (b_second * b_c + b_first * b_s).to(y.dtype.element_ty))


def triton_rotary(x: Tensor, cos: Tensor, sin: Tensor, fault: str = "") -> Tensor:
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    y, (T, H, D) = torch.empty_like(x), x.shape
    rotary_kernel[(T, H)](x, cos, sin, y, H, HALF=D // 2, FAULT=fault)
    return y


def masked_softmax(scores: Tensor, mask: Tensor, fault: str = "") -> Tensor:
    keep = ~mask if fault == "mask inverted" else mask
    wide = scores.float()
    if fault == "masked to 0":
        return torch.softmax(torch.where(keep, wide, 0.0), -1).to(scores.dtype)
    if fault == "masked after the softmax":
        return (torch.softmax(wide, -1) * keep).to(scores.dtype)
    probs = torch.softmax(wide.masked_fill(~keep, -torch.inf), -1)
    if fault == "nan in rows without a key":
        return probs.to(scores.dtype)
    return probs.masked_fill(~keep, 0.0).to(scores.dtype)


@triton.jit
def masked_softmax_kernel(scores, mask, y, S: tl.constexpr, BLOCK: tl.constexpr, FAULT: tl.constexpr):
    i_row = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, BLOCK)
    m_s = o_s < S
    keep = m_s & (tl.load(mask + i_row * S + o_s, mask=m_s, other=0) != 0)
    b = tl.load(scores + i_row * S + o_s, mask=m_s, other=0.0).to(tl.float32)
    largest = tl.max(tl.where(keep, b, -float("inf")), 0)
    if FAULT == "no maximum subtracted":
        largest = 0.0
    weights = tl.where(keep, tl.exp(tl.where(keep, b - largest, 0.0)), 0.0)
    total = tl.sum(weights, 0)
    b_y = tl.where(keep, weights / tl.where(total == 0, 1.0, total), 0.0)
    tl.store(y + i_row * S + o_s, b_y.to(y.dtype.element_ty), mask=m_s)


def triton_masked_softmax(scores: Tensor, mask: Tensor, fault: str = "") -> Tensor:
    scores, mask = scores.contiguous(), mask.contiguous()
    y, (N, S) = torch.empty_like(scores), scores.shape
    masked_softmax_kernel[(N,)](scores, mask, y, S=S, BLOCK=next_power_of_2(S), FAULT=fault)
    return y


def residual_dropout(x: Tensor, residual: Tensor, mask: Tensor, p: float, fault: str = "") -> Tensor:
    factor = {"scale missing": 1.0, "scaled by p": 1 / p, "scaled twice": (1 - p) ** -2}.get(fault, 1 / (1 - p))
    kept = torch.where(~mask if fault == "mask inverted" else mask, x.float() * factor, 0.0)
    return (kept if fault == "residual left out" else residual.float() + kept).to(x.dtype)


@triton.jit
def residual_dropout_kernel(x, residual, mask, y, n, scale, BLOCK: tl.constexpr, FAULT: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x + o, mask=o < n, other=0.0).to(tl.float32) * scale
    b_r = tl.load(residual + o, mask=o < n, other=0.0).to(tl.float32)
    keep = tl.load(mask + o, mask=o < n, other=0) != 0
    b_y = b_r + tl.where(keep, b_x, 0.0)
    if FAULT == "the residual is dropped too":
        b_y = tl.where(keep, b_r + b_x, 0.0)
    tl.store(y + o, b_y.to(y.dtype.element_ty), mask=o < n)


def triton_residual_dropout(x: Tensor, residual: Tensor, mask: Tensor, p: float, fault: str = "") -> Tensor:
    x, residual, mask = x.contiguous(), residual.contiguous(), mask.contiguous()
    y, n = torch.empty_like(x), x.numel()
    residual_dropout_kernel[(triton.cdiv(n, 1024),)](x, residual, mask, y, n, 1 / (1 - p), BLOCK=1024, FAULT=fault)
    return y


# Right without a fault; all of these faults are planted.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "rms_norm": (rms_norm, ("eps outside the root", "eps left out", "gamma not read", "mean subtracted")),
    "triton rms_norm": (triton_rms_norm, ("mean over the block",)),
    "rotary": (rotary, ("neighbours paired", "the other direction", "the first token's angles", "first head only")),
    "triton rotary": (triton_rotary, ("the new first half used for the second",)),
    "masked_softmax": (
        masked_softmax,
        ("mask inverted", "masked to 0", "masked after the softmax", "nan in rows without a key"),
    ),
    "triton masked_softmax": (triton_masked_softmax, ("no maximum subtracted",)),
    "residual_dropout": (
        residual_dropout,
        ("scale missing", "scaled by p", "scaled twice", "mask inverted", "residual left out"),
    ),
    "triton residual_dropout": (triton_residual_dropout, ("the residual is dropped too",)),
}

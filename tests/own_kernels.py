"""Kernels with one fault each in their machine code, and functions that launch kernels."""

from __future__ import annotations

import os
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr, SHIFT: tl.constexpr = 0):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK) + SHIFT
    tl.store(y + o, tl.load(x + o, mask=o < n), mask=o < n)


@triton.jit
def hoarding(x, y, N: tl.constexpr):
    o = tl.arange(0, N)
    v = tl.load(x + o).to(tl.float32)
    tl.store(y + o, (v / tl.sum(v, 0)).to(y.dtype.element_ty))


@triton.jit
def printing(x, y, N: tl.constexpr):
    o = tl.arange(0, N)
    v = tl.load(x + o)
    tl.device_print("v", v)
    tl.store(y + o, v)


@triton.jit
def product(x, y, n, N: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr):
    o = tl.arange(0, N)
    acc = tl.zeros((N, N), tl.float32)
    for i in tl.range(0, n, num_stages=STAGES):
        b = tl.load(x + i * N * N + o[:, None] * N + o[None, :])
        acc = tl.dot(b, b, acc, input_precision=PRECISION)
    tl.store(y + o[:, None] * N + o[None, :], acc.to(y.dtype.element_ty))


@triton.jit
def attention(x, y, n, N: tl.constexpr, D: tl.constexpr):
    o, d = tl.arange(0, N), tl.arange(0, D)
    q = tl.load(x + o[:, None] * D + d[None, :])
    acc = tl.zeros((N, D), tl.float32)
    for i in tl.range(0, n, num_stages=2):
        k = tl.load(x + (i * N + o)[:, None] * D + d[None, :])
        p = tl.exp(tl.dot(q, k.T))
        acc = tl.dot(p.to(k.dtype), k, acc * 0.5)
    tl.store(y + o[:, None] * D + d[None, :], acc.to(y.dtype.element_ty))


@triton.jit
def scaled(x, y, n, scale, mask, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if mask is not None:
        scale = scale * tl.load(mask)
    tl.store(y + o, tl.load(x + o, mask=o < n) * scale, mask=o < n)


def launch(x: torch.Tensor, n: int, mask: torch.Tensor | None = None, warps: int = 4) -> torch.Tensor:
    y = torch.empty_like(x)
    scaled[(triton.cdiv(x.numel(), 64),)](x, y, n, 2.0, mask, BLOCK=64, num_warps=warps)
    return y


def example() -> None:
    launch(torch.zeros(64, dtype=torch.bfloat16), 64)
    launch(torch.zeros(64, dtype=torch.bfloat16), 64)
    launch(torch.zeros(65, dtype=torch.float16)[1:], 1, torch.ones(1), 8)


def elementwise(x: torch.Tensor) -> torch.Tensor:
    return launch(x, x.numel())


def launches_nothing() -> None:
    pass


def exits() -> None:
    sys.exit(0)


def ends() -> None:
    os._exit(0)


number = 3

"""Is the interpreter, once it is patched, right? Compares it with torch.

Covers what `interpreter` repairs: bfloat16 numbers, sums and products, and loads that a mask leaves out.
"""

from __future__ import annotations

import numpy as np
import torch

from .interpreter import INACTIVE, is_active
from .optional_triton import tl, triton


@triton.jit
def _copy_kernel(x, y, N: tl.constexpr):  # (N,) -> (N,), rounded or widened to y's dtype
    tl.store(y + tl.arange(0, N), tl.load(x + tl.arange(0, N)))


@triton.jit
def _partial_kernel(x, y, n, N: tl.constexpr):  # (N,) -> (N,), n of them read
    o = tl.arange(0, N)
    tl.store(y + o, tl.load(x + o, mask=o < n))


@triton.jit
def _truncate_kernel(x, y, N: tl.constexpr):  # float32 (N,) -> bfloat16 (N,), rounded towards zero
    o = tl.arange(0, N)
    tl.store(y + o, tl.load(x + o).to(tl.bfloat16, fp_downcast_rounding="rtz"))


@triton.jit
def _arithmetic_kernel(a, b, y, N: tl.constexpr):  # bfloat16 (N,) x 2 -> (7, N)
    o = tl.arange(0, N)
    b_a, b_b = tl.load(a + o), tl.load(b + o)
    tl.store(y + o, b_a + b_b)
    tl.store(y + N + o, b_a - b_b)
    tl.store(y + 2 * N + o, b_a * b_b)
    tl.store(y + 3 * N + o, b_a / b_b)
    tl.store(y + 4 * N + o, tl.where(b_a < b_b, 1.5 * b_a, tl.abs(b_b)))
    tl.store(y + 5 * N + o, tl.maximum(b_a, b_b) + tl.full((N,), 0.375, tl.bfloat16))
    tl.store(y + 6 * N + o, tl.math.fma(b_a, b_b, b_a))


@triton.jit
def _sums_kernel(x, w, n, sums, total, product, N: tl.constexpr):  # (N, N) x 2, (1,) -> (N,), (1,), float32 (N, N)
    o = tl.arange(0, N)
    o_nn = o[:, None] * N + o[None, :]
    b_x, b_w = tl.load(x + o_nn), tl.load(w + o_nn)
    acc = tl.zeros((N, N), tl.float32)
    for _ in range(tl.load(n)):
        acc = tl.dot(b_x, b_w, acc)
    tl.store(sums + o, tl.sum(b_x, 1))
    tl.store(total, tl.sum(b_x))
    tl.store(product + o_nn, acc)


def _expect(what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise RuntimeError unless the numbers are equal, including signs of zero; any NaN equals any other."""
    same = (got == expected) & (got.signbit() == expected.signbit()) | got.isnan() & expected.isnan()
    if not bool(same.all()):
        i = tuple((~same).nonzero()[0].tolist())
        wrong = int((~same).sum())
        raise RuntimeError(
            f"Triton's interpreter is not exact: {what}: {wrong} of {same.numel()} differ from torch, "
            f"first at {i}: got {got[i].item()!r}, expected {expected[i].item()!r}"
        )


def _test_conversions(every: torch.Tensor) -> None:
    wide = torch.empty(every.shape)
    _copy_kernel[(1,)](every, wide, every.numel())
    _expect("bfloat16 to float32", wide, every.float())
    # Each number itself, and values below, at and above its tie with the next one; bits past infinity are NaNs.
    for low in (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = ((torch.arange(every.numel()) << 16) + low).to(torch.int32).view(torch.float32)
        y = torch.empty_like(every)
        _copy_kernel[(1,)](x, y, y.numel())
        _expect(f"float32 to bfloat16, low bits {low:#06x}", y, x.to(torch.bfloat16))
        _truncate_kernel[(1,)](x, y, y.numel())
        truncated = torch.where(x.isnan(), x, every.float()).to(torch.bfloat16)
        _expect(f"float32 to bfloat16 towards zero, low bits {low:#06x}", y, truncated)


def _test_arithmetic(a: torch.Tensor, b: torch.Tensor) -> None:
    results = torch.empty(7, a.numel(), dtype=torch.bfloat16)
    with np.errstate(all="ignore"):
        _arithmetic_kernel[(1,)](a, b, results, a.numel())
    expected = {
        "a + b": a + b,
        "a - b": a - b,
        "a * b": a * b,
        "a / b": a / b,
        "where(a < b, 1.5 * a, |b|)": torch.where(a < b, 1.5 * a, b.abs()),
        "max(a, b) + 0.375": torch.maximum(a, b) + 0.375,
        "fma(a, b, a)": (a.float() * b.float() + a.float()).to(torch.bfloat16),
    }
    # Not compared, because bfloat16 is not the cause: the maximum when an operand is NaN, and a fused multiply-add
    # whose product leaves float32's range.
    product = a.double() * b.double()
    undefined = torch.zeros(results.shape, dtype=torch.bool)
    undefined[5] = a.isnan() | b.isnan()
    undefined[6] = product != product.float()
    results = torch.where(undefined, torch.stack(tuple(expected.values())), results)
    for (name, right), got in zip(expected.items(), results, strict=True):
        _expect(name, got, right)


def _test_sums(generator: torch.Generator) -> None:
    # Eighths of small integers: their sums and products are exact in float32, in any order.
    x, w = (torch.randint(-64, 65, (2, 64, 64), generator=generator) / 8).to(torch.bfloat16)
    sums, total = torch.empty(64, dtype=torch.bfloat16), torch.empty(1, dtype=torch.bfloat16)
    product = torch.empty(64, 64)
    _sums_kernel[(1,)](x, w, torch.tensor([2], dtype=torch.int32), sums, total, product, 64)
    _expect("tl.sum of rows", sums, x.double().sum(1).to(torch.bfloat16))
    _expect("tl.sum of all", total, x.double().sum().to(torch.bfloat16)[None])
    _expect("tl.dot", product, (2 * x.double() @ w.double()).float())


def _test_partial_loads() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32):
        x, y = torch.zeros(2, 64, dtype=dtype)
        _partial_kernel[(1,)](x, y, 7, 64)
        left_out = torch.nan if dtype.is_floating_point else int.from_bytes(b"\x7f" * dtype.itemsize, "big")
        _expect(f"a load of 7 of 64 {dtype}", y, torch.where(torch.arange(64) < 7, x, left_out).to(dtype))


def self_test() -> None:
    """Compare with torch: all 65,536 bfloat16 numbers and the ties between them; takes less than a second.

    Raises RuntimeError, naming the operation and the first number that differs.
    """
    if not is_active():
        raise RuntimeError(INACTIVE)
    generator = torch.Generator().manual_seed(0)
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    _test_conversions(every)
    _test_arithmetic(every, every[torch.randperm(every.numel(), generator=generator)])
    _test_sums(generator)
    _test_partial_loads()

"""Exact bfloat16 in Triton's interpreter.

The interpreter (TRITON_INTERPRET=1) runs a kernel program by program in NumPy. NumPy has no bfloat16, so a block of it
is stored as uint16 bit patterns, and upstream (3.6 to 3.9) gets these wrong:

    float32 -> bfloat16   drops the low bits: rounds towards zero, where GPUs and torch round to nearest even
    subnormals, float64   are converted to wrong numbers
    a + b, tl.sum, fma    work on the bit patterns, as does tl.dot: garbage, without an error
    2.5 * x, tl.full      raise AttributeError: there are no bfloat16 constants

`install()` fixes this: arithmetic widens to float32, which is exact, and rounds its result once. A sum is taken in
float32 and rounded at the end, where compiled code may round in between; kernels here sum in float32 anyway.
It also fixes range(n) for a loaded n, which raises TypeError in Triton 3.6 with NumPy 2.5.

Not fixed: bfloat16 atomics and scans, and conversions between bfloat16 and 8-bit floats.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from ernie_m.reference.array import round_to_bfloat16, widen_bfloat16

from .optional_triton import HAS_TRITON, tl, triton

upstream: Any = importlib.import_module("triton.runtime.interpreter") if HAS_TRITON else None
_Builder: Any = upstream.InterpreterBuilder if HAS_TRITON else object
_ReduceOps: Any = upstream.ReduceOps if HAS_TRITON else object

_INACTIVE = "Triton's interpreter is not active: set TRITON_INTERPRET=1 before triton is imported"


def _is_bfloat16(*handles: Any) -> bool:
    return any(handle.dtype.scalar == tl.bfloat16 for handle in handles)


def _as_float32(handle: Any) -> Any:
    return upstream.TensorHandle(widen_bfloat16(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _as_bfloat16(handle: Any) -> Any:
    return upstream.TensorHandle(round_to_bfloat16(handle.data), tl.bfloat16)


class ExactBuilder(_Builder):
    """Upstream's operations, with those on bfloat16 done in float32."""

    def get_bf16(self, value: float) -> Any:
        return upstream.TensorHandle(round_to_bfloat16(np.array([value], dtype=np.float32)), tl.bfloat16)

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if source == target or tl.bfloat16 not in (source, target):
            return super().cast_impl(src, dst_type)
        if target == tl.bfloat16:
            return _as_bfloat16(src if source == tl.float32 else super().cast_impl(src, tl.float32))
        wide = _as_float32(src)
        return wide if target == tl.float32 else super().cast_impl(wide, dst_type)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            nearest = rounding_mode != upstream._ir.ROUNDING_MODE.RTZ
            return upstream.TensorHandle(round_to_bfloat16(src.data, nearest), tl.bfloat16)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        if not _is_bfloat16(lhs, rhs):
            return super().binary_op(lhs, rhs, op)
        result = super().binary_op(_as_float32(lhs), _as_float32(rhs), op)
        # Comparisons return booleans, whatever dtype upstream declares for them.
        return result if result.data.dtype == np.bool_ else _as_bfloat16(result)

    def create_fma(self, x: Any, y: Any, z: Any) -> Any:
        result = super().create_fma(_as_float32(x), _as_float32(y), _as_float32(z))
        return _as_bfloat16(result) if _is_bfloat16(z) else result

    def create_dot(self, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return super().create_dot(_as_float32(a), _as_float32(b), d, *options)


class ExactReduceOps(_ReduceOps):
    """Upstream's reductions, with sums of bfloat16 done in float32."""

    def sum(self, input: Any) -> Any:
        if input.dtype.scalar != tl.bfloat16:
            return super().sum(input)
        total = np.sum(widen_bfloat16(input.handle.data), axis=self.axis, keepdims=self.keep_dims)
        bits = round_to_bfloat16(np.atleast_1d(total))
        return self.to_tensor(bits.reshape(np.shape(total)) if np.ndim(total) else bits[0], tl.bfloat16)


def _index(tensor: Any) -> int:
    # range() calls this on a loaded bound, a one-element array, which NumPy 2.5 no longer converts to a number.
    return int(tensor.handle.data.item())


def is_active() -> bool:
    """Whether this process interprets kernels, which Triton decides when it is imported."""
    return HAS_TRITON and isinstance(tl.sum, upstream.InterpretedFunction)


def install() -> None:
    """Make bfloat16 exact for every kernel that this process interprets; a second call changes nothing.

    Raises RuntimeError if Triton is absent or was imported without TRITON_INTERPRET=1.
    """
    if not HAS_TRITON:
        raise RuntimeError("triton is not installed: there is no interpreter to patch")
    if not is_active():
        raise RuntimeError(_INACTIVE)
    if upstream.ReduceOps is ExactReduceOps:
        return
    upstream.InterpreterBuilder = ExactBuilder
    upstream.interpreter_builder.__class__ = ExactBuilder
    upstream.ReduceOps = ExactReduceOps
    patch_tensor = upstream._patch_lang_tensor

    def patch_tensor_and_index(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = _index

    upstream._patch_lang_tensor = patch_tensor_and_index


@triton.jit
def _copy_kernel(x, y, N: tl.constexpr):  # (N,) -> (N,), rounded or widened to y's dtype
    tl.store(y + tl.arange(0, N), tl.load(x + tl.arange(0, N)))


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
            f"bfloat16 in Triton's interpreter is not exact: {what}: {wrong} of {same.numel()} differ from torch, "
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


def self_test() -> None:
    """Compare with torch on all 65,536 bfloat16 numbers and the ties between them; takes less than a second.

    Raises RuntimeError, naming the operation and the first number that differs.
    """
    if not is_active():
        raise RuntimeError(_INACTIVE)
    generator = torch.Generator().manual_seed(0)
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    _test_conversions(every)
    _test_arithmetic(every, every[torch.randperm(every.numel(), generator=generator)])
    _test_sums(generator)

"""Triton's interpreter, made exact in bfloat16 and strict about masked loads.

The interpreter (TRITON_INTERPRET=1) runs a kernel program by program in NumPy. NumPy has no bfloat16, so a block of it
is stored as uint16 bit patterns, and upstream (3.6 to 3.9) gets these wrong:

    float32 -> bfloat16   drops the low bits: rounds towards zero, where GPUs and torch round to nearest even
    subnormals, float64   are converted to wrong numbers
    a + b, tl.sum, fma    work on the bit patterns, as does tl.dot: garbage, without an error
    2.5 * x, tl.full      raise AttributeError: there are no bfloat16 constants (3.9 has them)

`install()` fixes this: arithmetic widens to float32, which is exact, and rounds its result once. A sum is taken in
float32 and rounded at the end, where compiled code may round in between; kernels here sum in float32 anyway.
It also fixes range(n) for a loaded n, which raises TypeError in Triton 3.6 with NumPy 2.5.

A load with a mask but without `other` gives 0 upstream where the mask is false; on a GPU it may give anything. Here it
gives NaN, or a large integer, so that a kernel that relies on 0 is found out.

Not fixed: bfloat16 atomics and scans, and conversions between bfloat16 and 8-bit floats.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from ernie_m.reference.array import round_to_bfloat16, widen_bfloat16

from .optional_triton import HAS_TRITON, tl

upstream: Any = importlib.import_module("triton.runtime.interpreter") if HAS_TRITON else None
_Builder: Any = upstream.InterpreterBuilder if HAS_TRITON else object
_ReduceOps: Any = upstream.ReduceOps if HAS_TRITON else object

INACTIVE = "Triton's interpreter is not active: set TRITON_INTERPRET=1 before triton is imported"


def _is_bfloat16(*handles: Any) -> bool:
    return any(handle.dtype.scalar == tl.bfloat16 for handle in handles)


def _as_float32(handle: Any) -> Any:
    return upstream.TensorHandle(widen_bfloat16(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _as_bfloat16(handle: Any) -> Any:
    return upstream.TensorHandle(round_to_bfloat16(handle.data), tl.bfloat16)


def _anything(pointers: Any) -> Any:
    """What loads give where a mask leaves them out: NaN, whose bits are all 1 in every format, or a large integer."""
    kind = pointers.get_element_ty()
    dtype = np.dtype(upstream._get_np_dtype(kind))
    bits = np.full((*pointers.data.shape, dtype.itemsize), 0xFF if kind.is_floating() else 0x7F, np.uint8)
    return upstream.TensorHandle(bits.view(dtype)[..., 0], kind)


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

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *rest: Any, **options: Any) -> Any:
        other = _anything(ptrs) if other is None else other
        return super().create_masked_load(ptrs, mask, other, *rest, **options)

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
        raise RuntimeError(INACTIVE)
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

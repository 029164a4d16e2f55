"""The gradient of group attention as an operation: its kernels' launches, and how autograd finds them.

Twin: `group_attention_vjp` in reference/attention_groups.py. The kernels are in attention_groups_backward.py; their
sizes are those of attention_vjp.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .attention_groups import _group_attention as group_attention_operation
from .attention_groups import check_arguments, plain_group_attention
from .attention_groups_backward import group_keys_kernel, group_queries_kernel
from .attention_vjp import delta_variant, keys_configuration, queries_configuration, statistics
from .runtime.arguments import check_floats, check_shape
from .runtime.derivative import refuse_second_derivatives
from .runtime.dispatch import wants_plain
from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.variants import Variant, target_of
from .sequences import HEAD_SIZES


def variants_backward(target: str) -> Iterator[Variant]:
    """The kernels for 12 heads of 64 (base) and 16 of 64 (large)."""
    for dtype, kind in TRITON_TYPES.items():
        signature = {"d_context": f"*{kind}", "qkv": f"*{kind}", "groups": "*i32", "stats": "*fp32"}
        signature |= {"d_qkv": f"*{kind}", "T": "i32", "scale": "fp32", "BLOCKS": "i32"}
        parts = (
            ("dk dv", group_keys_kernel, keys_configuration(target, dtype, 64)),
            ("dq", group_queries_kernel, queries_configuration(target, dtype, 64)),
        )
        for H in (12, 16):
            yield delta_variant("group_attention_vjp", dtype, H, 64)
            for part, kernel, sizes in parts:
                described = ("group_attention_vjp", name_of(dtype), f"H={H} D=64 {part}", kernel, signature)
                constants, tile = {"H": H, "D": 64, **sizes.blocks}, sizes.blocks["BM"] * sizes.blocks["BN"]
                yield Variant(*described, constants, sizes, tile=tile, loop=True)


@torch.library.custom_op("ernie_m::group_attention_vjp", mutates_args=())
def _group_attention_vjp(
    d_context: Tensor, qkv: Tensor, groups: Tensor, longest: int, context: Tensor, lse: Tensor
) -> Tensor:
    given = (d_context, qkv, groups, context, lse)
    d_context, qkv, groups, context, lse = (x.contiguous() for x in given)
    T, _, H, D = qkv.shape
    # Rows that are no key, of a group or of themselves, have a gradient of 0.
    d_qkv, target = torch.zeros_like(qkv), target_of(qkv.device)
    if not (T and len(groups)):
        return d_qkv
    stats = statistics(d_context, context, lse)
    for kernel, sizes, size in (
        (group_keys_kernel, keys_configuration(target, qkv.dtype, D), "BN"),
        (group_queries_kernel, queries_configuration(target, qkv.dtype, D), "BM"),
    ):
        BLOCKS = max(-(-longest // sizes.blocks[size]), 1)
        arguments = (d_context, qkv, groups, stats, d_qkv, T, 1.0 / math.sqrt(D), BLOCKS)
        grid = (len(groups) * H * BLOCKS,)
        launch(kernel, grid, qkv, *arguments, H=H, D=D, **sizes.blocks, **sizes.options)
    return d_qkv


@_group_attention_vjp.register_fake
def _(d_context: Tensor, qkv: Tensor, groups: Tensor, longest: int, context: Tensor, lse: Tensor) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


refuse_second_derivatives(_group_attention_vjp)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, groups, ctx.longest = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(qkv, groups, *output)


def _backward(ctx: Any, d_context: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    qkv, groups, context, lse = ctx.saved_tensors
    return _group_attention_vjp(d_context, qkv, groups, ctx.longest, context, lse), None, None


group_attention_operation.register_autograd(_backward, setup_context=_keep)


def group_attention_vjp(
    d_context: Tensor, qkv: Tensor, groups: Tensor, longest: int | None = None, validate: bool = False
) -> Tensor:  # (T, H, D), (T, 3, H, D), (G, 5) -> (T, 3, H, D)
    """The gradient of `qkv`, if `d_context` is that of `group_attention`; other arguments, and errors, are its own.

    It computes the context again. On the kernels it is the same, bit for bit, in any order of programs.
    """
    check_floats(d_context=d_context, qkv=qkv)
    longest = check_arguments(qkv, groups, longest, validate)
    T, _, H, D = qkv.shape
    check_shape("d_context", d_context, (T, H, D), "(T, H, D)")
    if D in HEAD_SIZES and not wants_plain(qkv, differentiable=True):
        context, lse = group_attention_operation(qkv, groups, longest)
        gradient: Tensor = _group_attention_vjp(d_context, qkv, groups, longest, context, lse)
        return gradient
    with torch.enable_grad():
        x = qkv if qkv.requires_grad else qkv.detach().requires_grad_()
        context, _ = plain_group_attention(x, groups)
        (gradient,) = torch.autograd.grad(context, x, d_context, create_graph=qkv.requires_grad)
    return gradient

"""The gradient of packed attention as an operation: its kernels' sizes, their launches, and how autograd finds them.

Twin: `packed_attention_vjp` in reference/attention.py. The kernels are in attention_backward.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .attention import DROP_SIGNATURE, DROPS, prefers_plain
from .attention import _packed_attention as packed_attention_operation
from .attention_backward import delta_kernel, keys_kernel, queries_kernel, short_kernel
from .dropping import threshold_and_scale
from .rectangles import plain_packed_attention
from .runtime.arguments import check_floats, check_shape
from .runtime.derivative import refuse_second_derivatives
from .runtime.dispatch import runs_triton
from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.variants import Configuration, Variant, target_of
from .sequences import HEAD_SIZES, check_arguments


def delta_configuration() -> Configuration:
    """Rows and warps of the kernel for δ."""
    return Configuration({"ROWS": 32}, num_warps=4)


def short_configuration(dtype: torch.dtype, D: int) -> Configuration:
    """Blocks and warps for sequences that fit in one block."""
    return Configuration({"BM": 32 if dtype == torch.float32 else 64}, num_warps=4 if D <= 64 else 8)


def keys_configuration(target: str, dtype: torch.dtype, D: int, drop: bool = False) -> Configuration:
    """Blocks, warps and stages of the kernel for dk and dv; `drop`: with dropout."""
    if dtype == torch.float32:
        return Configuration({"BM": 16, "BN": 32}, num_warps=4)
    if D == 128:
        return Configuration({"BM": 32, "BN": 64}, num_warps=8)
    if drop and target not in ("sm_90", "sm_100"):
        # 64 queries would spill there.
        return Configuration({"BM": 32, "BN": 64}, num_warps=4)
    # With dropout and two stages, ptxas 12.8 serialises the matrix instructions (C7515).
    stages = 2 if target in ("sm_80", "sm_90") and not drop else 1
    return Configuration({"BM": 64, "BN": 64}, num_warps=4, num_stages=stages)


def queries_configuration(target: str, dtype: torch.dtype, D: int, drop: bool = False) -> Configuration:
    """Blocks, warps and stages of the kernel for dq; `drop`: with dropout, whose bits leave loads time to arrive."""
    if dtype == torch.float32:
        return Configuration({"BM": 32, "BN": 16}, num_warps=4)
    if D == 128:
        return Configuration({"BM": 64, "BN": 32}, num_warps=8)
    return Configuration({"BM": 64, "BN": 64}, num_warps=4, num_stages=1 if target == "gfx942" or drop else 2)


def delta_variant(operation: str, dtype: torch.dtype, H: int, D: int) -> Variant:
    """The kernel for δ as `operation` uses it."""
    signature = {**dict.fromkeys(("d_context", "context"), f"*{TRITON_TYPES[dtype]}"), "lse": "*fp32"}
    signature |= {"stats": "*fp32", "T": "i32"}
    described, chosen = (operation, name_of(dtype), f"H={H} D={D} delta", delta_kernel), delta_configuration()
    return Variant(*described, signature, {"H": H, "D": D, **chosen.blocks}, chosen, tile=chosen.blocks["ROWS"])


def variants_backward(target: str) -> Iterator[Variant]:
    """The kernels for 12 heads of 64 (base), 16 of 64 (large) and 12 of 128; with dropout for base in bfloat16."""
    for dtype, kind in TRITON_TYPES.items():
        for H, D in ((12, 64), (16, 64), (12, 128)):
            tensors = {"d_context": f"*{kind}", "qkv": f"*{kind}", "cu_seqlens": "*i32"}
            stats = {"stats": "*fp32", "d_qkv": f"*{kind}", "T": "i32", "scale": "fp32"}
            yield delta_variant("packed_attention_vjp", dtype, H, D)
            short = short_configuration(dtype, D)
            for drop in (False, True) if (H, D, dtype) == (12, 64, torch.bfloat16) else (False,):
                keys, queries = (f(target, dtype, D, drop) for f in (keys_configuration, queries_configuration))
                parts = (("dk dv", keys_kernel, keys), ("dq", queries_kernel, queries))
                name, label, end = name_of(dtype), f"H={H} D={D}", DROPS if drop else ""
                yield Variant(
                    *("packed_attention_vjp", name, f"{label} S<={short.blocks['BM']}{end}", short_kernel),
                    {**tensors, "d_qkv": f"*{kind}", "T": "i32", "scale": "fp32", **DROP_SIGNATURE},
                    {"H": H, "D": D, **short.blocks, "DROP": drop},
                    short,
                    tile=short.blocks["BM"] ** 2,
                )
                for part, kernel, chosen in parts:
                    yield Variant(
                        *("packed_attention_vjp", name, f"{label} {part}{end}", kernel),
                        {**tensors, **stats, "BLOCKS": "i32", **DROP_SIGNATURE},
                        {"H": H, "D": D, **chosen.blocks, "DROP": drop},
                        chosen,
                        tile=chosen.blocks["BM"] * chosen.blocks["BN"],
                        loop=True,
                    )


def statistics(d_context: Tensor, context: Tensor, lse: Tensor) -> Tensor:  # (T, H, D) x 2, (H, T) -> (2, H, T)
    """What the kernels of the split form read for each query: its log-sum-exp, in base 2, and δ."""
    T, H, D = context.shape
    stats, chosen = lse.new_empty(2, H, T), delta_configuration()
    grid = (-(-T // chosen.blocks["ROWS"]) * H,)
    launch(delta_kernel, grid, context, d_context, context, lse, stats, T, H=H, D=D, **chosen.blocks, **chosen.options)
    return stats


def packed_attention_backward(
    d_context: Tensor,
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    context: Tensor,
    lse: Tensor,
    d_lse: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    tokens: Tensor | None = None,
) -> Tensor:  # (T, H, D), (T, 3, H, D), (B + 1,), (T, H, D), (H, T) x 2 -> (T, 3, H, D)
    """d_qkv of contiguous tensors on which the kernels run.

    A log-sum-exp's derivative with respect to the scores is P, so its cotangent is subtracted from δ.
    """
    T, _, H, D = qkv.shape
    d_qkv = torch.empty_like(qkv)
    B = cu_seqlens.shape[0] - 1
    if not (T and B):
        return d_qkv.fill_(math.nan)
    scale, target = 1.0 / math.sqrt(D), target_of(qkv.device)
    short = short_configuration(qkv.dtype, D)
    if max_seqlen <= short.blocks["BM"] and d_lse is None:
        given = (d_context, qkv, cu_seqlens, d_qkv, seed, tokens, T, scale, *threshold_and_scale(p))
        launch(short_kernel, (B * H,), qkv, *given, H=H, D=D, **short.blocks, DROP=seed is not None, **short.options)
        return d_qkv
    stats = statistics(d_context, context, lse)
    if d_lse is not None:
        stats[1] -= d_lse
    for kernel, chosen, size in (
        (keys_kernel, keys_configuration(target, qkv.dtype, D, seed is not None), "BN"),
        (queries_kernel, queries_configuration(target, qkv.dtype, D, seed is not None), "BM"),
    ):
        blocks = max(-(-max_seqlen // chosen.blocks[size]), 1)
        arguments = (d_context, qkv, cu_seqlens, stats, d_qkv, seed, tokens, T, scale, blocks)
        constants = {"H": H, "D": D, **chosen.blocks, "DROP": seed is not None, **chosen.options}
        launch(kernel, (B * H * blocks,), qkv, *arguments, *threshold_and_scale(p), **constants)
    return d_qkv


@torch.library.custom_op("ernie_m::packed_attention_vjp", mutates_args=())
def _packed_attention_vjp(
    d_context: Tensor,
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    context: Tensor,
    lse: Tensor,
    d_lse: Tensor | None,
    p: float = 0.0,
    seed: Tensor | None = None,
    tokens: Tensor | None = None,
) -> Tensor:
    d_context, qkv, cu_seqlens = (x.contiguous() for x in (d_context, qkv, cu_seqlens))
    return packed_attention_backward(d_context, qkv, cu_seqlens, max_seqlen, context, lse, d_lse, p, seed, tokens)


@_packed_attention_vjp.register_fake
def _(
    d_context: Tensor,
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    context: Tensor,
    lse: Tensor,
    d_lse: Tensor | None,
    p: float = 0.0,
    seed: Tensor | None = None,
    tokens: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


refuse_second_derivatives(_packed_attention_vjp)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, cu_seqlens, ctx.max_seqlen, ctx.p, seed, tokens = inputs
    ctx.save_for_backward(qkv, cu_seqlens, *output, seed, tokens)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_context: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    qkv, cu_seqlens, context, lse, *dropped = ctx.saved_tensors
    d_context = torch.zeros_like(context) if d_context is None else d_context
    given = (d_context, qkv, cu_seqlens, ctx.max_seqlen, context, lse, d_lse, ctx.p, *dropped)
    return _packed_attention_vjp(*given), None, None, None, None, None


packed_attention_operation.register_autograd(_backward, setup_context=_keep)


def packed_attention_vjp(
    d_context: Tensor, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None, validate: bool = False
) -> Tensor:  # (T, H, D), (T, 3, H, D), (B + 1,) -> (T, 3, H, D)
    """The gradient of `qkv`, if `d_context` is that of `packed_attention`; other arguments, and errors, are its own.

    It computes the context again. On the kernels it is the same, bit for bit, in any order of programs.
    """
    check_floats(d_context=d_context, qkv=qkv)
    max_seqlen = check_arguments(qkv, cu_seqlens, max_seqlen, validate)
    T, _, H, D = qkv.shape
    check_shape("d_context", d_context, (T, H, D), "(T, H, D)")
    if not prefers_plain(qkv) and runs_triton(qkv) and D in HEAD_SIZES:
        context, lse = packed_attention_operation(qkv, cu_seqlens, max_seqlen)
        gradient: Tensor = _packed_attention_vjp(d_context, qkv, cu_seqlens, max_seqlen, context, lse, None)
        return gradient
    with torch.enable_grad():
        x = qkv if qkv.requires_grad else qkv.detach().requires_grad_()
        context, _ = plain_packed_attention(x, cu_seqlens, max_seqlen)
        (gradient,) = torch.autograd.grad(context, x, d_context, create_graph=qkv.requires_grad)
    return gradient

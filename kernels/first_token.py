"""Attention for the first token of each sequence: all that a head reading only [CLS] needs of the last layer.

    context[b] = Σ_j softmax_j(q_b · k_j / √D) v_j        over the keys j of sequence b

Grid: the heads of all sequences on one axis; a program holds one query and walks over its sequence's keys BN at a time,
with the online softmax of attention.py. A single query needs no matrix product: the work is elementwise, bound by
reading each key and value once, and the probabilities stay in float32.

Twin: reference/first_token.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .first_token_backward import first_token_attention_backward
from .first_token_backward import variants_backward as variants_backward
from .padding import check_cu_seqlens, sequence_of_tokens
from .runtime.arguments import check_device, check_floats, check_integers, check_shape
from .runtime.derivative import refuse_second_derivatives
from .runtime.dispatch import runs_triton, should_validate, wants_plain
from .runtime.dtypes import TRITON_TYPES, name_of, wide_dtype
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant
from .sequences import HEAD_SIZES, LOG2_E, sequence_bounds


@triton.jit
def first_token_attention_kernel(
    q, kv, cu_seqlens, context, T, scale2, H: tl.constexpr, D: tl.constexpr, BN: tl.constexpr
):  # (B, H, D), (T, 2, H, D), (B + 1,) -> (B, H, D)
    """One sequence's first query, in one head; `scale2` is log2(e)/√D."""
    i_head = tl.program_id(0) % H
    i_sequence = tl.program_id(0) // H
    start, n = sequence_bounds(cu_seqlens, i_sequence, T)
    STRIDE: tl.constexpr = 2 * H * D
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, D)
    o_row = i_sequence.to(tl.int64) * (H * D) + i_head * D + o_d
    b_q = tl.load(q + o_row).to(tl.float32) * scale2
    p_k = kv + start.to(tl.int64) * STRIDE + i_head * D + o_n[:, None] * STRIDE + o_d[None, :]

    # Not -inf, which a block of -inf scores would subtract from itself.
    row_max = -1.0e38
    row_sum = 0.0
    acc = tl.zeros((D,), tl.float32)
    for o_block in tl.range(0, n, BN):
        m_n = o_block + o_n < n
        p_block = p_k + tl.cast(o_block, tl.int64) * STRIDE
        b_k = tl.load(p_block, mask=m_n[:, None], other=0.0).to(tl.float32)
        b_v = tl.load(p_block + H * D, mask=m_n[:, None], other=0.0).to(tl.float32)
        scores = tl.where(m_n, tl.sum(b_k * b_q[None, :], 1), float("-inf"))
        new = tl.maximum(row_max, tl.max(scores, 0))
        probs = tl.math.exp2(scores - new)
        rescale = tl.math.exp2(row_max - new)
        row_sum = row_sum * rescale + tl.sum(probs, 0)
        acc = acc * rescale + tl.sum(probs[:, None] * b_v, 0)
        row_max = new
    acc = acc / tl.where(row_sum == 0.0, 1.0, row_sum)
    tl.store(context + o_row, acc.to(context.dtype.element_ty))


def configuration(D: int) -> Configuration:
    """Blocks of 4,096 numbers of keys and 4,096 of values, across 4 warps."""
    return Configuration({"BN": 4096 // D}, num_warps=4, num_stages=2)


def grid(B: int, H: int) -> tuple[int, ...]:
    """All on axis x: the number of sequences may exceed what the other axes allow."""
    return (B * H,)


def variants(target: str) -> Iterator[Variant]:
    """The kernel at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for H, D in ((12, 64), (16, 64)):
            chosen = configuration(D)
            tensors = dict.fromkeys(("q", "kv", "context"), f"*{kind}")
            yield Variant(
                operation="first_token_attention",
                dtype=name_of(dtype),
                label=f"H={H} D={D}",
                kernel=first_token_attention_kernel,
                signature={**tensors, "cu_seqlens": "*i32", "T": "i32", "scale2": "fp32"},
                constants={"H": H, "D": D, **chosen.blocks},
                configuration=chosen,
                tile=chosen.blocks["BN"] * D,
                loop=True,
            )


@torch.library.custom_op("ernie_m::first_token_attention", mutates_args=())
def _first_token_attention(q: Tensor, kv: Tensor, cu_seqlens: Tensor) -> Tensor:
    (B, H, D), T = q.shape, kv.shape[0]
    if not (runs_triton(q) and D in HEAD_SIZES):
        return plain_first_token_attention(q, kv, cu_seqlens)
    context = torch.empty_like(q, memory_format=torch.contiguous_format)
    if context.numel():
        chosen = configuration(D)
        launch(
            first_token_attention_kernel,
            grid(B, H),
            q,
            *(q.contiguous(), kv.contiguous(), cu_seqlens.contiguous(), context, T, LOG2_E / math.sqrt(D)),
            H=H,
            D=D,
            **chosen.blocks,
            **chosen.options,
        )
    return context


@_first_token_attention.register_fake
def _(q: Tensor, kv: Tensor, cu_seqlens: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def plain_first_token_attention(q: Tensor, kv: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The same in plain torch, differentiable: each key is scored by its own query, and sums run over each sequence."""
    (B, H, D), T = q.shape, kv.shape[0]
    wide = wide_dtype(q)
    own = sequence_of_tokens(cu_seqlens, T)
    k, v = kv.to(wide).unbind(1)  # (T, H, D)
    scores = (q.to(wide)[own] * k).sum(-1) / math.sqrt(D)  # (T, H)
    # Subtracting the row maximum keeps exp from overflowing; it cancels, so it needs no gradient.
    rows = own[:, None].expand(T, H)
    row_max = scores.new_full((B, H), float("-inf")).scatter_reduce(0, rows, scores.detach(), "amax")
    weights = (scores - row_max[own]).exp()
    row_sum = weights.new_zeros(B, H).index_add(0, own, weights)
    context = weights.new_zeros(B, H, D).index_add(0, own, weights[..., None] * v)
    return (context / row_sum.masked_fill(row_sum == 0.0, 1.0)[..., None]).to(q.dtype)


@torch.library.custom_op("ernie_m::first_token_attention_vjp", mutates_args=())
def _first_token_attention_vjp(d_context: Tensor, q: Tensor, kv: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    return first_token_attention_backward(*(x.contiguous() for x in (d_context, q, kv, cu_seqlens)))


@_first_token_attention_vjp.register_fake
def _(d_context: Tensor, q: Tensor, kv: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    dq, dkv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, kv))
    return dq, dkv


refuse_second_derivatives(_first_token_attention_vjp)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_context: Tensor) -> tuple[Tensor, Tensor, None]:
    dq, dkv = _first_token_attention_vjp(d_context, *ctx.saved_tensors)
    return dq, dkv, None


_first_token_attention.register_autograd(_backward, setup_context=_keep)


def _plain(q: Tensor, kv: Tensor) -> bool:
    """Whether to compute in plain torch; without a kernel for the size of heads, the operation has no backward."""
    return wants_plain(q, kv, differentiable=runs_triton(q) and q.shape[-1] in HEAD_SIZES)


def first_token_attention_unchecked(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor
) -> Tensor:  # (B, H, D), (T, 2, H, D), (B + 1,) -> (B, H, D)
    """`first_token_attention` for callers that have checked the arguments."""
    function = plain_first_token_attention if _plain(q, kv) else _first_token_attention
    return function(q, kv, cu_seqlens)


def first_token_attention(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, validate: bool = False
) -> Tensor:  # (B, H, D), (T, 2, H, D), (B + 1,) -> (B, H, D)
    """Attend from query b to the keys of sequence b, rows cu_seqlens[b] to cu_seqlens[b+1] of `kv`.

    An empty sequence returns 0. `validate`: also check the values of `cu_seqlens` on a GPU, which synchronises.
    Raises TypeError or ValueError, naming the argument, the value and what was expected.
    """
    check_floats(kv=kv, q=q)
    _check(q, kv, cu_seqlens, validate)
    return first_token_attention_unchecked(q, kv, cu_seqlens)


def first_token_attention_vjp(
    d_context: Tensor, q: Tensor, kv: Tensor, cu_seqlens: Tensor, validate: bool = False
) -> tuple[Tensor, Tensor]:  # (B, H, D) x 2, (T, 2, H, D), (B + 1,) -> (B, H, D), (T, 2, H, D)
    """The gradients of q and kv, if `d_context` is that of `first_token_attention`; an empty sequence's query gets 0.

    The other arguments, and errors, are those of `first_token_attention`.
    """
    check_floats(kv=kv, q=q, d_context=d_context)
    _check(q, kv, cu_seqlens, validate)
    check_shape("d_context", d_context, tuple(q.shape), "the shape of q")
    if not _plain(q, kv) and runs_triton(q) and q.shape[-1] in HEAD_SIZES:
        dq, dkv = _first_token_attention_vjp(d_context, q, kv, cu_seqlens)
        return dq, dkv
    with torch.enable_grad():
        x, y = (x if x.requires_grad else x.detach().requires_grad_() for x in (q, kv))
        context = plain_first_token_attention(x, y, cu_seqlens)
        create_graph = q.requires_grad or kv.requires_grad
        dq, dkv = torch.autograd.grad(context, (x, y), d_context, create_graph=create_graph)
    return dq, dkv


def _check(q: Tensor, kv: Tensor, cu_seqlens: Tensor, validate: bool) -> None:
    """Check what the operation and its vjp share."""
    check_shape("kv", kv, (None, 2, None, None), "(T, 2, H, D)")
    check_integers("cu_seqlens", cu_seqlens, (torch.int32,))
    check_device("cu_seqlens", cu_seqlens, "kv", kv)
    check_cu_seqlens(cu_seqlens, kv.shape[0], should_validate(kv, validate))
    check_shape("q", q, (cu_seqlens.shape[0] - 1, *kv.shape[2:]), "(B, H, D)")

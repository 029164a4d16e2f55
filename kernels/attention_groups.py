"""Attention between ranges of tokens, of which some also see themselves: for CAMLM and for plain packed sequences.

    groups (G, 5)    q0, q1, first, k0, k1:  queries q0 to q1 see keys k0 to k1, and from row `first` on also themselves

As in attention.py, a block of queries walks over the keys with an online softmax, and no score of a whole block needs a
mask. A row that sees itself starts from its own score instead of from nothing:

    row_max, row_sum, acc = q·k of itself, 1, its own v        else -inf, 0, 0

So the rule of CAMLM costs no more per score than plain attention, and only the scores that it allows are computed: with
15 % masked, 43 % of the square.

Grid: one program per block of BM queries, group and head.

Twin: reference/attention_groups.py. The arrangement of tokens is that of `objectives.arrange`. The gradient is an
operation of its own, in attention_groups_vjp.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ernie_m.reference.attention_groups import check_groups

from .attention import LN_2, attend_to_block, configuration, mark_past
from .attention_groups_backward import group_bounds
from .runtime.arguments import check_count, check_device, check_floats, check_integers, check_shape
from .runtime.dispatch import should_validate, wants_plain
from .runtime.dtypes import TRITON_TYPES, name_of, widen
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant, target_of
from .sequences import HEAD_SIZES, LOG2_E

# Longer than any block, so that configurations are those with a loop.
LONG = 512


@triton.jit
def group_attention_kernel(
    qkv, groups, context, lse, T, scale2, BLOCKS,
    H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # (T, 3, H, D), (G, 5) -> (T, H, D), (H, T)  # fmt: skip
    """One of the BLOCKS blocks of one group's queries, in one head; `scale2` is log2(e)/√D."""
    i_block = tl.program_id(0) % BLOCKS
    i_row = tl.program_id(0) // BLOCKS
    i_head = i_row % H
    q0, q1, first, k0, k1 = group_bounds(groups, i_row // H, T)
    n = k1 - k0
    if q0 + i_block * BM < q1:
        STRIDE: tl.constexpr = 3 * H * D
        o_m = q0 + i_block * BM + tl.arange(0, BM)
        o_n = tl.arange(0, BN)
        o_d = tl.arange(0, D)
        m_m = o_m < q1
        p_q = qkv + i_head * D + o_m[:, None].to(tl.int64) * STRIDE + o_d[None, :]
        q = tl.load(p_q, mask=m_m[:, None], other=0.0)
        m_own = m_m & (o_m >= first)
        own_k = tl.load(p_q + H * D, mask=m_own[:, None], other=0.0).to(tl.float32)
        row_max = tl.where(m_own, tl.sum(q.to(tl.float32) * own_k, 1) * scale2, float("-inf"))
        row_sum = tl.where(m_own, 1.0, 0.0)
        acc = tl.load(p_q + 2 * H * D, mask=m_own[:, None], other=0.0).to(tl.float32)
        p_k = qkv + k0.to(tl.int64) * STRIDE + (H + i_head) * D + o_n[None, :] * STRIDE + o_d[:, None]
        p_v = qkv + k0.to(tl.int64) * STRIDE + (2 * H + i_head) * D + o_n[:, None] * STRIDE + o_d[None, :]
        whole = n // BN * BN
        for _ in tl.range(0, whole, BN):
            b_k = tl.load(p_k)
            b_v = tl.load(p_v)
            p_k += BN * STRIDE
            p_v += BN * STRIDE
            row_max, row_sum, acc = attend_to_block(
                q, b_k, b_v, row_max, row_sum, acc, o_n < BN, scale2, 0, 0, 0.0, False, False
            )
        if whole < n:
            m_n = whole + o_n < n
            b_k = tl.load(p_k, mask=m_n[None, :], other=0.0)
            b_v = tl.load(p_v, mask=m_n[:, None], other=0.0)
            row_max, row_sum, acc = attend_to_block(
                q, b_k, b_v, row_max, row_sum, acc, m_n, scale2, 0, 0, 0.0, True, False
            )
        # A row that sees nothing is 0, and its log-sum-exp -inf.
        row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)
        acc = acc / row_sum[:, None]
        p_out = context + o_m[:, None].to(tl.int64) * (H * D) + i_head * D + o_d[None, :]
        tl.store(p_out, acc.to(context.dtype.element_ty), mask=m_m[:, None])
        tl.store(lse + i_head.to(tl.int64) * T + o_m, (row_max + tl.math.log2(row_sum)) * LN_2, mask=m_m)
    if i_block == BLOCKS - 1:
        mark_past(context, lse, q0, BLOCKS * BM, q1 - q0, i_head, T, H, D)


def variants(target: str) -> Iterator[Variant]:
    """The kernel for 12 heads of 64 (base) and 16 of 64 (large)."""
    for dtype, kind in TRITON_TYPES.items():
        signature = {"qkv": f"*{kind}", "groups": "*i32", "context": f"*{kind}", "lse": "*fp32"}
        signature |= {"T": "i32", "scale2": "fp32", "BLOCKS": "i32"}
        sizes = chosen(target, dtype, 64)
        for H in (12, 16):
            described = ("group_attention", name_of(dtype), f"H={H} D=64", group_attention_kernel, signature)
            constants, tile = {"H": H, "D": 64, **sizes.blocks}, sizes.blocks["BM"] * sizes.blocks["BN"]
            yield Variant(*described, constants, sizes, tile=tile, loop=True)


def chosen(target: str, dtype: torch.dtype, D: int) -> Configuration:
    """The sizes of packed attention with a loop."""
    sizes = configuration(target, dtype, D, LONG)
    return replace(sizes, blocks={name: sizes.blocks[name] for name in ("BM", "BN")})


def plain_group_attention(qkv: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:  # -> (T, H, D), (H, T)
    """The same in plain torch, differentiable, group by group; half precision is computed in float32."""
    q, k, v = widen(qkv).permute(1, 2, 0, 3).unbind(0)  # (H, T, D)
    context, lse = torch.zeros_like(q), torch.full_like(q[..., 0], -math.inf)
    for q0, q1, first, k0, k1 in groups.tolist():
        rows = q[:, q0:q1] / math.sqrt(q.shape[-1])
        own = (rows * k[:, q0:q1]).sum(-1, keepdim=True)
        alone = torch.arange(q0, q1, device=q.device)[:, None] < first
        scores = torch.cat([rows @ k[:, k0:k1].transpose(1, 2), own.masked_fill(alone, -math.inf)], dim=-1)
        # A row that sees nothing would have nan, and a gradient of nan.
        nothing = alone & (k0 == k1)
        probs = scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
        found = probs[..., :-1] @ v[:, k0:k1] + probs[..., -1:] * v[:, q0:q1]
        context = torch.cat([context[:, :q0], found, context[:, q1:]], dim=1)
        lse = torch.cat([lse[:, :q0], scores.detach().logsumexp(-1), lse[:, q1:]], dim=1)
    return context.transpose(0, 1).to(qkv.dtype), lse


@torch.library.custom_op("ernie_m::group_attention", mutates_args=())
def _group_attention(qkv: Tensor, groups: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    T, _, H, D = qkv.shape
    qkv, groups = qkv.contiguous(), groups.contiguous()
    # Rows of no group are 0.
    context = torch.zeros(T, H, D, dtype=qkv.dtype, device=qkv.device)
    lse = torch.full((H, T), -math.inf, dtype=torch.float32, device=qkv.device)
    if T and len(groups):
        sizes = chosen(target_of(qkv.device), qkv.dtype, D)
        BLOCKS = max(-(-longest // sizes.blocks["BM"]), 1)
        arguments = (qkv, groups, context, lse, T, LOG2_E / math.sqrt(D), BLOCKS)
        grid = (len(groups) * H * BLOCKS,)
        launch(group_attention_kernel, grid, qkv, *arguments, H=H, D=D, **sizes.blocks, **sizes.options)
    return context, lse


@_group_attention.register_fake
def _(qkv: Tensor, groups: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    T, _, H, D = qkv.shape
    return qkv.new_empty(T, H, D), qkv.new_empty(H, T, dtype=torch.float32)


def check_arguments(qkv: Tensor, groups: Tensor, longest: int | None, validate: bool) -> int:
    """The length of the longest range, read from `groups` if it is None.

    Raises TypeError or ValueError, naming the argument, the value and what was expected.
    """
    check_shape("qkv", qkv, (None, 3, None, None), "(T, 3, H, D)")
    check_integers("groups", groups, (torch.int32,))
    check_shape("groups", groups, (None, 5), "(G, 5)")
    check_device("groups", groups, "qkv", qkv)
    if should_validate(qkv, validate):
        check_groups(groups.numpy(force=True), len(qkv))
    if longest is None:
        ends = groups[:, [1, 4]] - groups[:, [0, 3]]
        longest = int(ends.max()) if len(groups) else 0
    return check_count("longest", longest)


def group_attention(
    qkv: Tensor, groups: Tensor, longest: int | None = None, validate: bool = False
) -> Tensor:  # (T, 3, H, D), (G, 5) -> (T, H, D)
    """The context of each row; 0 for rows that see nothing or are in no group.

    groups: (G, 5) int32: q0, q1, first, k0, k1. Each row is a query of one group at most, and a key of one group or of
        itself.
    longest: at least the length of the longest range, of queries or keys; in a kernel, what is past it gets nan. By
        default it is read from `groups`, which synchronises.
    validate: also check the values of `groups` on a GPU, which synchronises.

    Raises TypeError or ValueError, naming the argument, the value and what was expected.
    """
    check_floats(qkv=qkv)
    longest = check_arguments(qkv, groups, longest, validate)
    if wants_plain(qkv, differentiable=True) or qkv.shape[-1] not in HEAD_SIZES:
        return plain_group_attention(qkv, groups)[0]
    context, _ = _group_attention(qkv, groups, longest)
    return context

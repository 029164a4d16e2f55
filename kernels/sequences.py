"""What the attention kernels share: where a sequence lies among packed tokens, random bits, sizes and checks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dropout import bits_of
from .padding import check_cu_seqlens, check_max_seqlen
from .runtime.arguments import check_count, check_device, check_integers, check_shape
from .runtime.dispatch import should_validate
from .runtime.optional_triton import tl, triton

HEAD_SIZES = (16, 32, 64, 128)
LOG2_E = math.log2(math.e)


@triton.jit
def sequence_bounds(cu_seqlens, i_sequence, T):
    """Start and length of a sequence, clamped to [0, T], so that a wrong value never becomes a stray address."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + i_sequence), 0), T)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + i_sequence + 1), start), T)
    return start, end - start


@triton.jit
def probability_bits(seed, tokens, first, i_head, BN: tl.constexpr):  # (), (BM,) -> (BM, BN) uint32
    """The random bits of the probabilities of BM queries and of the keys from the `first` on, a multiple of 4."""
    groups = first // 4 + tl.arange(0, BN // 4)
    return bits_of(seed, tokens[:, None], groups[None, :], i_head.to(tl.uint32))


def check_arguments(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int | None, validate: bool) -> int:
    """Check what the operation and its vjp share; returns the length of the longest sequence."""
    check_shape("qkv", qkv, (None, 3, None, None), "(T, 3, H, D)")
    validate = should_validate(qkv, validate)
    check_integers("cu_seqlens", cu_seqlens, (torch.int32,))
    check_device("cu_seqlens", cu_seqlens, "qkv", qkv)
    check_cu_seqlens(cu_seqlens, qkv.shape[0], validate)
    if max_seqlen is None:
        return int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0
    max_seqlen = check_count("max_seqlen", max_seqlen)
    if validate:
        check_max_seqlen(cu_seqlens, max_seqlen)
    return max_seqlen

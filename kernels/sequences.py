"""What the attention kernels share: where a sequence lies among packed tokens, and the sizes of heads they take."""

from __future__ import annotations

import math

from .runtime.optional_triton import tl, triton

HEAD_SIZES = (16, 32, 64, 128)
LOG2_E = math.log2(math.e)


@triton.jit
def sequence_bounds(cu_seqlens, i_sequence, T):
    """Start and length of a sequence, clamped to [0, T], so that a wrong value never becomes a stray address."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + i_sequence), 0), T)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + i_sequence + 1), start), T)
    return start, end - start

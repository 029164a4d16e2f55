"""Logits become their own gradient, in place: the kernel of `linear_cross_entropy.py`, and the same in plain torch.

    dz = (softmax(z) − one-hot label) · scale

Grid: one program per row, which reads the row twice: for the maximum and the sum, then for the gradient.

A vocabulary of 250,002 words is no multiple of a vector load. So a row is read and written up to its stride, which is
one, and not to its last word; what follows that word is taken for -inf, and becomes 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .runtime.dispatch import runs_triton
from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant

# In plain torch, softmax for rows of this many logits together, or one row: what is widened to float32 stays small.
LOGITS = 2**19


@triton.jit
def cross_entropy_kernel(logits, labels, scales, losses, V, STRIDE, COLUMNS: tl.constexpr):
    # (N, STRIDE), (N,) x 2 -> (N,)
    """One row: its label's logit replaced by its loss times its scale; its logits by their gradient, then 0."""
    i_row = tl.program_id(0).to(tl.int64)
    p_row = logits + i_row * STRIDE
    label = tl.load(labels + i_row)
    scale = tl.load(scales + i_row)
    o_v = tl.arange(0, COLUMNS)
    row_max = float("-inf")
    row_sum = 0.0
    for start in tl.range(0, STRIDE, COLUMNS):
        z = tl.load(p_row + start + o_v, mask=start + o_v < STRIDE).to(tl.float32)
        z = tl.where(start + o_v < V, z, float("-inf"))
        new = tl.maximum(row_max, tl.max(z, 0))
        row_sum = row_sum * tl.exp(row_max - new) + tl.sum(tl.exp(z - new), 0)
        row_max = new
    lse = row_max + tl.log(row_sum)
    tl.store(losses + i_row, (lse - tl.load(losses + i_row)) * scale)
    for start in tl.range(0, STRIDE, COLUMNS):
        m_v = start + o_v < STRIDE
        z = tl.load(p_row + start + o_v, mask=m_v).to(tl.float32)
        z = tl.where(start + o_v < V, z, float("-inf"))
        gradient = (tl.exp(z - lse) - tl.where(start + o_v == label, 1.0, 0.0)) * scale
        tl.store(p_row + start + o_v, gradient.to(logits.dtype.element_ty), mask=m_v)


def configuration() -> Configuration:
    """Logits of a step, and warps; the same for every size of vocabulary."""
    return Configuration({"COLUMNS": 4096}, num_warps=16)


def variants(target: str) -> Iterator[Variant]:
    """The kernel, which is the same for every size of vocabulary."""
    chosen = configuration()
    for dtype, kind in TRITON_TYPES.items():
        signature = {"logits": f"*{kind}", "labels": "*i64", "scales": "*fp32", "losses": "*fp32"}
        signature |= {"V": "i32", "STRIDE": "i32"}
        described = ("linear_cross_entropy_vjp", name_of(dtype), "rows", cross_entropy_kernel, signature)
        aligned = ("logits", "labels", "scales", "losses", "STRIDE")
        yield Variant(*described, chosen.blocks, chosen, tile=chosen.blocks["COLUMNS"], loop=True, aligned=aligned)


def cross_entropy_in_place(logits: Tensor, labels: Tensor, scales: Tensor) -> Tensor:  # (N, V), (N,) x 2 -> (N,)
    """The rows' losses times their scales, in the dtype of these; `logits` become their gradient.

    The kernel writes 0 between the rows, if they are not contiguous.
    """
    # The labels' logits, in a read of their own: in the kernel it would be one of 2 bytes.
    losses = logits.gather(1, labels[:, None])[:, 0].to(scales.dtype)
    if runs_triton(logits):
        arguments = (logits, labels, scales, losses, logits.shape[1], logits.stride(0))
        chosen = configuration()
        launch(cross_entropy_kernel, (len(logits),), logits, *arguments, **chosen.blocks, **chosen.options)
        return losses
    size = max(1, LOGITS // logits.shape[1])
    for start in range(0, len(logits), size):
        rows = logits[start : start + size]
        own, scale = labels[start : start + size, None], scales[start : start + size, None]
        z = rows.to(losses.dtype)
        lse = z.logsumexp(dim=1, keepdim=True)
        losses[start : start + size] = (lse[:, 0] - losses[start : start + size]) * scale[:, 0]
        z.sub_(lse).exp_().scatter_add_(1, own, torch.full_like(lse, -1.0))
        rows.copy_(z.mul_(scale))
    return losses

"""The loss of a large vocabulary: a linear map and a cross-entropy together, without keeping the logits.

    loss = Σ over rows that count of (logsumexp(z) − z[label]) / n,    z = h Wᵀ + b        or Σ w (...) / Σ w

With 250,002 words, the logits of a few thousand rows are gigabytes, and autograd would keep them, their softmax and
their gradient. Here rows are computed in a few chunks. A chunk's logits become their own gradient in place,

    dz = (softmax(z) − one-hot label) / n

and are at once reduced to dh = dz W, dW += dzᵀ h and db += Σ dz, the latter two in float32. The gradients are ready
when the loss is; the backward pass only multiplies them by the loss's own. Rows without a label are never computed.

A row of logits begins at a multiple of 128 numbers, so that products and vector loads stay aligned although the
vocabulary's size is not a multiple of 8.

Grid of the kernel: one program per row, which reads the row twice: for the maximum and the sum, then for the gradient.

Source: the idea of fusing the two is that of Cut Your Losses (Wijmans et al., arXiv:2411.09009) and of Liger Kernel's
`fused_linear_cross_entropy`. Twin: reference/losses.py, `cross_entropy`, after `linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ernie_m.reference.losses import IGNORE_INDEX

from .runtime.arguments import check_count, check_floats, check_integers, check_shape
from .runtime.dispatch import runs_triton
from .runtime.dtypes import wide_dtype
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton

ALIGNMENT = 128
# Logits of a chunk take at most this much memory, unless the caller chooses the number of chunks.
BUDGET = 2 * 2**30
BLOCK = 4096
# The table's gradient is accumulated for this many words at a time, and in plain torch softmax for rows of this many
# logits together, or one row: what is widened to float32 in between stays small.
WORDS, LOGITS = 16384, 2**19


@triton.jit
def cross_entropy_kernel(logits, labels, scales, losses, V, STRIDE, BLOCK: tl.constexpr):
    # (N, STRIDE), (N,) x 2 -> (N,)
    """One row: its loss times its scale, and its logits replaced by their gradient."""
    i_row = tl.program_id(0).to(tl.int64)
    p_row = logits + i_row * STRIDE
    label = tl.load(labels + i_row)
    scale = tl.load(scales + i_row)
    o_v = tl.arange(0, BLOCK)
    row_max = float("-inf")
    row_sum = 0.0
    for start in tl.range(0, V, BLOCK):
        z = tl.load(p_row + start + o_v, mask=start + o_v < V, other=float("-inf")).to(tl.float32)
        new = tl.maximum(row_max, tl.max(z, 0))
        row_sum = row_sum * tl.exp(row_max - new) + tl.sum(tl.exp(z - new), 0)
        row_max = new
    lse = row_max + tl.log(row_sum)
    tl.store(losses + i_row, (lse - tl.load(p_row + label).to(tl.float32)) * scale)
    # Every thread has to have read the label's logit before one replaces it.
    tl.debug_barrier()
    for start in tl.range(0, V, BLOCK):
        m_v = start + o_v < V
        z = tl.load(p_row + start + o_v, mask=m_v, other=float("-inf")).to(tl.float32)
        gradient = (tl.exp(z - lse) - tl.where(start + o_v == label, 1.0, 0.0)) * scale
        tl.store(p_row + start + o_v, gradient.to(logits.dtype.element_ty), mask=m_v)


def cross_entropy_in_place(logits: Tensor, labels: Tensor, scales: Tensor) -> Tensor:  # (N, V), (N,) x 2 -> (N,)
    """The rows' losses times their scales, in the dtype of these; `logits` become their gradient."""
    losses = torch.empty_like(scales)
    if runs_triton(logits):
        arguments = (logits, labels, scales, losses, logits.shape[1], logits.stride(0))
        launch(cross_entropy_kernel, (len(logits),), logits, *arguments, BLOCK=BLOCK, num_warps=16)
        return losses
    size = max(1, LOGITS // logits.shape[1])
    for start in range(0, len(logits), size):
        rows = logits[start : start + size]
        own, scale = labels[start : start + size, None], scales[start : start + size, None]
        z = rows.to(losses.dtype)
        lse = z.logsumexp(dim=1, keepdim=True)
        losses[start : start + size] = ((lse - z.gather(1, own)) * scale)[:, 0]
        z.sub_(lse).exp_().scatter_add_(1, own, torch.full_like(lse, -1.0))
        rows.copy_(z.mul_(scale))
    return losses


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, scales: Tensor, chunks: int
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:  # (N, E), (V, E), (V,), (N,) x 2 -> (), ((N, E), (V, E), (V,))
    """The loss, and the gradients of the first three; those of the table and the bias in float32 or float64."""
    N, V = len(hidden), len(weight)
    wide = wide_dtype(weight)
    d_hidden = torch.empty_like(hidden)
    d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
    d_bias = torch.zeros(V, dtype=wide, device=weight.device)
    loss = torch.zeros((), dtype=wide, device=weight.device)
    size = max(1, -(-N // chunks))
    buffer = hidden.new_empty(min(size, N), -(-V // ALIGNMENT) * ALIGNMENT)
    for start in range(0, N, size):
        rows = slice(start, min(start + size, N))
        logits = buffer[: rows.stop - rows.start, :V]
        torch.addmm(bias, hidden[rows], weight.T, out=logits)
        loss += cross_entropy_in_place(logits, labels[rows], scales[rows]).sum()
        torch.mm(logits, weight, out=d_hidden[rows])
        for first in range(0, V, WORDS):
            words = slice(first, first + WORDS)
            d_weight[words] += logits[:, words].T @ hidden[rows]
            d_bias[words] += logits[:, words].sum(dim=0, dtype=wide)
    return loss, (d_hidden, d_weight, d_bias)


class _LinearCrossEntropy(Function):
    """Loss and gradients of rows that all count."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        scales: Tensor,
        chunks: int,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            ctx.dtypes = (hidden.dtype, weight.dtype, bias.dtype)
            hidden, weight, bias = (x.to(dtype) for x in (hidden, weight, bias))
            loss, ctx.gradients = _loss_and_gradients(hidden, weight, bias, labels, scales, chunks)
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy: expected one backward pass: its gradients are scaled in place")
        if torch.is_grad_enabled():
            raise RuntimeError("linear_cross_entropy: expected no derivative of its gradient, which is not implemented")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (g.mul_(d_loss).to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))
        return (*scaled, None, None, None, None)


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the products and logits: that of `weight`; under autocast to bfloat16, for float32, bfloat16.

    Not float16: gradients of the logits are computed before a gradient scaler's factor is known, and divided by the
    number of rows, so most would be below float16's smallest number.
    """
    device = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.bfloat16 if torch.get_autocast_dtype(device) == torch.bfloat16 else torch.float32
    return weight.dtype


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    chunks: int | None = None,
    count: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:  # (N, E), (V, E), (V,), (N,) -> ()
    """The mean cross-entropy of `linear(hidden)` over the rows whose label is not -100; nan if there are none.

    chunks: how many parts the rows are computed in; by default as many as keep a part's logits below 2 GiB.
    count: what the sum is divided by instead of the number of those rows, for one process of several.
    weights: (N,) numbers of at least 0; the sum is that of w · cross-entropy, divided by Σ w unless `count` is given.

    The loss is float32, or float64 for float64. Under autocast, products and logits have the `product_dtype`. The
    gradients are computed with the loss; one backward pass is possible. Raises TypeError or ValueError, naming the
    argument.
    """
    check_floats(hidden=hidden)
    check_floats(weight=weight)
    dtype = product_dtype(weight)
    if torch.is_autocast_enabled(weight.device.type):
        # What precedes this may be in half precision then.
        hidden = hidden.to(weight.dtype)
    check_floats(hidden=hidden, weight=weight, bias=bias)
    check_integers("labels", labels, (torch.int64, torch.int32))
    check_shape("hidden", hidden, (None, None), "(N, E)")
    check_shape("weight", weight, (None, hidden.shape[1]), "(V, E)")
    check_shape("bias", bias, (len(weight),), "(V,)")
    check_shape("labels", labels, (len(hidden),), "(N,)")
    rows = (labels != IGNORE_INDEX).nonzero()[:, 0]
    labels = labels[rows].long()
    wrong = labels[(labels < 0) | (labels >= len(weight))]
    if len(wrong):
        raise ValueError(f"labels: expected values in [0, {len(weight)}) or {IGNORE_INDEX}, got {int(wrong[0])}")
    scales = torch.ones(len(rows), dtype=wide_dtype(weight), device=weight.device)
    if weights is not None:
        check_shape("weights", weights, (len(hidden),), "(N,)")
        scales = weights[rows].to(scales.dtype)
    # Weights are read on the host only where there are any.
    if not len(rows) or (weights is not None and not scales.any()):
        return hidden.sum() * 0.0 + weight.sum() * 0.0 + bias.sum() * 0.0 + float("nan")
    if chunks is None:
        chunks = -(-len(rows) * len(weight) * dtype.itemsize // BUDGET)
    loss: Tensor = _LinearCrossEntropy.apply(
        *(hidden[rows], weight, bias, labels),
        scales / (scales.sum() if count is None else count),
        check_count("chunks", chunks),
        dtype,
    )
    return loss

"""The loss of a large vocabulary: a linear map and a cross-entropy together, without keeping the logits.

    loss = Σ over rows that count of (logsumexp(z) − z[label]) / n,    z = h Wᵀ + b        or Σ w (...) / Σ w

With 250,002 words, the logits of a few thousand rows are gigabytes, and autograd would keep them, their softmax and
their gradient. Here rows are computed in a few chunks. A chunk's logits become their own gradient in place,

    dz = (softmax(z) − one-hot label) / n

and are at once reduced to dh = dz W, dW += dzᵀ h and db += Σ dz, the latter two in float32. The gradients are ready
when the loss is; the backward pass only multiplies them by the loss's own. Rows without a label are never computed.

A row of logits begins at a multiple of 128 numbers, so that products and vector loads stay aligned although the
vocabulary's size is not a multiple of 8.

`linear_cross_entropy_vjp` computes the same gradients for a cotangent that is known: it is part of the rows' scales, so
that nothing is multiplied after it was rounded.

Source: the idea of fusing the two is that of Cut Your Losses (Wijmans et al., arXiv:2411.09009) and of Liger Kernel's
`fused_linear_cross_entropy`. Twin: reference/linear_cross_entropy.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ernie_m.reference.losses import IGNORE_INDEX

from .linear_cross_entropy_backward import cross_entropy_in_place
from .linear_cross_entropy_backward import variants as variants
from .runtime.arguments import check_count, check_floats, check_integers, check_shape
from .runtime.dtypes import wide_dtype

ALIGNMENT = 128
# Logits of a chunk take at most this much memory, unless the caller chooses the number of chunks.
BUDGET = 2 * 2**30
# The table's gradient is accumulated for this many words at a time: what is widened to float32 in between stays small.
WORDS = 16384


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
    # oneDNN's product in bfloat16 reads past the end of a row, and a NaN there becomes one of the result.
    buffer[:, V:] = 0.0
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


def _counted(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, count: float | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:  # (N, E), (V, E), (V,), (N,) -> (M,) x 3
    """The rows that count, their labels, and what each is multiplied by; no rows if they weigh nothing together.

    Raises TypeError or ValueError, naming the argument.
    """
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
        if not scales.any():
            return rows[:0], labels[:0], scales[:0]
    return rows, labels, scales / (scales.sum() if count is None else count)


def _chunks(chunks: int | None, rows: int, weight: Tensor, dtype: torch.dtype) -> int:
    """How many parts the rows are computed in."""
    if chunks is None:
        chunks = -(-rows * len(weight) * dtype.itemsize // BUDGET)
    return int(check_count("chunks", chunks))


def _as_products(hidden: Tensor, weight: Tensor) -> tuple[Tensor, torch.dtype]:
    """`hidden` in the dtype of the weight, which autocast may have lowered, and the dtype of the products."""
    check_floats(hidden=hidden)
    check_floats(weight=weight)
    autocast = torch.is_autocast_enabled(weight.device.type)
    return hidden.to(weight.dtype) if autocast else hidden, product_dtype(weight)


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
    hidden, dtype = _as_products(hidden, weight)
    rows, labels, scales = _counted(hidden, weight, bias, labels, count, weights)
    if not len(rows):
        return hidden.sum() * 0.0 + weight.sum() * 0.0 + bias.sum() * 0.0 + float("nan")
    parts = _chunks(chunks, len(rows), weight, dtype)
    loss: Tensor = _LinearCrossEntropy.apply(hidden[rows], weight, bias, labels, scales, parts, dtype)
    return loss


def linear_cross_entropy_vjp(
    d_loss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    chunks: int | None = None,
    count: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (), (N, E), (V, E), (V,), (N,) -> (N, E), (V, E), (V,)
    """The gradients of `hidden`, `weight` and `bias`, if `d_loss` is that of `linear_cross_entropy` of the arguments.

    They are 0 if no row counts, and have no derivative. Raises TypeError or ValueError, naming the argument.
    """
    check_floats(d_loss=d_loss)
    check_shape("d_loss", d_loss, (), "()")
    with torch.no_grad():
        wide, dtype = _as_products(hidden, weight)
        rows, labels, scales = _counted(wide, weight, bias, labels, count, weights)
        d_hidden = torch.zeros_like(hidden)
        if not len(rows):
            return d_hidden, torch.zeros_like(weight), torch.zeros_like(bias)
        parts = _chunks(chunks, len(rows), weight, dtype)
        with torch.autocast(weight.device.type, enabled=False):
            given = (wide[rows].to(dtype), weight.to(dtype), bias.to(dtype))
            _, (d_rows, d_weight, d_bias) = _loss_and_gradients(*given, labels, scales * d_loss, parts)
        d_hidden[rows] = d_rows.to(hidden.dtype)
        return d_hidden, d_weight.to(weight.dtype), d_bias.to(bias.dtype)

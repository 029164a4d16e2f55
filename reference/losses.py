"""The training losses of the heads, each a mean over the targets that count.

    cross-entropy     −log softmax(logits)[target]
    binary            −t·log σ(x) − (1 − t)·log(1 − σ(x))  =  max(x, 0) − x·t + log(1 + e^{−|x|})
    squared error     (x − t)²

If no target counts, the loss is nan, as in torch, without a warning; its gradient is 0. float16 is computed in float32,
because the sum of a large vocabulary's exponentials, or of a batch's losses, would overflow.

Each `_vjp` takes the cotangent of the loss, a scalar: a loss is a mean, so a target that counts gets its share, d_loss
over the number of them, times

    cross-entropy     softmax(logits) − 1 at the target
    binary            σ(x) − t
    squared error     2 (x − t)

Source: torch.nn.CrossEntropyLoss, BCEWithLogitsLoss, MSELoss; transformers 4.40.2 for which head uses which.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .activations import sigmoid
from .array import Array
from .softmax import softmax

IGNORE_INDEX = -100


def mean_of(values: Array, counted: Array, weights: Array | None = None) -> Array:  # arrays of one shape -> ()
    """Mean of the values that count, weighted if there are weights; nan if none counts, or all weigh nothing."""
    if not counted.any() or (weights is not None and not weights[counted].any()):
        return np.asarray(np.nan, values.dtype)
    if weights is None:
        return np.asarray(values[counted].mean(), values.dtype)
    return np.asarray((weights * values)[counted].sum() / weights[counted].sum(dtype=values.dtype), values.dtype)


def log_softmax(logits: Array) -> Array:  # (..., C) -> (..., C)
    """log softmax(x) = x − max − log Σ e^{x − max}, which stays finite where the softmax underflows to 0."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(
    logits: Array, labels: Array, counted: Array | None = None, weights: Array | None = None
) -> Array:  # (N, C), (N,) x 3 -> ()
    """Mean over the rows whose label is not -100 (and where `counted` (N,) is True, if given).

    With `weights` (N,), Σ w · cross-entropy / Σ w over these rows.
    """
    if logits.dtype == np.float16:
        return cross_entropy(logits.astype(np.float32), labels, counted, weights).astype(np.float16)
    keep = labels != IGNORE_INDEX
    keep = keep if counted is None else keep & counted
    targets = np.where(keep, labels, 0)
    losses = -np.take_along_axis(log_softmax(logits), targets[:, None], axis=-1)[:, 0]
    return mean_of(losses, keep, weights)


def binary_cross_entropy(logits: Array, targets: Array, counted: Array | None = None) -> Array:  # (...), (...) -> ()
    """Mean binary cross-entropy with logits, over all elements or those where `counted` is True."""
    if logits.dtype == np.float16:
        return binary_cross_entropy(logits.astype(np.float32), targets, counted).astype(np.float16)
    losses = np.maximum(logits, 0.0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    return mean_of(losses, np.ones(losses.shape, bool) if counted is None else counted)


def squared_error(values: Array, targets: Array, counted: Array | None = None) -> Array:  # (...), (...) -> ()
    """Mean of (value − target)², over all elements or those where `counted` is True."""
    if values.dtype == np.float16:
        return squared_error(values.astype(np.float32), targets, counted).astype(np.float16)
    losses = np.square(values - targets)
    return mean_of(losses, np.ones(losses.shape, bool) if counted is None else counted)


def span_loss(logits: Array, positions: Array, valid: Array) -> Array:  # (B, S), (B,), (B, S) -> ()
    """Cross-entropy over the valid positions of a row. A target below 0 counts as 0.

    A target past the end of the row, or at an invalid position, is ignored. `logits` are `heads.padded_logit` where
    `valid` is False, so padding does not affect the softmax.
    """
    return cross_entropy(logits, *span_targets(positions, valid))


def span_targets(positions: Array, valid: Array) -> tuple[Array, Array]:  # (B,), (B, S) -> (B,), (B,)
    """Each row's target, a column of the row, and whether it counts."""
    B, S = valid.shape
    targets = np.maximum(positions, 0)
    inside = targets < S
    targets = np.where(inside, targets, 0)
    return targets, inside & valid[np.arange(B), targets]


def mean_of_vjp(
    d_loss: Array, counted: Array, dtype: Any, weights: Array | None = None
) -> Array:  # (), (...) x 2 -> (...)
    """d_loss / n for each of the n values that count, and 0 for the others; with weights, d_loss w / Σ w."""
    if weights is None:
        share = float(d_loss) / max(1, int(np.count_nonzero(counted)))
        return np.where(counted, share, 0.0).astype(dtype)
    total = float(weights[counted].sum(dtype=dtype))
    return np.where(counted, float(d_loss) / total * weights if total > 0 else 0.0, 0.0).astype(dtype)


def cross_entropy_vjp(
    d_loss: Array, logits: Array, labels: Array, counted: Array | None = None, weights: Array | None = None
) -> Array:  # (), (N, C), (N,) x 3 -> (N, C)
    """The gradient of the logits: (softmax − one-hot target) · d_loss / n, and 0 in rows that do not count.

    With weights, each row's w / Σ w takes the place of 1 / n.
    """
    if logits.dtype == np.float16:
        return cross_entropy_vjp(d_loss, logits.astype(np.float32), labels, counted, weights).astype(np.float16)
    keep = labels != IGNORE_INDEX
    keep = keep if counted is None else keep & counted
    d_logits = softmax(logits)
    d_logits[np.arange(len(labels)), np.where(keep, labels, 0)] -= 1.0
    share = mean_of_vjp(d_loss, keep, logits.dtype, weights)
    return np.where(keep[:, None], d_logits * share[:, None], 0.0).astype(logits.dtype, copy=False)


def binary_cross_entropy_vjp(
    d_loss: Array, logits: Array, targets: Array, counted: Array | None = None
) -> Array:  # (), (...), (...), (...) -> (...)
    """The gradient of the logits: (σ(x) − t) · d_loss / n, and 0 where nothing counts."""
    if logits.dtype == np.float16:
        return binary_cross_entropy_vjp(d_loss, logits.astype(np.float32), targets, counted).astype(np.float16)
    counted = np.ones(logits.shape, bool) if counted is None else counted
    return (sigmoid(logits) - targets) * mean_of_vjp(d_loss, counted, logits.dtype)


def squared_error_vjp(
    d_loss: Array, values: Array, targets: Array, counted: Array | None = None
) -> Array:  # (), (...), (...), (...) -> (...)
    """The gradient of the values: 2 (x − t) · d_loss / n, and 0 where nothing counts."""
    if values.dtype == np.float16:
        return squared_error_vjp(d_loss, values.astype(np.float32), targets, counted).astype(np.float16)
    counted = np.ones(values.shape, bool) if counted is None else counted
    return 2.0 * (values - targets) * mean_of_vjp(d_loss, counted, values.dtype)


def span_loss_vjp(
    d_loss: Array, logits: Array, positions: Array, valid: Array
) -> Array:  # (), (B, S), (B,), (B, S) -> (B, S)
    """The gradient of the logits: that of the cross-entropy, and 0 at positions that are not valid."""
    d_logits = cross_entropy_vjp(d_loss, logits, *span_targets(positions, valid))
    return np.where(valid, d_logits, 0.0).astype(logits.dtype, copy=False)

"""The training losses of the heads, each a mean over the targets that count.

    cross-entropy     −log softmax(logits)[target]
    binary            −t·log σ(x) − (1 − t)·log(1 − σ(x))  =  max(x, 0) − x·t + log(1 + e^{−|x|})
    squared error     (x − t)²

If no target counts, the loss is nan, as in torch, without a warning.

Source: torch.nn.CrossEntropyLoss, BCEWithLogitsLoss, MSELoss; transformers 4.40.2 for which head uses which.
"""

from __future__ import annotations

import numpy as np

from .array import Array

IGNORE_INDEX = -100


def mean_of(values: Array, counted: Array) -> Array:  # two arrays of one shape -> ()
    """Mean of the values that count; nan if none does."""
    if not counted.any():
        return np.asarray(np.nan, values.dtype)
    return np.asarray(values[counted].mean(), values.dtype)


def log_softmax(logits: Array) -> Array:  # (..., C) -> (..., C)
    """log softmax(x) = x − max − log Σ e^{x − max}, which stays finite where the softmax underflows to 0."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits: Array, labels: Array, counted: Array | None = None) -> Array:  # (N, C), (N,) -> ()
    """Mean over the rows whose label is not -100 (and where `counted` (N,) is True, if given)."""
    keep = labels != IGNORE_INDEX
    keep = keep if counted is None else keep & counted
    targets = np.where(keep, labels, 0)
    losses = -np.take_along_axis(log_softmax(logits), targets[:, None], axis=-1)[:, 0]
    return mean_of(losses, keep)


def binary_cross_entropy(logits: Array, targets: Array, counted: Array | None = None) -> Array:  # (...), (...) -> ()
    """Mean binary cross-entropy with logits, over all elements or those where `counted` is True."""
    losses = np.maximum(logits, 0.0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    return mean_of(losses, np.ones(losses.shape, bool) if counted is None else counted)


def squared_error(values: Array, targets: Array, counted: Array | None = None) -> Array:  # (...), (...) -> ()
    """Mean of (value − target)², over all elements or those where `counted` is True."""
    losses = np.square(values - targets)
    return mean_of(losses, np.ones(losses.shape, bool) if counted is None else counted)


def span_loss(logits: Array, positions: Array, valid: Array) -> Array:  # (B, S), (B,), (B, S) -> ()
    """Cross-entropy over the valid positions of a row. A target below 0 counts as 0.

    A target past the end of the row, or at an invalid position, is ignored. `logits` are `heads.padded_logit` where
    `valid` is False, so padding does not affect the softmax.
    """
    B, S = logits.shape
    targets = np.maximum(positions, 0)
    inside = targets < S
    targets = np.where(inside, targets, 0)
    return cross_entropy(logits, targets, inside & valid[np.arange(B), targets])

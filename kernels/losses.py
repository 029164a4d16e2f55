"""The losses that the heads are trained with. Each is a mean over the targets that count.

Nothing here branches on which targets count: the others are set to 0, so no value is read on the host. If no target
counts, the loss is nan. Half precision is computed in float32 and rounded at the end, but not under autocast, whose
losses are float32.

Twin: reference/losses.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ernie_m.reference.losses import IGNORE_INDEX

from .runtime.dispatch import autocasts
from .runtime.dtypes import widen


def mean_of(values: Tensor, counted: Tensor) -> Tensor:  # two tensors of one shape -> ()
    """Mean of the values that count; nan if none does. The others get no gradient."""
    return values.masked_fill(~counted, 0.0).sum() / counted.sum()


def _rounded(loss: Tensor, logits: Tensor) -> Tensor:  # () -> ()
    """The loss in the dtype of `logits`; under autocast as it is, for a gradient scaler could overflow float16."""
    return loss if autocasts(logits) else loss.to(logits.dtype)


def cross_entropy(logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:  # (N, C), (N,) -> ()
    """Mean over the rows whose label is not -100 (and that count, if `counted` (N,) is given)."""
    keep = labels != IGNORE_INDEX
    keep = keep if counted is None else keep & counted
    targets = labels.masked_fill(~keep, 0).to(torch.int64)
    losses = -widen(logits).log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    return _rounded(mean_of(losses, keep), logits)


def binary_cross_entropy(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:  # (...) x 3 -> ()
    """Mean binary cross-entropy with logits over all elements that count."""
    losses = F.binary_cross_entropy_with_logits(widen(logits), widen(targets), reduction="none")
    return _rounded(mean_of(losses, counted), logits)


def squared_error(values: Tensor, targets: Tensor, counted: Tensor) -> Tensor:  # (...) x 3 -> ()
    """Mean of (value − target)² over all elements that count."""
    return _rounded(mean_of((widen(values) - widen(targets)).square(), counted), values)


def span_loss(logits: Tensor, positions: Tensor, valid: Tensor) -> Tensor:  # (B, S), (B,), (B, S) -> ()
    """Cross-entropy over a row's valid positions. A target below 0 counts as 0.

    A target past the row or at padding is ignored.
    """
    targets = positions.clamp(min=0)
    inside = targets < logits.shape[1]
    targets = targets.masked_fill(~inside, 0).to(torch.int64)
    return cross_entropy(logits, targets, inside & valid.gather(1, targets[:, None])[:, 0])

"""The loss of a head that predicts words: a linear map to the vocabulary, then the cross-entropy of its logits.

    loss = mean over the rows that have a label of −log softmax(h Wᵀ + b)[label]

Both steps are pages of their own, `linear` and `losses`; here they are one function, as the kernels compute them. Rows
without a label, -100, are left out before anything is computed: they take no part, whatever they hold, and their
gradient is 0. Any other label that is no word is an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .array import Array, check_range
from .linear import linear, linear_vjp
from .losses import IGNORE_INDEX, cross_entropy, cross_entropy_vjp
from .parameters import Linear


def linear_cross_entropy(
    hidden: Array, weight: Array, bias: Array, labels: Array
) -> Array:  # (N, E), (V, E), (V,), (N,) -> ()
    """The mean cross-entropy over the rows whose label is not -100; nan if there are none."""
    rows = labelled(labels, len(weight))
    return cross_entropy(linear(hidden[rows], Linear(weight, bias)), labels[rows])


def linear_cross_entropy_vjp(
    d_loss: Any, hidden: Array, weight: Array, bias: Array, labels: Array
) -> tuple[Array, Array, Array]:  # (), (N, E), (V, E), (V,), (N,) -> (N, E), (V, E), (V,)
    """The gradients of `hidden`, `weight` and `bias`, given that of the loss; 0 if no row has a label."""
    rows, p = labelled(labels, len(weight)), Linear(weight, bias)
    logits = linear(hidden[rows], p)
    d_logits = cross_entropy_vjp(d_loss, logits, labels[rows])
    d_hidden = np.zeros_like(hidden)
    d_hidden[rows], d_p = linear_vjp(d_logits, hidden[rows], p)
    return d_hidden, d_p.weight, d_p.bias


def labelled(labels: Array, V: int) -> Array:  # (N,) -> (N,) bool
    """Which rows have a label. Raises ValueError for one that is neither -100 nor a word."""
    rows: Array = labels != IGNORE_INDEX
    check_range("labels", np.where(rows, labels, 0), V, "a vocabulary of {} words")
    return rows

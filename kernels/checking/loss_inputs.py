"""The inputs of the gradients of a linear map and a cross-entropy: drawn, fixed, and made at given sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ernie_m.reference.losses import IGNORE_INDEX

from .drawing import ROWS, SIZES, draw_numbers, pick
from .formats import Format
from .operation import Inputs, Normal

# Cotangents: that of a loss itself, of a share of one, and those of gradient scalers; some with a sign.
COTANGENTS = (1.0, 0.25, -3.0, 1024.0, 0.0)
WIDTHS = (1, 2, 7, 16, 65)
# The share of labels that are missing.
IGNORED = (0.5, 0.0, 0.85, 1.0)


def draw_loss_vjp(draw: Any, format: Format) -> Inputs:
    """Inputs of `linear_cross_entropy_vjp`: d_loss (), hidden (N, E), weight (V, E), bias (V,), labels (N,)."""
    N, V, E = pick(draw, ROWS), pick(draw, SIZES), pick(draw, WIDTHS)
    rng = np.random.default_rng(draw_seed(draw))
    shapes = {"hidden": (N, E), "weight": (V, E), "bias": (V,)}
    drawn = {name: draw_numbers(draw, format, shape, i, (0.0, 1.0)) for i, (name, shape) in enumerate(shapes.items())}
    # Mostly the last word, which a wrong mask loses; elsewhere any.
    words = np.where(rng.random(N) < 0.2, V - 1, rng.integers(0, V, N))
    labels = np.where(rng.random(N) < pick(draw, IGNORED), IGNORE_INDEX, words)
    return {"d_loss": np.asarray(pick(draw, COTANGENTS)), **drawn, "labels": labels}


def draw_seed(draw: Any) -> int:
    """A seed for what is not a float."""
    from hypothesis import strategies as st

    return int(draw(st.integers(0, 99)))


def loss_vjp(normal: Normal, rows: int, words: int, width: int, spread: float = 1.0, d_loss: float = 1.0) -> Inputs:
    """Inputs at given sizes, whose logits have about this standard deviation. Every third row has no label.

    Labels are drawn as the logits predict, so that p − 1, which is rounded, is not about -1 in every row.
    """
    hidden, weight = normal(rows, width), normal(words, width) * (spread / np.sqrt(width))
    bias = 0.5 * normal(words)
    logits = hidden @ weight.T + bias
    noise = -np.log(-np.log(np.random.default_rng(rows).random(logits.shape)))
    labels = np.where(np.arange(rows) % 3 == 0, IGNORE_INDEX, (logits + noise).argmax(-1))
    labels[-1] = words - 1
    return {"d_loss": np.asarray(d_loss), "hidden": hidden, "weight": weight, "bias": bias, "labels": labels}

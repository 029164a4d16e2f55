"""Operations that this model does not have, as examples of how to describe your own: each takes about ten lines.

    from ernie_m.kernels import check
    from ernie_m.kernels.checking.examples import RMS_NORM
    check(my_rms_norm, RMS_NORM)
    python -m ernie_m.kernels check my_file.py:my_rms_norm --op my_file.py:RMS_NORM

The definition is all there is to write: the bound comes from running it (`default_bounds`). Where the fastest way to
compute something is also the plainest in NumPy, write the plainest; the truth is computed in float64.

Sources: RMSNorm (Zhang, Sennrich, 2019), equation 4; RoFormer (Su et al., 2021), equation 34, with the halves of a head
as pairs, as in GPT-NeoX and LLaMA; Dropout (Srivastava et al., 2014), scaled at training time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .letters import Booleans, Made, drawn
from .operation import Operation, one_row


def rms_norm(x: Array, gamma: Array, eps: float) -> Array:  # (N, E), (E,) -> (N, E)
    """x / √(mean(x²) + ε) · γ."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * gamma


RMS_NORM = Operation(
    name="rms_norm",
    call="f(x, gamma, eps)",
    truth=rms_norm,
    # The largest is for half precision, in which 1e-5 only shows on small numbers.
    draw=drawn(x="N E", gamma="E", eps=(1e-2, 1e-5, 1e-12)),
    crop=one_row,
)


def rotary(x: Array, cos: Array, sin: Array) -> Array:  # (T, H, D), (T, D / 2) x 2 -> (T, H, D)
    """Rotate the pairs (i, i + D / 2) of each head by the token's angles."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def table(function: Any) -> Made:
    """The cosines or sines of all angles, for tokens at random positions; the same positions for both."""

    def make(rng: Any, T: int, D: int) -> Array:
        positions = np.random.default_rng(T).integers(1, 512, (T, 1))
        return np.asarray(function(positions * 1e4 ** (-np.arange(0, D, 2) / D)))

    return Made("T D", make)


ROTARY = Operation(
    name="rotary",
    call="f(x, cos, sin)",
    truth=rotary,
    draw=drawn(x="T H D", cos=table(np.cos), sin=table(np.sin)).sized(H=(1, 2, 12), D=(2, 64, 128)),
)


def masked_softmax(scores: Array, mask: Array) -> Array:  # (N, S) x 2 -> (N, S)
    """Softmax over the scores where `mask` is true; 0 elsewhere, and in rows where it never is."""
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return np.where(mask, weights / np.sum(weights, axis=-1, keepdims=True), 0.0)


MASKED_SOFTMAX = Operation(
    name="masked_softmax",
    call="f(scores, mask)",
    truth=masked_softmax,
    draw=drawn(scores="N S", mask=Booleans("N S")),
    crop=one_row,
)


def residual_dropout(x: Array, residual: Array, mask: Array, p: float) -> Array:  # (N, E) x 3 -> (N, E)
    """residual + x / (1 − p) where `mask` keeps a number."""
    return residual + np.where(mask, x / (1.0 - p), 0.0)


RESIDUAL_DROPOUT = Operation(
    name="residual_dropout",
    call="f(x, residual, mask, p)",
    truth=residual_dropout,
    draw=drawn(x="N E", residual="N E", mask=Booleans("N E"), p=(0.1, 0.5)),
    crop=one_row,
)
EXAMPLES = {x.name: x for x in (RMS_NORM, ROTARY, MASKED_SOFTMAX, RESIDUAL_DROPOUT)}

"""Gradient clipping: if all gradients together are longer than a limit, scale them down to it.

    norm = √(Σ g²), over every number of every parameter        g = g · min(1, limit / norm)

One bad batch then moves the parameters no further than an ordinary one, in its own direction.

Source: On the difficulty of training recurrent neural networks (Pascanu et al., 2013). Twin: torch's `clip_grad_norm_`;
both divide by norm + 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..array import Array


def global_norm(gradients: Mapping[str, Array]) -> float:
    """√(Σ g²) over all arrays, summed in float64."""
    return math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in gradients.values()))


def clip_by_global_norm(gradients: Mapping[str, Array], limit: float) -> tuple[dict[str, Array], float]:
    """The gradients, scaled down if their norm exceeds `limit`, and the norm before.

    Raises ValueError unless `limit` is positive, or if the norm is nan or infinite: no scaling mends that.
    """
    if not limit > 0:
        raise ValueError(f"limit: expected a positive number, got {limit}")
    norm = global_norm(gradients)
    if not math.isfinite(norm):
        bad = [path for path, g in gradients.items() if not np.isfinite(g).all()]
        raise ValueError(f"gradients: expected finite numbers, got a norm of {norm}; not finite: {', '.join(bad[:3])}")
    factor = min(1.0, limit / (norm + 1e-6))
    return {path: g * factor for path, g in gradients.items()} if factor < 1.0 else dict(gradients), norm

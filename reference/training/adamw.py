"""AdamW: gradient descent with momentum, each parameter's step scaled by the size of its recent gradients.

    m = β₁ m + (1 − β₁) g             a running mean of the gradient
    v = β₂ v + (1 − β₂) g²            and of its square
    θ = θ − η λ θ                     weight decay, independent of the gradient ("decoupled")
    θ = θ − η m̂ / (√v̂ + ε)            m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

Both means start at 0, which makes them too small at first; dividing by 1 − βᵗ, t the number of the step, corrects that.
So the first step moves a parameter by about η, whatever the size of its gradient, unless that is as small as ε.

Source: Decoupled Weight Decay Regularization (Loshchilov, Hutter, 2019), algorithm 2. Twin: torch.optim.AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..array import Array

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class AdamWState:
    """The number of steps taken, and the running means of each parameter's gradient and of its square."""

    step: int
    mean: Arrays
    square: Arrays


def adamw_start(parameters: Arrays) -> AdamWState:
    """The state before the first step.

    Raises TypeError for float16: steps would be lost in rounding. Train in float32 or float64.
    """
    for path, array in parameters.items():
        if array.dtype == np.float16:
            raise TypeError(f"parameters: {path}: expected float32 or float64, got float16")
    zeros = {path: np.zeros_like(array) for path, array in parameters.items()}
    return AdamWState(0, zeros, {path: np.zeros_like(array) for path, array in parameters.items()})


def adamw_step(
    parameters: Arrays,
    gradients: Arrays,
    state: AdamWState,
    rate: float | Mapping[str, float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[dict[str, Array], AdamWState]:
    """One step; returns new parameters and a new state.

    `rate` is η, for all parameters or by path. Weight decay λ applies to the parameters that `decays` names. Raises
    ValueError if the gradients' paths, shapes or dtypes are not those of the parameters.
    """
    check_alike(parameters, gradients)
    (beta1, beta2), t = betas, state.step + 1
    moved: dict[str, Array] = {}
    mean: dict[str, Array] = {}
    square: dict[str, Array] = {}
    for path, g in gradients.items():
        eta = rate[path] if isinstance(rate, Mapping) else rate
        mean[path] = beta1 * state.mean[path] + (1.0 - beta1) * g
        square[path] = beta2 * state.square[path] + (1.0 - beta2) * np.square(g)
        size = np.sqrt(square[path]) / math.sqrt(1.0 - beta2**t) + eps
        decayed = parameters[path] * (1.0 - eta * weight_decay) if decays(path) else parameters[path]
        moved[path] = decayed - (eta / (1.0 - beta1**t)) * mean[path] / size
    return moved, AdamWState(t, mean, square)


def decays(path: str) -> bool:
    """Whether weight decay applies: to matrices and tables, not to biases and LayerNorm weights, as BERT does."""
    return not path.endswith("bias") and path.split(".")[-2:-1] not in (["layer_norm"], ["norm1"], ["norm2"])


def check_alike(parameters: Arrays, gradients: Arrays) -> None:
    """Raise ValueError unless the gradients have the paths, shapes and dtypes of the parameters."""
    for path in sorted(parameters.keys() | gradients.keys()):
        wanted, got = (
            "nothing" if array is None else f"{array.dtype} {array.shape}"
            for array in (parameters.get(path), gradients.get(path))
        )
        if wanted != got:
            raise ValueError(f"gradients: {path}: expected {wanted}, got {got}")

"""The training loop: for every batch, the gradients, clipped, and a step of AdamW.

    for step in train(model, batches, rate=1e-4, total=1000):
        print(step.number, step.loss)
    step.model.save_pretrained("out")

Small enough to follow by hand, and slow: it is what `ernie_m.kernels` is compared with, step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ..gradients import value_and_gradients
from ..heads import Head
from ..parameters import flatten, unflatten
from .adamw import AdamWState, adamw_start, adamw_step
from .clipping import clip_by_global_norm
from .layerwise import layer_wise_rates
from .schedules import warmup_then_linear

Model = TypeVar("Model", bound=Head)


@dataclass(frozen=True)
class TrainingStep(Generic[Model]):
    """What a step did: its number, from 0; the loss before it; the norm of the gradients before clipping; the rate.

    `model` and `state` are those after the step; training can go on from them.
    """

    number: int
    loss: float
    norm: float
    rate: float
    model: Model
    state: AdamWState


def train(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    *,
    rate: float,
    total: int,
    warmup: int = 0,
    limit: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    layer_decay: float = 1.0,
    rng: np.random.Generator | None = None,
    state: AdamWState | None = None,
) -> Iterator[TrainingStep[Model]]:
    """Train for `total` steps, or until the batches end; yields each step's result.

    batches: the arguments of a call, with its targets: `{"input_ids": ..., "attention_mask": ..., "labels": ...}`.
    rate, warmup: the highest learning rate, and how many steps rise to it; then it falls to 0 at `total`.
    limit: gradients are clipped to this norm. betas, eps, weight_decay: as in `adamw_step`.
    layer_decay: the factor of the learning rate from each layer to the one below.
    rng: enables dropout.
    state: continue from a `TrainingStep`'s state instead of starting afresh.

    Raises ValueError if a loss or gradient is not finite.
    """
    arrays = flatten(model.parameters)
    state = adamw_start(arrays) if state is None else state
    rates = layer_wise_rates(arrays, rate, layer_decay, model.config.num_hidden_layers)
    for number, batch in zip(range(state.step, total), batches, strict=False):
        output, gradients = value_and_gradients(model, **batch, rng=rng)
        loss = float(output["loss"])
        if not np.isfinite(loss):
            raise ValueError(f"step {number}: expected a finite loss, got {loss}")
        clipped, norm = clip_by_global_norm(flatten(gradients), limit)
        factor = warmup_then_linear(number, warmup, total)
        now = {path: own * factor for path, own in rates.items()}
        arrays, state = adamw_step(arrays, clipped, state, now, betas, eps, weight_decay)
        model = type(model)(model.config, unflatten(arrays))
        yield TrainingStep(number, loss, norm, rate * factor, model, state)

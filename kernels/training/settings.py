"""What a training run is made of besides its data and its model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

PRECISIONS = ("float32", "bfloat16", "float16")
PARALLEL = ("ddp", "fsdp")
OFTEN = ("evaluate_every", "save_every", "log_every")
# Infinity is above it.
LARGEST = sys.float_info.max
# Of whole numbers; the batches of a step are all in memory.
MOST, MOST_BATCHES = 2**63 - 1, 2**20


@dataclass(frozen=True)
class Settings:
    """The settings of `train`.

    steps: optimiser steps. Each takes `accumulate` batches in each process.
    rate, warmup: the highest learning rate, and how many steps rise to it; then it falls linearly, to reach 0 after the
        last step.
    betas, eps, weight_decay: of AdamW. clip: gradients are clipped to this norm.
    layer_decay: the factor of the learning rate from each layer to the one below.
    precision: "float32", or what autocast computes in; parameters, gradients and the optimiser are float32.
    checkpointing: compute layers again in the backward pass instead of keeping their intermediates.
    evaluate_every, save_every, log_every: in steps; the last step is always evaluated, saved and logged.
    patience: stop after this many evaluations without a better result; 0: never.
    seed: of batches and dropout.
    parallel: how processes share the work: "ddp", each has the whole model; "fsdp", the model is divided (FSDP2).
    """

    steps: int
    rate: float
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    layer_decay: float = 1.0
    accumulate: int = 1
    precision: str = "float32"
    checkpointing: bool = False
    evaluate_every: int = 500
    save_every: int = 500
    log_every: int = 50
    patience: int = 0
    seed: int = 0
    parallel: str = "ddp"

    def __post_init__(self) -> None:
        for field in fields(self):
            check(field.name, getattr(self, field.name))
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.warmup > self.steps:
            raise ValueError(f"warmup: expected at most as many steps as there are, {self.steps}, got {self.warmup}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Settings by name. Raises TypeError or ValueError for a name that is no setting, or a wrong value."""
        for name, value in values.items():
            check(name, value)
        for name in ("steps", "rate"):
            if name not in values:
                raise ValueError(f"{name}: expected a value, got none")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON has it."""
        return asdict(self) | {"betas": list(self.betas)}


TYPES = {field.name: type(field.default) for field in fields(Settings)} | {"steps": int, "rate": float}


def check(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless there is a setting of this name that may have this value."""
    if name not in TYPES:
        raise ValueError(f"{name or repr(name)}: not a setting; expected some of {', '.join(TYPES)}")
    kind, (expected, holds) = TYPES[name], RULES[name]
    if kind not in (bool, tuple) and not (_is_number(value) if kind is float else type(value) is kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {value!r:.80}")
    if not holds(value):
        raise ValueError(f"{name}: expected {expected}, got {value!r:.80}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_betas(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_number(x) and 0 <= x < 1 for x in value)


# What each setting may be, and whether a value is that. Comparisons with nan are false.
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("steps", *OFTEN), (f"a number from 1 to {MOST}", lambda x: 1 <= x <= MOST)),
    **dict.fromkeys(("warmup", "patience", "seed"), (f"a number from 0 to {MOST}", lambda x: 0 <= x <= MOST)),
    "accumulate": (f"a number from 1 to {MOST_BATCHES}", lambda x: 1 <= x <= MOST_BATCHES),
    **dict.fromkeys(("rate", "clip", "eps"), ("a positive, finite number", lambda x: 0 < x <= LARGEST)),
    "weight_decay": ("a finite number of at least 0", lambda x: 0 <= x <= LARGEST),
    "layer_decay": ("a number above 0 and at most 1", lambda x: 0 < x <= 1),
    "betas": ("a list of two numbers from 0 to below 1", _are_betas),
    "checkpointing": ("true or false", lambda x: isinstance(x, bool)),
    "precision": (f"one of {', '.join(PRECISIONS)}", PRECISIONS.__contains__),
    "parallel": (f"one of {', '.join(PARALLEL)}", PARALLEL.__contains__),
}

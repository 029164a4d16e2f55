"""What a training run is made of besides its data and its model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

PRECISIONS = ("float32", "bfloat16", "float16")
PARALLEL = ("ddp", "fsdp")


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
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "accumulate", "evaluate_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("warmup", "patience", "weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("rate", "clip", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.warmup > self.steps:
            raise ValueError(f"warmup: expected at most as many steps as there are, {self.steps}, got {self.warmup}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers from 0 to below 1, got {self.betas}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: expected a number above 0 and at most 1, got {self.layer_decay}")
        for name, allowed in (("precision", PRECISIONS), ("parallel", PARALLEL)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Settings by name. Raises TypeError or ValueError for a name that is no setting, or a wrong value."""
        known = {field.name: type(field.default) for field in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"{name}: not a setting; expected some of {', '.join(known)}")
            expected = {"steps": int, "rate": float}.get(name, known[name])
            if not isinstance(value, {float: (int, float), tuple: (list, tuple)}.get(expected, expected)) or (
                isinstance(value, bool) and expected is not bool
            ):
                raise TypeError(f"{name}: expected {expected.__name__}, got {value!r}")
        for name in ("steps", "rate"):
            if name not in values:
                raise ValueError(f"{name}: expected a value, got none")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON has it."""
        return asdict(self) | {"betas": list(self.betas)}

"""The training loop in torch: for every step, the gradients of some batches, clipped, and a step of AdamW.

The loss of a step is the weighted mean over all its batches, whichever process computes them: sums, divided by the sum
of all weights. So two processes make the same step as one with twice as many batches, up to rounding.

Twin: reference/training/loop.py.
"""

from __future__ import annotations

import math
import signal
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from ernie_m.reference.array import Array
from ernie_m.reference.dropout import draw_seeds
from ernie_m.reference.training import warmup_then_linear

from ..dropout import seed_tensor
from . import saving
from .logs import FILE, Log, read
from .optimizer import adamw
from .parallel import Group, distribute, inside, without_exchange
from .settings import Settings
from .signals import Stopped, deferred_signals


@dataclass(frozen=True)
class Batch:
    """The arguments of a call of the model, what its loss weighs, the name of its curve, and its number of tokens."""

    arguments: Mapping[str, Array]
    weight: float
    name: str = "loss"
    tokens: int = 0


class Task(Protocol):
    """What is learnt."""

    @property
    def decides(self) -> str:
        """The name of the figure that decides which model is kept, the higher the better; empty: the last is kept."""

    def batch(self, step: int, i: int, model: Any) -> Batch:
        """Batch i of a step. `model` may be asked for predictions."""

    def evaluate(self, model: Any) -> dict[str, Any]:
        """Figures on data that is not trained on; all processes compute the same."""

    def keep(self, model: Any, state: dict[str, Tensor], figures: dict[str, Any]) -> None:
        """Save a model that is the best so far. `state`: its weights."""


@dataclass
class _Run:
    """A run on its way. `tokens` and `targets`: read and learnt from so far. `sums`: for each curve, the loss times the
    weight, and the weight, since the last record.
    """

    step: int = 0
    best: float = -math.inf
    waited: int = 0
    tokens: int = 0
    targets: float = 0.0
    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**vars(self), "sums": {name: list(pair) for name, pair in self.sums.items()}}

    def restore(self, about: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        for name in ("step", "best", "waited", "tokens", "targets"):
            setattr(self, name, about[name])
        self.sums.update({name: list(pair) for name, pair in about["sums"].items()})


def train(
    model: Any, task: Task, settings: Settings, directory: Path, group: Group, recipe: dict[str, Any], resume: bool
) -> None:
    """Train; the task keeps the model.

    directory: where `checkpoint.pt` and the log go. recipe: what the run is made of, kept in the checkpoint; with
    `resume`, a run of another recipe is refused.

    Raises Stopped after SIGTERM or Ctrl-C, ValueError for patience where nothing is evaluated, or if a loss, gradient
    or weight is not finite, and FileExistsError if a run's checkpoint has been lost.
    """
    if settings.patience and not task.decides:
        raise ValueError(f"patience: expected texts to validate on, got none, and a patience of {settings.patience}")
    model = model.to(group.device).train()
    if settings.checkpointing:
        model.gradient_checkpointing_enable()
    net = distribute(model, group, settings.parallel)
    optimizer = adamw(net, settings)
    rates = [entry["lr"] for entry in optimizer.param_groups]
    run = _Run()
    scaler = torch.amp.GradScaler(group.device.type, enabled=settings.precision == "float16")
    if not resume:
        refuse_lost(directory, settings.save_every)
    else:
        found = saving.peek(directory)
        refuse_other(found["recipe"], recipe)
        saving.load(found, net, optimizer)
        run.restore(found)
        scaler.load_state_dict(found["scaler"])
    log = Log(directory, run.step, settings.steps) if group.leads else None

    def save() -> None:
        saving.save(directory, net, optimizer, run.state() | {"recipe": recipe, "scaler": scaler.state_dict()}, group)

    with deferred_signals() as arrived:
        try:
            while run.step < settings.steps and not 0 < settings.patience <= run.waited:
                factor = warmup_then_linear(run.step, settings.warmup, settings.steps)
                for entry, rate in zip(optimizer.param_groups, rates, strict=True):
                    entry["lr"] = rate * factor
                loss, norm, signalled = _step(net, task, settings, group, run, optimizer, scaler, arrived)
                run.step += 1
                last = run.step == settings.steps
                if log is not None:
                    log.progress(run.step, loss, run.tokens)
                if run.step % settings.log_every == 0 or last:
                    _record(log, run, norm, settings.rate * factor)
                if run.step % settings.evaluate_every == 0 or last:
                    _evaluate(net, task, run, log, group)
                stops = 0 < settings.patience <= run.waited
                if run.step % settings.save_every == 0 or last or stops or signalled:
                    save()
                if signalled and not last:
                    raise Stopped(signalled, run.step)
        finally:
            if log is not None:
                log.close()


def refuse_lost(directory: Path, save_every: int) -> None:
    """Raise FileExistsError if the log shows that a checkpoint is lost: a new run would replace model and log."""
    reached = max((record["step"] for record in read(directory / FILE)), default=0)
    if reached > save_every and not (directory / saving.FILE).exists():
        told = f"{saving.FILE} is missing, and {FILE} reaches step {reached}"
        raise FileExistsError(f"{directory}: {told}: put it back, or choose another directory for a new run")


def refuse_other(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first difference, unless two recipes are the same."""
    for name in sorted(found.keys() | wanted.keys()):
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            refuse_other(old, new)
        elif old != new:
            raise ValueError(f"{name}: the run was started with {old!r:.80}, and cannot go on with {new!r:.80}")


def _step(
    net: Module,
    task: Task,
    settings: Settings,
    group: Group,
    run: _Run,
    optimizer: AdamW,
    scaler: torch.amp.GradScaler,
    arrived: list[int],
) -> tuple[float, float, int]:
    """One step: its loss, the norm of its gradients, and the signal, if any, that one of the processes received."""
    own = range(group.rank * settings.accumulate, (group.rank + 1) * settings.accumulate)
    batches = [task.batch(run.step, i, inside(net)) for i in own]
    weights = [batch.weight for batch in batches]
    own_tokens = sum(batch.tokens for batch in batches)
    total, tokens, signalled = group.sums([sum(weights), own_tokens, len(arrived)])
    if not total > 0:
        raise ValueError(f"step {run.step}: expected something to learn, got a total weight of {total}")
    run.tokens += int(tokens)
    run.targets += total
    optimizer.zero_grad()
    loss_sum = 0.0
    for number, (i, batch) in enumerate(zip(own, batches, strict=True), 1):
        layers = inside(net).config.num_hidden_layers
        seeds = seed_tensor(draw_seeds(np.random.default_rng((settings.seed, 2, run.step, i)), layers))
        arguments = {name: torch.from_numpy(x).to(group.device) for name, x in batch.arguments.items()}
        with without_exchange(net, number == len(batches)), _autocast(settings, group):
            loss = net(**arguments, dropout_seeds=seeds.to(group.device)).loss
            # DistributedDataParallel and FSDP take the mean over the processes.
            scaler.scale(loss * (batch.weight * group.size / total)).backward()
        loss_sum += float(loss.detach()) * batch.weight
    scaler.unscale_(optimizer)
    found: Any = clip_grad_norm_(net.parameters(), settings.clip)
    norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
    (loss_sum,) = group.sums([loss_sum])
    mean = loss_sum / total
    if not math.isfinite(mean) or not (math.isfinite(norm) or scaler.is_enabled()):
        raise ValueError(f"step {run.step}: expected a finite loss and gradients, got {mean}, and a norm of {norm}")
    # In float16 the scaler leaves out steps whose gradients overflowed.
    scaler.step(optimizer)
    scaler.update()
    pair = run.sums[batches[0].name]
    pair[0], pair[1] = pair[0] + loss_sum, pair[1] + total
    # Another process may have received it.
    return mean, norm, (arrived[0] if arrived else int(signal.SIGTERM)) if signalled else 0


def _autocast(settings: Settings, group: Group) -> Any:
    half = settings.precision != "float32"
    return torch.autocast(group.device.type, getattr(torch, settings.precision) if half else None, enabled=half)


def _record(log: Log | None, run: _Run, norm: float, rate: float) -> None:
    means = {name: pair[0] / pair[1] for name, pair in run.sums.items()}
    run.sums.clear()
    if log is not None:
        counts = {"tokens": run.tokens, "targets": round(run.targets)}
        log.write({"step": run.step, **counts, **means, "norm": norm, "rate": rate})


def _evaluate(net: Module, task: Task, run: _Run, log: Log | None, group: Group) -> None:
    """Evaluate; keep the model if it is the best so far."""
    model = inside(net)
    model.eval()
    with torch.no_grad():
        figures = task.evaluate(model)
    model.train()
    value = figures[task.decides] if task.decides else math.inf
    better = value > run.best or not task.decides
    run.best, run.waited = (value, 0) if better else (run.best, run.waited + 1)
    if log is not None and figures:
        log.write({"step": run.step, **figures})
        shown = {name: value for name, value in figures.items() if isinstance(value, float)}
        log.say(f"step {run.step:,}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    if better:
        state = saving.weights(net)
        if group.leads:
            task.keep(model, state, figures)

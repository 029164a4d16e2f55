"""Checkpoints of a run: everything that the next step depends on, in one file.

Model and optimiser are gathered in full, so that a run may go on with another number of processes. There is no state
of generators: batches and dropout are functions of the seed and the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import Module
from torch.optim import Optimizer

from ernie_m.tokenizer.new_files import replacing

from .parallel import Group

# In the directory of a run: its checkpoint, and the model that is kept.
FILE, MODEL = "checkpoint.pt", "model"
# What a checkpoint must hold.
NEEDED = {"model", "optimizer", "scaler", "recipe", "step", "best", "waited", "tokens", "targets", "sums"}


def save(directory: Path, model: Module, optimizer: Optimizer, about: dict[str, Any], group: Group) -> None:
    """Replace the checkpoint of a run. All processes call this; the first one writes."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = about | {
        "model": weights(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }
    if group.leads:
        with replacing(directory / FILE) as (file,):
            torch.save(state, file)
    group.wait()


def weights(model: Module) -> dict[str, Tensor]:
    """All weights, on the CPU, in the first process. All processes call this.

    Raises ValueError unless they are finite: others are neither saved nor kept.
    """
    found: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    for name, x in found.items():
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name}: expected finite weights after the step, got inf or nan: is the rate too high?")
    return dict(found)


def load(about: dict[str, Any], model: Module, optimizer: Optimizer) -> None:
    """Set model and optimiser to those of a checkpoint, which are taken out of `about`."""
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, about.pop("model"), options=options)
    set_optimizer_state_dict(model, optimizer, about.pop("optimizer"), options=options)


def peek(directory: Path) -> dict[str, Any]:
    """What a checkpoint holds. Raises ValueError that names the file if it is not one."""
    path = directory / FILE
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a checkpoint of a run: {reason}") from None
    if not isinstance(found, dict) or not found.keys() >= NEEDED:
        raise ValueError(f"{path}: not a checkpoint of a run")
    return found

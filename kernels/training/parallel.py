"""Processes that train together, as `torchrun` starts them, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Group:
    """This process's number, and how many there are; without `torchrun`, 0 of 1."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, the same in each."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def group(device: str | None = None) -> Iterator[Group]:
    """The processes that `torchrun` has started, or this one alone.

    device: "cpu" or "cuda"; by default a GPU if there is one. If another process ends, the collective that waits for it
    raises RuntimeError, which is reported as such.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: {kind}: no GPU is available")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind == "cuda" else kind)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield Group(0, 1, place)
        return
    # Numbers for the log are on the CPU, whatever computes.
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield Group(rank, size, place)
    except RuntimeError as error:
        text = str(error).strip()
        if not any(word in text.lower() for word in ("peer", "gloo", "nccl")):
            raise
        raise RuntimeError(f"process {rank} of {size}: another process has ended: {text.splitlines()[0]}") from None
    finally:
        dist.destroy_process_group()


def distribute(model: Module, group: Group, kind: str) -> Module:
    """The model, its work divided between the processes in the way `kind`, "ddp" or "fsdp"."""
    if group.size == 1:
        return model
    if kind == "ddp":
        return DistributedDataParallel(model)
    base: Any = model
    mesh = init_device_mesh(group.device.type, (group.size,))
    for layer in base.base_model.encoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@contextmanager
def without_exchange(model: Module, last: bool) -> Iterator[None]:
    """Keep gradients in this process until the `last` batch of a step, whose backward pass adds them all up."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    exchange = getattr(model, "set_requires_gradient_sync", None)
    if exchange is not None:
        exchange(last)
    yield


def inside(model: Module) -> Any:
    """The model itself, inside of what divides its work."""
    return model.module if isinstance(model, DistributedDataParallel) else model

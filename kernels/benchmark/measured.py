"""What a workload consists of: its competitors' calls on rotating sets of inputs, and the floor of its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .timing import Call, copies_beyond_cache
from .work import Batch, Size, Work

OURS, YOURS = "ours", "yours"
EPS = 1e-5
HEAD = 64  # the size of a head in both models


@dataclass(frozen=True)
class Measured:
    """One case to measure: its competitors' calls, and the floor of its time.

    hide_host: see `timing`.
    plug: makes a call of a user's function, which is called as the operation says; None: it cannot be measured here.
    packed: converts a competitor's result to the layout of ours, for comparison; None if it cannot be compared.
    held: bytes of the weights. uncounted: competitors whose memory the allocator does not see.
    """

    calls: dict[str, Call]
    floor: Callable[[float, float], float]  # (matrix rate, copy rate) -> seconds
    hide_host: bool = True
    plug: Callable[[Callable[..., Any]], Call] | None = None
    packed: Callable[[str, Any], Tensor | None] = field(default=lambda name, result: result)
    held: int | None = None
    uncounted: frozenset[str] = frozenset()

    def with_yours(self, function: Callable[..., Any]) -> Measured:
        """The same case with a user's function as a competitor, after ours. Raises ValueError if it cannot have one."""
        if self.plug is None:
            raise ValueError("expected a workload with `plug`, which calls a function of the user's, got none")
        ours = {name: call for name, call in self.calls.items() if name.startswith(OURS)}
        return replace(self, calls={**ours, YOURS: self.plug(function), **self.calls})


def cumulative(lengths: Sequence[int], device: str) -> Tensor:
    """`cu_seqlens` of sequences of these lengths."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def compiled(function: Any, **options: Any) -> Any:
    """torch.compile with static shapes."""
    return torch.compile(function, dynamic=False, **options)


def case(
    make: Callable[[], tuple[Any, ...]],
    functions: dict[str, Callable[..., Any]],
    work: Work,
    written: int,
    arguments: Callable[..., tuple[Any, ...]] = lambda *x: x,
    packed: Callable[[str, Any], Tensor | None] = lambda name, result: result,
) -> Measured:
    """A case in which each function takes the next of several sets of inputs, enough of them to exceed the cache.

    make: makes a set. written: how many of `work.bytes` a call writes.
    arguments: turns a set into the operation's arguments, which a user's function takes. packed: see `Measured`.
    """
    inputs = [make() for _ in range(copies_beyond_cache(int(work.bytes) - written))]

    def rotate(function: Callable[..., Any]) -> Call:
        return lambda i: function(*inputs[i % len(inputs)])

    def plug(function: Callable[..., Any]) -> Call:
        return lambda i: function(*arguments(*inputs[i % len(inputs)]))

    calls = {name: rotate(function) for name, function in functions.items()}
    return Measured(calls, work.floor, plug=plug, packed=packed)


def padding(batch: Batch, device: str) -> tuple[Tensor, Tensor | None]:  # -> (B, S), (B, 1, 1, S)
    """Where the padded batch has tokens, and the mask of attention to them; None if no row is padded."""
    valid = torch.arange(batch.padded, device=device) < torch.tensor(batch.lengths, device=device)[:, None]
    return valid, valid[:, None, None, :] if batch.ragged else None


def joined(name: str, results: Any) -> Tensor:
    """All gradients in one tensor, for comparison."""
    return torch.cat([x.reshape(-1).float() for x in results])


def bits(result: Any) -> list[Tensor]:
    """The bytes of all tensors in a result."""
    found = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
    if not found:
        raise TypeError(f"expected a result with tensors, got {type(result).__name__}")
    return [x.detach().contiguous().view(-1).view(torch.uint8) for x in found]


Maker = Callable[[Size, Batch, torch.dtype, str], Measured]

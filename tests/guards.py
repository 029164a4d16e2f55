"""Tensors inside larger buffers, which detect stray writes: the rest is NaN (or a rare integer) and must stay so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

GUARD = 256  # elements before and after; a multiple of 16 bytes in every dtype
RARE = -1234567


def _filler(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else RARE


class Guards:
    """Hands out guarded memory; `check` fails if anything was written outside it."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, int]] = []

    def empty(self, *size: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        """Like `torch.empty`, but poisoned and surrounded by guards."""
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        dtype = dtype or torch.get_default_dtype()
        count = 1
        for n in shape:
            count *= n
        buffer = torch.full((count + 2 * GUARD,), _filler(dtype), dtype=dtype, device=device)
        self.buffers.append((buffer, count))
        return buffer[GUARD : GUARD + count].view(shape)

    def empty_like(self, x: Tensor, **_options: Any) -> Tensor:
        return self.empty(x.shape, dtype=x.dtype, device=x.device)

    def hold(self, x: Tensor) -> Tensor:
        """A copy of `x` in guarded memory."""
        return self.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)

    def check(self) -> None:
        for buffer, count in self.buffers:
            for guard in (buffer[:GUARD], buffer[GUARD + count :]):
                intact = guard.isnan() if buffer.dtype.is_floating_point else guard == RARE
                assert bool(intact.all()), f"something was written outside a {buffer.dtype} tensor of {count} elements"


@contextmanager
def guarded() -> Iterator[Guards]:
    """In this context, `torch.empty` and `empty_like` return guarded, poisoned memory; on exit, check the guards."""
    guards = Guards()
    with mock.patch("torch.empty", guards.empty), mock.patch("torch.empty_like", guards.empty_like):
        yield guards
    guards.check()

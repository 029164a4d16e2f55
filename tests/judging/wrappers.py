"""Makes a right function wrong: past a size, at special values, or from one call to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]
FACTOR = 1.001


def changed(function: Function, change: Callable[[Tensor], Any]) -> Function:
    """The function, with its result changed in place or, if `change` returns one, replaced."""

    def wrong(*arguments: Any) -> Tensor:
        y = function(*arguments)
        found = change(y)
        return y if found is None else found

    return wrong


def past_column(function: Function, limit: int) -> Function:
    """Numbers past that column are a thousandth too large."""

    def spoil(y: Tensor) -> None:
        y[..., limit:] *= FACTOR

    return changed(function, spoil)


def past_row(function: Function, limit: int) -> Function:
    """Rows past that one are a thousandth too large."""

    def spoil(y: Tensor) -> None:
        y[limit:] *= FACTOR

    return changed(function, spoil)


def zero_heads(function: Function, first: int) -> Function:
    """Heads from that one on are zero, (..., H, D)."""

    def zero(y: Tensor) -> None:
        y[:, first:] = 0

    return changed(function, zero)


def as_if_contiguous(x: Tensor) -> Tensor:
    """What a kernel that ignores strides reads."""
    strides = [max(1, math.prod(x.shape[i + 1 :])) for i in range(x.ndim)]
    return torch.as_strided(x, x.shape, strides, x.storage_offset())


def replaced(function: Function, index: int, change: Callable[[Any], Any]) -> Function:
    """The function, called with another argument in place of the one at `index`."""

    def wrong(*arguments: Any) -> Tensor:
        return function(*arguments[:index], change(arguments[index]), *arguments[index + 1 :])

    return wrong


def cached(function: Function) -> Function:
    """Results are kept by address and shape, whatever has been written there since."""
    known: dict[Any, tuple[Any, Tensor]] = {}

    def wrong(*arguments: Any) -> Tensor:
        x = arguments[0]
        key = (x.data_ptr(), tuple(x.shape), x.dtype)
        if key not in known or known[key][0] is not x:
            known[key] = (x, function(*arguments))
        return known[key][1].clone()

    return wrong


def one_buffer(function: Function) -> Function:
    """All calls with results of one shape return the same buffer."""
    buffers: dict[Any, Tensor] = {}

    def wrong(*arguments: Any) -> Tensor:
        y = function(*arguments)
        return buffers.setdefault((tuple(y.shape), y.dtype), torch.empty_like(y)).copy_(y)

    return wrong


def changes_its_argument(function: Function) -> Function:
    """The first argument is overwritten with the result."""

    def wrong(*arguments: Any) -> Tensor:
        y = function(*arguments)
        arguments[0].copy_(y)
        return y

    return wrong


def unrepeatable(function: Function) -> Function:
    """Every second result is one unit in the last place of float32 larger, as sums in another order are."""
    calls = [0]

    def wrong(*arguments: Any) -> Tensor:
        calls[0] += 1
        y = function(*arguments)
        return torch.nextafter(y, torch.full_like(y, torch.inf)) if calls[0] % 2 else y

    return wrong


def forgets_the_last(function: Function) -> Function:
    """The last number is left as it was allocated."""

    def wrong(*arguments: Any) -> Tensor:
        right = function(*arguments)
        y = torch.empty_like(right)
        y.view(-1)[:-1] = right.view(-1)[:-1]
        return y

    return wrong


def reads_past_the_end(function: Function) -> Function:
    """The number behind the first argument is read and multiplied by 0."""

    def wrong(*arguments: Any) -> Tensor:
        x = arguments[0]
        end = x.storage_offset() + x.numel()
        inside = x.is_contiguous() and end * x.element_size() < x.untyped_storage().nbytes()
        return function(*arguments) + (0 * torch.as_strided(x, (1,), (1,), end) if inside else 0)

    return wrong

"""What tests of backward kernels share: the derived bounds of all their results, and bits that must not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ernie_m.kernels.checking.bounds import Expected
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.verdicts import componentwise
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.shuffled_grid import shuffled_grid


def array(x: Any) -> Any:
    """Floats in float64, integers as they are."""
    if not isinstance(x, Tensor):
        return x
    x = x.detach().cpu()
    return (x.double() if x.is_floating_point() else x).numpy()


def worst(bound: Callable[..., Expected], inputs: Sequence[Any], results: Sequence[Tensor]) -> dict[str, float]:
    """For each result, its largest error relative to the bound."""
    dtype = next(x.dtype for x in inputs if isinstance(x, Tensor) and x.is_floating_point())
    expected = bound(FORMATS[str(dtype).removeprefix("torch.")], *map(array, inputs))
    found = {}
    for (name, _, part), result in zip(expected.each(), results, strict=True):
        assert result.dtype == dtype and tuple(result.shape) == part.exact.shape, name
        found[name] = componentwise(array(result), part).ratio
    return found


def assert_within(bound: Callable[..., Expected], inputs: Sequence[Any], results: Sequence[Tensor]) -> None:
    """All results are within the derived bounds."""
    found = worst(bound, inputs, results)
    assert max(found.values()) <= 1, found


def bits(results: Sequence[Tensor]) -> list[bytes]:
    """The bits of all results."""
    return [x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for x in results]


def assert_same_bits(call: Callable[[], Sequence[Tensor]], repeats: int = 100, orders: int = 10) -> None:
    """Every call gives the same bits, and so does any order of the programs of its launches."""
    first = bits(call())
    assert all(bits(call()) == first for _ in range(repeats))
    for seed in range(orders if INTERPRETED else 0):
        with shuffled_grid(seed) as launches:
            assert bits(call()) == first
        # More than one program, or there would be nothing to shuffle.
        assert max(len(places) for places in launches) > 2

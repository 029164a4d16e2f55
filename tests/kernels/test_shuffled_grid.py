"""The shuffled interpreter runs every program once, in another order, and sees a kernel that depends on the order."""

from __future__ import annotations

import itertools

import pytest
import torch

from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.interpreter import upstream
from ernie_m.kernels.runtime.optional_triton import tl, triton
from ernie_m.kernels.runtime.shuffled_grid import shuffled_grid

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="on a GPU, the order cannot be chosen")


@triton.jit
def counting_kernel(counts, last, NX: tl.constexpr, NY: tl.constexpr):
    i = (tl.program_id(2) * NY + tl.program_id(1)) * NX + tl.program_id(0)
    tl.store(counts + i, tl.load(counts + i) + 1)
    tl.store(last, i)


def run() -> tuple[torch.Tensor, int]:
    counts, last = torch.zeros(24, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    counting_kernel[(4, 3, 2)](counts, last, NX=4, NY=3)
    return counts, int(last)


def test_every_program_runs_once_in_an_order_that_depends_on_the_seed() -> None:
    kind = upstream.interpreter_builder.__class__
    orders, lasts = set(), set()
    for seed in range(5):
        with shuffled_grid(seed) as launches:
            found = [run() for _ in range(2)]
        assert all(counts.tolist() == [1] * 24 for counts, _ in found)
        assert len(launches) == 2 and launches[0] != launches[1]
        orders.add(tuple(launches[0]))
        lasts.update(last for _, last in found)
    assert len(orders) == 5 and len(lasts) > 1
    assert tuple(itertools.product(range(4), range(3), range(2))) not in orders
    assert upstream.interpreter_builder.__class__ is kind and run()[1] == 23


def test_the_order_is_restored_after_an_error() -> None:
    kind = upstream.interpreter_builder.__class__
    with pytest.raises(KeyError), shuffled_grid(0):
        raise KeyError
    assert upstream.interpreter_builder.__class__ is kind

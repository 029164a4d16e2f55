"""Guards: how arrays lie between them, and that no kernel in the interpreter can reach past them or end the process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.guards import LAYOUTS, extent, place, strides_of
from ernie_m.kernels.checking.operations import OPERATIONS
from ernie_m.kernels.checking.report import Failure
from ernie_m.kernels.checking.watching import watching
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.optional_triton import tl, triton

only_interpreted = pytest.mark.skipif(not INTERPRETED, reason="on a GPU it would overwrite another array's memory")


def failure_of(function: Callable[..., Any], op: str = "gelu", **options: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        check(function, op, **{"examples": 10, "dtypes": ["float32"], "quick": True, **options})
    return caught.value


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    layout=st.sampled_from(["contiguous", *LAYOUTS]),
    arrays=st.sampled_from(["torch", "numpy"]),
    dtype=st.sampled_from(["float32", "float16"]),
)
def test_place_keeps_the_numbers_in_every_layout(shape: tuple[int, ...], layout: str, arrays: str, dtype: str) -> None:
    values = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    placed = place("x", values, arrays, dtype, "cpu", layout)
    assert tuple(placed.inner.shape) == shape and placed.damage is None
    np.testing.assert_array_equal(np.asarray(placed.inner, np.float64), values)
    start, end = extent(placed.inner)
    low, high = extent(placed.buffer)
    size = placed.buffer.dtype.itemsize
    assert (start - low, end - low) == (placed.start * size, placed.stop * size) and high - end >= 64 * size
    # A write between the numbers, before them or after them is damage.
    for at, reason in ((placed.start - 1, "before the start"), (placed.stop, "past the end")):
        kept = placed.buffer[at].item()
        placed.buffer[at] = 1.0
        assert placed.damage is not None and reason in placed.damage
        placed.buffer[at] = kept
    assert placed.damage is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_what_they_are_called(layout: str) -> None:
    placed = place("x", np.zeros((3, 4)), "torch", "float32", "cpu", layout).inner
    strides = {"offset by one": (4, 1), "rows apart": (7, 1), "every second number": (8, 2), "transposed": (1, 3)}
    assert placed.stride() == strides[layout]
    assert (placed.data_ptr() % 16 != 0) == (layout == "offset by one")
    # One row, or one axis, cannot be transposed.
    assert strides_of((1, 4), "transposed") is None and strides_of((4,), "rows apart") is None


@triton.jit
def unmasked_kernel(x, y, n, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, tl.load(x + o, mask=o < n, other=0.0))


@only_interpreted
@pytest.mark.parametrize("block", [64, 1024, 2**20])
def test_a_missing_store_mask_is_told_whatever_the_block(block: int) -> None:
    """With guards alone, a block of 1,024 ended the process."""

    def unmasked(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        unmasked_kernel[(triton.cdiv(x.numel(), block),)](x, y, x.numel(), BLOCK=block)
        return y

    wrong = failure_of(unmasked)
    assert wrong.reason == "the kernel wrote past the end of an array from `torch.empty`"
    assert wrong.case.inputs["x"].size == 1


@triton.jit
def reaching_kernel(x, y, n, STORE: tl.constexpr, DISTANCE: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b = tl.load(x + o + (0 if STORE else DISTANCE), mask=o < n, other=0.0)
    tl.store(y + o + (DISTANCE if STORE else 0), b, mask=o < n)


@triton.jit
def adding_kernel(x, y, n, DISTANCE: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(y + o + DISTANCE, tl.load(x + o, mask=o < n, other=0.0), mask=o < n)


@only_interpreted
@pytest.mark.parametrize("distance", [-(2**40), -(2**31), -1, 1, 2**31, 2**45])
@pytest.mark.parametrize("store", [True, False])
def test_no_distance_ends_the_process(store: bool, distance: int) -> None:
    def reaching(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        reaching_kernel[(triton.cdiv(x.numel(), 64),)](x, y, x.numel(), store, distance, BLOCK=64)
        return y

    verb, where = "wrote" if store else "read", "before the start of" if distance < 0 else "past the end of"
    reason = failure_of(reaching).reason
    assert reason.startswith(f"the kernel {verb} ") and (abs(distance) > 1) >= (where not in reason)
    assert ("int32" in reason) == (abs(distance) >= 2**31)


@only_interpreted
def test_atomics_are_watched_too() -> None:
    def adding(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        y = torch.zeros_like(x)
        adding_kernel[(triton.cdiv(x.numel(), 64),)](x, y, x.numel(), 2**40, BLOCK=64)
        return y

    assert failure_of(adding).reason.startswith("the kernel wrote past the end of ")


@only_interpreted
def test_arrays_from_zeros_are_guarded_to_the_number() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        y = torch.zeros_like(x)
        reaching_kernel[(triton.cdiv(x.numel(), 64),)](x, y, x.numel(), True, 1, BLOCK=64)
        return y

    assert failure_of(wrong).reason == "the kernel wrote past the end of the array `y`"


@only_interpreted
def test_watching_samples_a_grid_and_records_it_in_full() -> None:
    x = torch.arange(64.0 * 1000)
    y = torch.full_like(x, torch.nan)
    with watching(programs=10) as watch:
        reaching_kernel[(1000,)](x, y, x.numel(), False, 0, BLOCK=64)
    written = watch.written(y)
    assert watch.grids == [(1000, 1, 1)] and watch.sampled and watch.damage is None
    assert written is not None and set(written) == set((~y.isnan()).nonzero().ravel().tolist())
    assert written.size == 640 and {0, 63_999} <= set(written)
    reaching_kernel[(1000,)](x, y, x.numel(), False, 0, BLOCK=64)
    assert torch.equal(x, y)


@pytest.mark.parametrize("op", [name for name in OPERATIONS if not name.endswith("_vjp")])
def test_wrong_calls_are_told_in_one_line(op: str) -> None:
    """Arity, an exception of many lines, a wrong shape: how the operation is called, and what it got."""
    call = OPERATIONS[op].call

    def raising(*arguments: Any) -> Any:
        raise ValueError("first line\nsecond line")

    def flat(*arguments: Any) -> torch.Tensor:
        return planted.KERNELS[op](*arguments).ravel()[:, None]

    wrong = {
        lambda: None: f"it cannot be called as {call} with ",
        raising: f"it raised ValueError: first line second line (called as {call} with ",
        flat: "it returned shape (",
        lambda *arguments: None: "it returned NoneType, expected Tensor, called as ",
    }
    for function, reason in wrong.items():
        found = failure_of(function, op, examples=1).reason
        assert found.startswith(reason) and "\n" not in found
        assert f"{call} with {call[2:-1].split(', ')[0]} (" in found

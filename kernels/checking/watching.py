"""Watches what kernels do in Triton's interpreter: every address that they use, and every launch.

In the interpreter a pointer is a number, and one that is out of range reads or writes whatever is there, or ends the
process. Inside `watching()`, an address outside the arrays of its launch is neither read nor written but reported, so
no kernel can end the process, however far it reaches. An array is where its own numbers are: guards and the rest of
its storage are outside.

A launch can be sampled: its grid is recorded in full, and only its first, last and some drawn programs run. The
addresses that they write are recorded, so that only those are judged.

Leaves out: addresses that a kernel loads from memory (tables of pointers) count as outside; races, as the interpreter
runs one program after another.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ernie_m.reference.array import Array

from ..runtime import interpreter
from ..runtime.interpreter import ExactBuilder, upstream
from ..runtime.launch import GRID_LIMITS
from ..runtime.optional_triton import HAS_TRITON
from .guards import Guarded, extent, extent_of_storage

_Executor: Any = upstream.GridExecutor if HAS_TRITON else object
# The most loads and stores of a sampled launch: beyond, its programs do too much for the interpreter.
MOST_ACCESSES = 50_000
# Farther than any array reaches by mistake: an offset that left int32's range.
FAR = 2**30


class Watch:
    """What the launches inside `watching()` did.

    grids: the full grid of every launch.  damage: the first access out of range, or a grid that CUDA does not allow,
    in words.  sampled: whether fewer programs ran than the grids have.  atomics: whether there was an atomic operation.
    exhausted: whether the programs that were to run took too long and were given up.
    """

    def __init__(self, guarded: Sequence[Sequence[Guarded]], programs: int | None) -> None:
        self.guarded, self.most = guarded, programs
        self.grids: list[tuple[int, ...]] = []
        self.damage: str | None = None
        self.sampled = self.atomics = self.exhausted = False
        self.accesses = 0
        self.patched: set[int] = set()
        self.ranges: list[tuple[int, int, str]] = []
        self.chosen: list[tuple[int, int, int]] = []
        self.stores: list[Array] = []

    def see(self, name: str, argument: Any) -> None:
        """Add the addresses of one argument of a launch: a tensor, a tensor descriptor or a tuple of them."""
        if isinstance(argument, tuple):
            for part in argument:
                self.see(name, part)
        tensor = getattr(argument, "base", argument)
        if not isinstance(tensor, torch.Tensor):
            return
        address = tensor.data_ptr()
        for array in (array for arrays in self.guarded for array in arrays):
            start, end = extent(array.buffer)
            if start <= address < end:
                self.ranges.append((*extent(array.inner), array.name))
                return
        self.ranges.append((*extent_of_storage(tensor), f"the array `{name}`"))

    def launch(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Record a launch and return the grid to run; `chosen` are the programs if that is not all of them."""
        full = (*grid, 1, 1)[:3]
        self.grids.append(full)
        self.chosen = []
        if any(n > limit for n, limit in zip(full, GRID_LIMITS, strict=True)):
            self.damage = self.damage or f"its grid is {full}, and CUDA allows at most {GRID_LIMITS} programs"
        total = full[0] * full[1] * full[2]
        if self.most is None or total <= self.most:
            return grid
        self.sampled = True
        drawn = random.Random(0).sample(range(1, total - 1), self.most - 2)
        for i in sorted({0, total - 1, *drawn}):
            self.chosen.append((i // (full[1] * full[2]), i // full[2] % full[1], i % full[2]))
        return (len(self.chosen), 1, 1)

    def inside(self, pointers: Any, mask: Any, verb: str) -> Array | None:
        """The part of `mask` whose addresses are inside the launch's arrays; None if it is all of it."""
        self.accesses += 1
        if self.most is not None and self.accesses > MOST_ACCESSES:
            self.exhausted = True
            raise TimeoutError(f"more than {MOST_ACCESSES} loads and stores")
        addresses, size = pointers.data, max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        active = addresses[mask.data]
        if not active.size:
            return None
        if verb == "wrote" and self.sampled:
            self.stores.append(active.ravel())
        low, high = int(active.min()), int(active.max()) + size
        if any(start <= low and high <= end for start, end, _ in self.ranges):
            return None
        found = np.zeros(addresses.shape, bool)
        for start, end, _ in self.ranges:
            found |= (addresses >= start) & (addresses <= max(end - size, 0)) & (end - start >= size)
        wrong = mask.data & ~found
        if not wrong.any():
            return None
        self.damage = self.damage or self._describe(addresses[wrong], addresses[mask.data & found], verb)
        return np.asarray(mask.data & found)

    def _describe(self, wrong: Array, right: Array, verb: str) -> str:
        """An access out of range, told relative to the array that the rest of the block is in, or the nearest one."""
        address = int(wrong.flat[0])
        near = [span for span in self.ranges if right.size and span[0] <= int(right.flat[0]) < span[1]]
        if not (near or self.ranges):
            return f"the kernel {verb} at an address that belongs to no argument of its launch"
        start, end, name = min(near or self.ranges, key=lambda span: max(span[0] - address, address - span[1]))
        where = "before the start of" if address < start else "past the end of"
        far = max(start - address, address - end) > FAR
        return f"the kernel {verb} {where} {name}" + (": an offset left the range of int32" if far else "")

    def written(self, result: Any) -> Array | None:
        """The positions in the flat result that sampled programs wrote; None if that cannot be told."""
        if self.atomics or len(set(self.grids)) > 1 or not isinstance(result, torch.Tensor):
            return None
        if not self.stores or not result.is_contiguous():
            return None
        start, end = extent(result)
        addresses = np.unique(np.concatenate(self.stores))
        own = addresses[(addresses >= start) & (addresses < end)]
        return ((own - np.uint64(start)) // np.uint64(result.element_size())).astype(np.int64) if own.size else None


_watch = Watch((), None)
_patch_lang: Any = upstream._patch_lang if HAS_TRITON else None


class _Patched:
    """What upstream undoes after a launch: nothing, as it is already in place."""

    def restore(self) -> None:
        pass


def _patch_once(function: Any) -> Any:
    """Upstream's patch of Triton's language, which each call of a device function repeats, once in each launch."""
    modules = {
        id(x) for x in function.__globals__.values() if inspect.ismodule(x) and x in (upstream.tl, upstream.tl.core)
    }
    if modules <= _watch.patched:
        return _Patched()
    _watch.patched |= modules
    return _patch_lang(function)


class _WatchedBuilder(ExactBuilder):
    """The interpreter's operations, with those on memory limited to the launch's arrays."""

    def create_masked_load(self, ptrs: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        inside = _watch.inside(ptrs, mask, "read")
        return super().create_masked_load(ptrs, _only(inside, mask), *rest, **options)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        inside = _watch.inside(ptrs, mask, "wrote")
        return super().create_masked_store(ptrs, value, _only(inside, mask), *rest, **options)

    def create_atomic_rmw(self, operation: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        _watch.atomics = True
        inside = _watch.inside(ptr, mask, "wrote")
        return super().create_atomic_rmw(operation, ptr, val, _only(inside, mask), *rest)

    def create_atomic_cas(self, ptr: Any, *rest: Any) -> Any:
        _watch.atomics = True
        mask = upstream.TensorHandle(np.ones_like(ptr.data, dtype=bool), upstream.tl.int1)
        if _watch.inside(ptr, mask, "wrote") is not None:
            raise IndexError(_watch.damage)
        return super().create_atomic_cas(ptr, *rest)

    def set_grid_dim(self, *dims: int) -> None:
        super().set_grid_dim(*(_watch.grids[-1] if _watch.chosen else dims))

    def set_grid_idx(self, x: int, y: int, z: int) -> None:
        super().set_grid_idx(*(_watch.chosen[x] if _watch.chosen else (x, y, z)))


def _only(inside: Array | None, mask: Any) -> Any:
    return mask if inside is None else upstream.TensorHandle(inside, mask.dtype)


class _WatchedExecutor(_Executor):
    """A launch in the interpreter that tells `_watch` its arguments and its grid."""

    def _init_args_hst(self, args_dev: Any, kwargs: Any) -> Any:
        found = super()._init_args_hst(args_dev, kwargs)
        _watch.ranges = []
        for name, argument in [*zip(self.arg_names, found[0], strict=False), *found[1].items()]:
            _watch.see(name, argument)
        return found

    def __call__(self, *arguments: Any, **options: Any) -> None:
        grid: Any = self.grid  # type: ignore[has-type]
        _watch.patched = set()
        self.grid = lambda meta: _watch.launch(tuple(grid(meta) if callable(grid) else grid))
        super().__call__(*arguments, **options)


@contextmanager
def watching(guarded: Sequence[Sequence[Guarded]] = (), programs: int | None = None) -> Iterator[Watch]:
    """Inside, launches in the interpreter are watched; without the interpreter, nothing is.

    guarded: lists, which may grow meanwhile, of arrays inside larger buffers.
    programs: run at most this many programs of each launch, at least 3.
    """
    global _watch
    watch = Watch(guarded, programs)
    if not interpreter.is_active():
        yield watch
        return
    before, executor, builder = _watch, upstream.GridExecutor, upstream.interpreter_builder.__class__
    patch = upstream._patch_lang
    _watch, upstream.GridExecutor, upstream._patch_lang = watch, _WatchedExecutor, _patch_once
    upstream.interpreter_builder.__class__ = _WatchedBuilder
    try:
        yield watch
    finally:
        _watch, upstream.GridExecutor, upstream._patch_lang = before, executor, patch
        upstream.interpreter_builder.__class__ = builder

"""Only for speed: a batch is encoded in groups of sequences, each group on a thread of its own.

Sequences do not depend on each other, so a thread can take some of them through all layers. That keeps every core busy
during elementwise operations, which NumPy runs on one thread, and a group's arrays are small enough to stay in cache.
Meanwhile BLAS may use one thread only: its own threads would compete with ours for the cores.

How sequences are grouped depends on their lengths alone, so results do not depend on the number of threads, bit for
bit. That number is BLAS's own (OPENBLAS_NUM_THREADS, or as many as there are cores). `threadpoolctl` tells and limits
it; where it is not installed, groups run one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

import numpy as np

from .array import Array

A = TypeVar("A")
B = TypeVar("B")

# A group has at least this many tokens: below, matrix products lose more than a second thread gains.
LEAST_TOKENS = 192
# The tokens of one call of the model, unless a number of texts is given: enough for each of several cores to have
# sequences of its own. On a CPU, larger calls are no faster, as their arrays do not stay in cache.
TOKENS = 2048

ONE_CALL = threading.Lock()


def groups_of(lengths: Sequence[int]) -> list[list[int]]:
    """Sort sequences of these lengths into groups of about equally many tokens; returns their numbers, in order.

    The number of groups is a power of two, so that it suits any usual number of cores.
    """
    tokens, present, count = sum(lengths), np.count_nonzero(lengths), 1
    while 2 * count <= present and tokens >= 2 * count * LEAST_TOKENS:
        count *= 2
    groups: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    # The longest first, each into the group that is smallest so far.
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(b)
        sizes[smallest] += lengths[b]
    return [sorted(group) for group in groups]


def split(cu_seqlens: Array) -> list[tuple[Array, Array]]:  # (B + 1,) -> [(T of the group,), (B of the group + 1,)]
    """The rows of a packed array that belong to each group, and the group's own `cu_seqlens`."""
    lengths = np.diff(cu_seqlens)
    chosen = groups_of(lengths.tolist())
    rows = [np.concatenate([np.arange(*cu_seqlens[b : b + 2]) for b in group]) for group in chosen]
    ends = [np.concatenate([[0], np.cumsum(lengths[group])]) for group in chosen]
    return list(zip(rows, ends, strict=True))


def join(parts: Sequence[Array], rows: Sequence[Array]) -> Array:  # [(T of the group, E)], as in split -> (T, E)
    """The groups' tokens in the order of the batch."""
    return np.concatenate(parts)[np.argsort(np.concatenate(rows))]


def on_threads(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """`function` of each item, in order; as many at a time as BLAS has threads, each with matrix products on one.

    One call at a time gets threads, as BLAS's limit is about the whole process: calls from other threads of the caller
    meanwhile work on their items one by one.
    """
    blas = _blas()
    if len(items) == 1 or blas is None or not ONE_CALL.acquire(blocking=False):
        return [function(item) for item in items]
    try:
        threads = min(threads_of(blas), len(items))
        with blas.limit(limits=1):
            # Where another thread of the caller holds a limit, ours has no effect.
            if threads < 2 or threads_of(blas) > 1:
                return [function(item) for item in items]

            def alone(item: A) -> B:
                # A BLAS on OpenMP keeps a limit for each thread.
                with blas.limit(limits=1):
                    return function(item)

            with ThreadPoolExecutor(threads) as pool:
                # Each call sees the caller's context variables, such as those of `np.errstate`.
                waiting = [pool.submit(copy_context().run, alone, item) for item in items]
                try:
                    return [future.result() for future in waiting]
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    finally:
        ONE_CALL.release()


@cache
def _blas() -> Any:
    """threadpoolctl's controller of the BLAS libraries that are loaded; None if it is not installed."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")


def threads_of(blas: Any) -> int:
    """The most threads that one of these libraries may use."""
    return max((library["num_threads"] for library in blas.info()), default=1)


def batches(lengths: Sequence[int], batch_size: int | None) -> Iterator[list[int]]:
    """Distribute rows of these lengths over calls of the model, the shortest first; yields the numbers of each call's.

    A call gets `batch_size` rows; or, without one, as many as have at most TOKENS tokens together, and at least one.
    """
    chosen: list[int] = []
    tokens = 0
    for j in sorted(range(len(lengths)), key=lambda j: lengths[j]):
        full = tokens + lengths[j] > TOKENS if batch_size is None else len(chosen) == batch_size
        if chosen and full:
            yield chosen
            chosen, tokens = [], 0
        chosen.append(j)
        tokens += lengths[j]
    if chosen:
        yield chosen

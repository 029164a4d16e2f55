"""Counts the memory traffic of Triton kernels in the interpreter. Used by the notebooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from ernie_m.kernels.runtime import interpreter


def distinct_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Call the function, and return the bytes that its kernels read and write.

    In the interpreter, all loads and stores go through two methods of its builder, which are replaced during the call.
    Each address counts once per kernel and direction: it is taken to stay in a cache until the kernel ends, and no
    longer. So this is what has to come from, or go to, main memory at least.
    """
    builder = type(interpreter.upstream.interpreter_builder)
    set_index = builder.set_grid_idx
    kernel = [0]
    places: set[tuple[int, str, int, int]] = set()

    def counted(name: str, mask_at: int) -> Callable[..., Any]:
        original = getattr(builder, name)

        def access(self: Any, pointers: Any, *rest: Any) -> Any:
            size = pointers.get_element_ty().primitive_bitwidth // 8
            places.update((kernel[0], name, address, size) for address in pointers.data[rest[mask_at].data].tolist())
            return original(self, pointers, *rest)

        return access

    def start_program(self: Any, *index: int) -> Any:
        kernel[0] += index == (0, 0, 0)  # program 0 is the first of a kernel
        return set_index(self, *index)

    methods = {
        "set_grid_idx": start_program,
        "create_masked_load": counted("create_masked_load", 0),
        "create_masked_store": counted("create_masked_store", 1),
    }
    with mock.patch.multiple(builder, **methods):
        function(*arguments)
    return sum(size for *_, size in places)

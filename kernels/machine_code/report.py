"""Compile every kernel for every GPU target and report the figures of the machine code.

    warps           warps per block
    regs            registers per thread, at most 255 (AMD: 512); values that do not fit are spilled to memory
    spills, stack   bytes per thread: spill stores and loads, and the stack frame
    shared          bytes of shared memory per block; "!" marks more than the target's limit
    occ             occupancy: blocks that a multiprocessor (AMD: compute unit) holds at once
    tensor cores    tensor-core instructions, by kind
    16 B, 2 B       loads of 16 bytes (or more, on sm_100) and of 2; 2-byte loads suggest that alignment was not seen
    instructions    per attention score in the hot loop; in other kernels per element, or per row for all its warps; in
                    kernels of your own per warp

No GPU is needed. Two processes compile, without Triton's interpreter.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from typing import Any

import torch

from ..checking.operations import OPERATIONS
from ..runtime.optional_triton import triton
from ..runtime.variants import TARGETS, Variant
from . import gates as compile_gates
from .compiler import Depth, compile_kernel

_PROCESSES = 2


def select(targets: Sequence[str], operations: Sequence[str], dtypes: Sequence[str]) -> list[tuple[str, int]]:
    """The selected kernels as pairs (target, index in `all_variants(target)`), which other processes can look up.

    Empty sequences select everything. Raises ValueError for an unknown operation.
    """
    names = sorted({variant.operation for variant in all_variants(TARGETS[0])})
    for operation in operations:
        if operation not in names:
            raise ValueError(f"--operation: expected one of {', '.join(names)}, got {operation!r}")
    return [
        (target, i)
        for target in targets or TARGETS
        for i, variant in enumerate(all_variants(target))
        if (not operations or variant.operation in operations) and (not dtypes or variant.dtype in dtypes)
    ]


def compile_all(wanted: Sequence[tuple[str, int]], gates: bool = False) -> Iterator[dict[str, Any]]:
    """Compile in two processes; yield each kernel's figures in order, or "error" if it does not compile."""
    # Spawn fresh interpreters: a fork of a process with torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    quiet: Any = {"initializer": signal.signal, "initargs": (signal.SIGINT, ends_quietly())}
    with ProcessPoolExecutor(min(_PROCESSES, len(wanted)), mp_context=context, **quiet) as pool:
        yield from pool.map(_row, *zip(*wanted, strict=True), [gates] * len(wanted))


def ends_quietly() -> signal.Handlers:
    """What a child does at Ctrl-C, which this process reports: it ends, or does nothing if this process ignores it."""
    return signal.SIG_IGN if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else signal.SIG_DFL


@lru_cache(maxsize=len(TARGETS))
def all_variants(target: str) -> list[Variant]:
    """All variants for a target (one of TARGETS), in the order of the registry."""
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    return [x for operation in OPERATIONS.values() if operation.variants for x in operation.variants(target)]


def _row(target: str, i: int, gates: bool) -> dict[str, Any]:
    variant = all_variants(target)[i]
    return row_of(variant, target, compile_gates.depth(variant, target) if gates else Depth.LISTING)


def row_of(variant: Variant, target: str, depth: Depth = Depth.LISTING) -> dict[str, Any]:
    """The figures of one kernel, or "error" if it does not compile."""
    try:
        return compile_kernel(variant, target, depth)
    except Exception as error:
        # A compiler may raise anything. It becomes a row, so that the other kernels are still reported.
        name = {"operation": variant.operation, "dtype": variant.dtype, "label": variant.label, "target": target}
        return {**name, "error": f"{type(error).__name__}: {error}"}


def row_name(row: Mapping[str, Any]) -> str:
    """Target, operation, dtype and label of a row."""
    return " ".join(part for part in (row["target"], row["operation"], row["dtype"], row["label"]) if part)


_HEADS = ("", "warps", "regs", "spills", "stack", "shared", "occ", "tensor cores", "16 B", "2 B", "instructions")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each target; below it, the assembler's warnings and the kernels that did not compile."""
    text = [f"triton {triton.__version__}, torch {torch.__version__}\n"]
    for target in TARGETS:
        of_target = [row for row in rows if row["target"] == target]
        compiled = [row for row in of_target if "error" not in row]
        if not of_target:
            continue
        limit = f", shared memory up to {compiled[0]['shared_limit']:,} bytes" if compiled else ""
        text.append(f"\n{target}{limit}\n")
        cells = [_HEADS, *map(_cells, compiled)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            first, *others = (
                cell.ljust(n) if i in (0, 7) else cell.rjust(n)
                for i, (cell, n) in enumerate(zip(line, widths, strict=True))
            )
            text.append("  ".join((first, *others)).rstrip() + "\n")
        for row in of_target:
            for message in [row["error"]] if "error" in row else row["warnings"]:
                text.append(f"! {row_name(row)}: {message}\n")
    return "".join(text)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    over = "!" if row["shared"] > row["shared_limit"] else ""
    figures = (
        row["num_warps"],
        row["registers"],
        row["spills"],
        row["stack"],
        f"{over}{row['shared']}",
        row["occupancy"],
    )
    units = " ".join(f"{n} {kind}" for kind, n in row["tensor_cores"].items())
    work = f"{row['instructions_per']:.1f} / {row['per']}"
    name = row_name(row).partition(" ")[2]
    return (name, *map(str, figures), units, str(row["loads_16"]), str(row["loads_2"]), work)

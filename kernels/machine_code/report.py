"""Every kernel as it is variant, compiled for every GPU target, and the figures that come out.

    registers       of one thread, of 255 at most (AMD: of 512); what does not fit is spilled to memory
    spills, stack   bytes of a thread's memory traffic for that (stored and loaded), and of its frame
    shared          bytes of a block, and what the target gives one at most; the compiler does not compare
    occupancy       blocks that a multiprocessor (AMD: compute unit) holds at once
    16-byte loads   the widest but for sm_100's; 2-byte loads are a sign that alignment was not seen
    instructions    in the hot loop for a score of attention, in the kernel for a number or, by all its warps, for a row

No GPU is needed. Two processes compile, without Triton's interpreter.
"""

from __future__ import annotations

import multiprocessing
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
    """What is asked for, as target and place among all that is shipped for it; other processes find it by that.

    Empty sequences ask for all. Raises ValueError for an operation that there is not.
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
    """The metrics of each, in order, from two processes; a kernel that does not compile has "error" instead."""
    # A fresh interpreter for each process: a fork of one with torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(_PROCESSES, len(wanted)), mp_context=context) as pool:
        yield from pool.map(_row, *zip(*wanted, strict=True), [gates] * len(wanted))


@lru_cache(maxsize=len(TARGETS))
def all_variants(target: str) -> list[Variant]:
    """All that is shipped for a target (one of TARGETS), in the order of the registry."""
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    return [x for operation in OPERATIONS.values() if operation.variants for x in operation.variants(target)]


def _row(target: str, i: int, gates: bool) -> dict[str, Any]:
    variant = all_variants(target)[i]
    try:
        return compile_kernel(variant, target, compile_gates.depth(variant, target) if gates else Depth.LISTING)
    except Exception as error:
        # Whatever a compiler raises is a result here; the others are reported all the same.
        name = {"operation": variant.operation, "dtype": variant.dtype, "label": variant.label, "target": target}
        return {**name, "error": f"{type(error).__name__}: {error}"}


def row_name(row: Mapping[str, Any]) -> str:
    """What a row is about, in words."""
    return f"{row['target']} {row['operation']} {row['dtype']} {row['label']}"


_HEADS = ("", "warps", "regs", "spills", "stack", "shared", "occ", "tensor cores", "16 B", "2 B", "instructions")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each target, and below it what the assembler warned of and what did not compile."""
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

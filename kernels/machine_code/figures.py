"""Figures from the output of compilers and assemblers, and the GPU limits to compare them with.

Source: CUDA C++ programming guide 13, "Technical specifications per compute capability"; CDNA 3 instruction set
reference guide, section 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A GPU's limits per multiprocessor (on AMD: per compute unit), `shared_limit` per block; memory in bytes."""

    backend: str
    arch: int | str
    shared_limit: int
    shared_total: int
    threads: int
    blocks: int
    warp: int = 32


_KIB = 1024
TARGETS = {
    "sm_80": Target("cuda", 80, 163 * _KIB, 164 * _KIB, 2048, 32),
    "sm_90": Target("cuda", 90, 227 * _KIB, 228 * _KIB, 2048, 32),
    "sm_100": Target("cuda", 100, 227 * _KIB, 228 * _KIB, 2048, 32),
    "gfx942": Target("hip", "gfx942", 64 * _KIB, 64 * _KIB, 2048, 32, warp=64),
}
# 32-bit registers, and columns of tensor memory (sm_100), per multiprocessor.
_REGISTERS = 65536
_TENSOR_COLUMNS = 512
# Shared memory that the driver reserves per block.
_RESERVED = 1024

TENSOR_CORES = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma.sync": r"\bmma\.sync",
    "mfma": r"v_mfma_",
}
# Products on tensor cores that do not keep all of float32; exact ones are tt.dot without an inputPrecision.
_ROUNDING_DOT = re.compile(r"tt\.dot\b.*inputPrecision = (?:tf32|bf16)|ttng\.(?:warp_group_dot|tc_gen5_mma)\b")
# Lines of ptxas that are not figures: warnings, and notes that wgmma products are not overlapped with other work.
_WARNING = re.compile(r"^.*(?:warning|Performance Loss|ignored).*$", re.MULTILINE | re.IGNORECASE)


def ptxas_figures(log: str) -> dict[str, Any]:
    """Registers per thread, bytes of stack and of spills (stores and loads), and warnings, from ptxas -v."""

    def figure(pattern: str) -> int:
        found = re.search(pattern, log)
        if not found:
            raise RuntimeError(f"ptxas: expected {pattern!r} in its report, got {log!r}")
        return int(found[1])

    return {
        "registers": figure(r"Used (\d+) registers"),
        "spills": figure(r"(\d+) bytes spill stores") + figure(r"(\d+) bytes spill loads"),
        "stack": figure(r"(\d+) bytes stack frame"),
        "warnings": [line.strip() for line in _WARNING.findall(log)],
    }


def amdgcn_figures(text: str) -> dict[str, int]:
    """The same from the comments and notes of an AMD listing, with spills at 4 bytes per register and lane."""

    def figure(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", text)
        if not found:
            raise RuntimeError(f"amdgcn: expected {name!r} in the listing")
        return int(found[1])

    return {
        "registers": figure(r"\.vgpr_count"),
        "spills": 4 * (figure(r"\.vgpr_spill_count") + figure(r"\.sgpr_spill_count")),
        "stack": figure(r"\.private_segment_fixed_size"),
        "group_segment": figure(r"\.group_segment_fixed_size"),
        "waves": figure("Occupancy"),
    }


def occupancy(gpu: Target, threads: int, registers: int, shared: int, columns: int = 0) -> int:
    """How many blocks of `threads` threads an NVIDIA multiprocessor holds at once; 0 if not even one fits."""
    # Registers are allocated per warp, in multiples of 8 per thread.
    per_warp = -(-registers // 8) * 8 * 32
    fits = [gpu.blocks, gpu.threads // threads, _REGISTERS // per_warp // (threads // 32)]
    fits.append(gpu.shared_total // (shared + _RESERVED))
    if columns:
        fits.append(_TENSOR_COLUMNS // columns)
    return min(fits)


def ir_figures(text: str, dtype: str) -> dict[str, int]:
    """From Triton's own code, just before LLVM's: products of float32 that round to tf32, and maxima and minima that
    keep NaN."""
    return {
        "tf32_dots": len(_ROUNDING_DOT.findall(text)) if dtype == "float32" else 0,
        "nan_maxima": text.count("arith.maximumf"),
        "nan_minima": text.count("arith.minimumf"),
    }


def tensor_cores(text: str) -> dict[str, int]:
    """Count tensor-core instructions by kind in PTX or an AMD listing; kinds that do not occur are left out."""
    counts = {kind: len(re.findall(pattern, text)) for kind, pattern in TENSOR_CORES.items()}
    return {kind: n for kind, n in counts.items() if n}


def ptx_load_widths(text: str) -> list[int]:
    """Bytes per thread of each load from global memory in PTX, including asynchronous copies.

    The assembler keeps these widths: it drops unneeded loads, but neither merges nor splits the others.
    """
    plain = re.findall(r"\bld\.global(?:\.[\w:]+?)*?(?:\.v(\d))?\.[busf](\d+)\s", text)
    copies = re.findall(r"\bcp\.async\.c[ag]\.shared\.global\S*\s*\[[^\]]*\],\s*\[[^\]]*\],\s*(0x[0-9a-f]+|\d+)", text)
    return [int(n or 1) * int(bits) // 8 for n, bits in plain] + [int(width, 0) for width in copies]

"""Sums over many rows in a fixed order: each of a fixed number of programs adds up its share, one kernel the rest.

    total = Σ_p partials[p],    partials[p] = Σ of the tiles p, p + P, p + 2P, ...

P depends on the shape alone, never on the GPU's number of multiprocessors, and nothing is added atomically: so
the same inputs give the same bits on every run and every GPU. Partial sums are float32.

Grid: one program per COLUMNS columns of one of up to three vectors; it adds ROWS partials at a time.
Twin: `sum_of_tokens` in reference/array.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant

# The most partial sums: enough programs to fill a GPU, and few enough that reading them back costs a few per cent.
PARTIALS = 256


@triton.jit
def sum_partials_kernel(
    partials, first, second, third, P, E: tl.constexpr, VECTORS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # (P, VECTORS, E) -> (E,) x 3
    """COLUMNS numbers of one of the vectors."""
    blocks: tl.constexpr = (E + COLUMNS - 1) // COLUMNS
    i_vector = tl.program_id(0) // blocks
    o_e = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    m_e = o_e < E
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in tl.range(0, P, ROWS):
        o_p = start + tl.arange(0, ROWS)
        o_pe = (o_p[:, None].to(tl.int64) * VECTORS + i_vector) * E + o_e[None, :]
        total += tl.load(partials + o_pe, mask=(o_p < P)[:, None] & m_e[None, :], other=0.0)
    sums = tl.sum(total, 0).to(first.dtype.element_ty)
    # An `if` on what to store to, as pointers cannot be chosen between.
    if i_vector == 0:
        tl.store(first + o_e, sums, mask=m_e)
    elif i_vector == 1:
        tl.store(second + o_e, sums, mask=m_e)
    else:
        tl.store(third + o_e, sums, mask=m_e)


def configuration() -> Configuration:
    """Rows and columns of a program, and warps, of the kernel that sums."""
    return Configuration({"ROWS": 16, "COLUMNS": 64}, num_warps=4)


def count_partials(tiles: int) -> int:
    """P, for rows in so many tiles."""
    return min(tiles, PARTIALS)


def sum_partials(partials: Tensor, dtype: torch.dtype) -> list[Tensor]:  # (P, VECTORS, E) -> (E,) x VECTORS
    """The sums of up to three vectors' float32 partials, rounded once to `dtype`."""
    P, vectors, E = partials.shape
    sums = [torch.empty((E,), dtype=dtype, device=partials.device) for _ in range(vectors)]
    arguments = (partials, *[sums[min(i, vectors - 1)] for i in range(3)], P)
    chosen = configuration()
    grid = (vectors * -(-E // chosen.blocks["COLUMNS"]),)
    launch(sum_partials_kernel, grid, partials, *arguments, E=E, VECTORS=vectors, **chosen.blocks, **chosen.options)
    return sums


def sum_variants(operation: str, vectors: int, columns: Sequence[int]) -> list[Variant]:
    """The kernel as `operation` uses it."""
    found, chosen = [], configuration()
    for dtype, kind in TRITON_TYPES.items():
        for E in columns:
            results = dict.fromkeys(("first", "second", "third"), f"*{kind}")
            described = (operation, name_of(dtype), f"E={E} partials", sum_partials_kernel)
            signature = {"partials": "*fp32", **results, "P": "i32"}
            constants = {"E": E, "VECTORS": vectors, **chosen.blocks}
            tile = chosen.blocks["ROWS"] * chosen.blocks["COLUMNS"]
            found.append(Variant(*described, signature, constants, chosen, tile=tile, loop=True))
    return found

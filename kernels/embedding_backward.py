"""The backward pass of the embeddings: the normalisation's, then sums over the tokens that read each table row.

    d = the gradient of word[id] + position[position_id + 2], one float32 row per token, as in `layer_norm_backward.py`
    dword[id] = Σ d over the tokens with that id, and likewise for positions

Tokens are sorted by id (stably), so an id's tokens are a segment. A segment is cut into pieces of PIECE tokens, which
are summed in parallel, and then its pieces are: an id that occurs thousands of times ([CLS], a comma) keeps many
programs busy, not one. Nothing is added atomically; the order of every sum depends on the ids alone.

Grid: one program per partial sum for d; one per sorted token for the pieces, of which those inside a piece do nothing;
one per PIECE sorted tokens, among which at most one segment of several pieces begins, for the sums of pieces.
Twin: `embed_vjp` and `sum_by_row` in reference/embedding.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ernie_m.reference.embedding import POSITION_OFFSET

from .layer_norm_backward import configuration, normalised_vjp
from .partials import count_partials, sum_partials, sum_variants
from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant, next_power_of_2

PIECE = 16


@triton.jit
def table_rows(ids, o_t, m_t, rows, OFFSET: tl.constexpr):
    """The table rows that the tokens' ids select, clamped to the table, and which of them did not have to be."""
    row = tl.load(ids + o_t, mask=m_t, other=0).to(tl.int64) + OFFSET
    clamped = tl.minimum(tl.maximum(row, OFFSET), rows - 1)
    return clamped, clamped == row


@triton.jit
def embed_vjp_kernel(
    dy, input_ids, position_ids, word, position, gamma, d, partials, T, V, N_POSITIONS, P, eps,
    E: tl.constexpr, OFFSET: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # (T, E), (T,) x 2, (V, E), (N_POSITIONS, E), (E,) -> (T, E), (P, 2, E)  # fmt: skip
    """Every P-th tile of d, and these tiles' sums for γ and β. Tokens outside a table have no gradient."""
    i_partial = tl.program_id(0)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    b_gamma = tl.load(gamma + o_e, mask=m_e, other=0.0).to(tl.float32)
    d_gamma = tl.zeros((BLOCK,), tl.float32)
    d_beta = tl.zeros((BLOCK,), tl.float32)
    for i_tile in tl.range(i_partial, tl.cdiv(T, ROWS), P):
        o_t = tl.cast(i_tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        m_t = o_t < T
        o_te = o_t[:, None] * E + o_e[None, :]
        i_word, has_word = table_rows(input_ids, o_t, m_t, V, 0)
        i_position, has_position = table_rows(position_ids, o_t, m_t, N_POSITIONS, OFFSET)
        m_known = m_t & has_word & has_position
        m_te = m_known[:, None] & m_e[None, :]
        v = tl.load(word + i_word[:, None] * E + o_e[None, :], mask=m_te, other=0.0).to(tl.float32)
        v += tl.load(position + i_position[:, None] * E + o_e[None, :], mask=m_te, other=0.0).to(tl.float32)
        mean = tl.sum(v, 1) / E
        centred = tl.where(m_te, v - mean[:, None], 0.0)
        # Not 0 in rows that are left out, where an ε of 0 would make rstd infinite.
        variance = tl.where(m_known, tl.sum(centred * centred, 1) / E, 1.0)
        rstd = 1.0 / tl.sqrt(variance + eps)
        b_dy = tl.load(dy + o_te, mask=m_te, other=0.0).to(tl.float32)
        b_d, n = normalised_vjp(b_dy, v, mean, rstd, b_gamma, E)
        tl.store(d + o_te, b_d, mask=m_t[:, None] & m_e[None, :])
        d_gamma += tl.sum(b_dy * n, 0)
        d_beta += tl.sum(b_dy, 0)
    p_partial = partials + i_partial * (2 * E) + o_e
    tl.store(p_partial, d_gamma, mask=m_e)
    tl.store(p_partial + E, d_beta, mask=m_e)


@triton.jit
def sum_pieces_kernel(
    d, order, rows, starts, ends, table, pieces,
    E: tl.constexpr, PIECE: tl.constexpr, COLUMNS: tl.constexpr,
):  # (T, E), (T,) x 4 -> (V, E), (2 ⌈T / PIECE⌉, E)  # fmt: skip
    """COLUMNS numbers of the sum of one piece: to the table if it is its segment's only one, else to `pieces`.

    Of the pieces that begin among PIECE sorted tokens, at most one is the first of several, and one a later one; so a
    piece has place 2b or 2b + 1 for the b-th PIECE tokens.
    """
    blocks: tl.constexpr = (E + COLUMNS - 1) // COLUMNS
    i_sorted = tl.program_id(0) // blocks
    start = tl.load(starts + i_sorted)
    end = tl.load(ends + i_sorted)
    if (i_sorted - start) % PIECE == 0:
        o_e = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
        m_e = o_e < E
        o_s = i_sorted + tl.arange(0, PIECE)
        m_s = o_s < end
        o_t = tl.load(order + o_s, mask=m_s, other=0)
        total = tl.sum(tl.load(d + o_t[:, None] * E + o_e[None, :], mask=m_s[:, None] & m_e[None, :], other=0.0), 0)
        if end - start <= PIECE:
            p_row = table + tl.load(rows + i_sorted) * E
            tl.store(p_row + o_e, total.to(table.dtype.element_ty), mask=m_e)
        else:
            place = (i_sorted // PIECE).to(tl.int64) * 2 + (i_sorted > start).to(tl.int64)
            tl.store(pieces + place * E + o_e, total, mask=m_e)


@triton.jit
def join_pieces_kernel(
    rows, starts, ends, pieces, table, T,
    E: tl.constexpr, PIECE: tl.constexpr, COLUMNS: tl.constexpr,
):  # (T,) x 3, (2 ⌈T / PIECE⌉, E) -> (V, E)  # fmt: skip
    """COLUMNS numbers of the sum of the segment of several pieces, if there is one, that begins in one block."""
    blocks: tl.constexpr = (E + COLUMNS - 1) // COLUMNS
    o_s = tl.program_id(0) // blocks * PIECE + tl.arange(0, PIECE)
    start = tl.load(starts + o_s, mask=o_s < T, other=-1)
    end = tl.load(ends + o_s, mask=o_s < T, other=-1)
    first = tl.max(tl.where((start == o_s) & (end - start > PIECE), start, -1), 0)
    if first >= 0:
        o_e = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
        m_e = o_e < E
        last = tl.load(ends + first)
        total = tl.zeros((PIECE, COLUMNS), tl.float32)
        for at in tl.range(first, last, PIECE * PIECE):
            o_piece = at + tl.arange(0, PIECE) * PIECE
            place = o_piece // PIECE * 2 + (o_piece > first).to(tl.int64)
            m_piece = (o_piece < last)[:, None] & m_e[None, :]
            total += tl.load(pieces + place[:, None] * E + o_e[None, :], mask=m_piece, other=0.0)
        p_row = table + tl.load(rows + first) * E
        tl.store(p_row + o_e, tl.sum(total, 0).to(table.dtype.element_ty), mask=m_e)


def table_configuration(E: int) -> Configuration:
    """Blocks and warps for sums of PIECE rows of E columns."""
    return Configuration({"PIECE": PIECE, "COLUMNS": min(next_power_of_2(E), 256)}, num_warps=4)


def variants_backward(target: str) -> Iterator[Variant]:
    """The kernels at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        name = name_of(dtype)
        for E in (768, 1024):
            chosen, table = configuration(E), table_configuration(E)
            ids = {"input_ids": "*i64", "position_ids": "*i64"}
            tensors = {**dict.fromkeys(("word", "position", "gamma"), f"*{kind}"), "d": "*fp32", "partials": "*fp32"}
            sizes = {**dict.fromkeys(("T", "V", "N_POSITIONS", "P"), "i32"), "eps": "fp32"}
            signature = {"dy": f"*{kind}", **ids, **tensors, **sizes}
            constants = {"E": E, "OFFSET": POSITION_OFFSET, **chosen.blocks}
            described = ("embed_vjp", name, f"E={E}", embed_vjp_kernel, signature, constants, chosen)
            yield Variant(*described, tile=chosen.blocks["ROWS"], loop=True)
            sorted_ids = dict.fromkeys(("rows", "starts", "ends"), "*i64")
            sums = {"table": f"*{kind}", "pieces": "*fp32"}
            constants = {"E": E, **table.blocks}
            signature = {"d": "*fp32", "order": "*i64", **sorted_ids, **sums}
            tile = PIECE * table.blocks["COLUMNS"]
            described = ("embed_vjp", name, f"E={E} pieces", sum_pieces_kernel, signature, constants, table)
            yield Variant(*described, tile=tile)
            signature = {**sorted_ids, **sums, "T": "i32"}
            described = ("embed_vjp", name, f"E={E} joined", join_pieces_kernel, signature, constants, table)
            yield Variant(*described, tile=tile, loop=True)
    yield from sum_variants("embed_vjp", 2, (768, 1024))


def sum_by_row(d: Tensor, rows: Tensor, table: Tensor) -> Tensor:  # (T, E) float32, (T,), (V, E) -> (V, E)
    """The sum of the rows of `d` for each row of a table of zeros, in the table's dtype."""
    T, E = d.shape
    total = torch.zeros_like(table)
    chosen = table_configuration(E)
    blocks, count = -(-E // chosen.blocks["COLUMNS"]), -(-T // PIECE)
    ordered, order = torch.sort(rows, stable=True)
    starts, ends = (torch.searchsorted(ordered, ordered, right=right) for right in (False, True))
    pieces = torch.empty(2 * count, E, dtype=torch.float32, device=d.device)
    constants = {"E": E, **chosen.blocks, **chosen.options}
    launch(sum_pieces_kernel, (T * blocks,), d, d, order, ordered, starts, ends, total, pieces, **constants)
    launch(join_pieces_kernel, (count * blocks,), d, ordered, starts, ends, pieces, total, T, **constants)
    return total


def embed_backward(
    dy: Tensor, input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor, gamma: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # (..., E), (...,) x 2, (V, E), (P, E), (E,) -> (V, E), (P, E), (E,) x 2
    """The gradients of the tables, γ and β, of contiguous tensors on which a kernel runs."""
    if not dy.numel():
        d_word, d_position, dgamma, dbeta = (torch.zeros_like(x) for x in (word, position, gamma, gamma))
        return d_word, d_position, dgamma, dbeta
    (V, E), T = word.shape, input_ids.numel()
    chosen = configuration(E)
    P = count_partials(-(-T // chosen.blocks["ROWS"]))
    d = torch.empty(T, E, dtype=torch.float32, device=dy.device)
    partials = torch.empty(P, 2, E, dtype=torch.float32, device=dy.device)
    arguments = (dy, input_ids, position_ids, word, position, gamma, d, partials, T, V, position.shape[0], P, eps)
    constants = {"E": E, "OFFSET": POSITION_OFFSET, **chosen.blocks, **chosen.options}
    launch(embed_vjp_kernel, (P,), dy, *arguments, **constants)
    dgamma, dbeta = sum_partials(partials, gamma.dtype)
    # Clamped, as in the kernel: an id outside its table adds zeros to the last row or the first.
    words = input_ids.flatten().long().clamp(0, V - 1)
    places = position_ids.flatten().long().clamp(0, position.shape[0] - POSITION_OFFSET - 1) + POSITION_OFFSET
    return sum_by_row(d, words, word), sum_by_row(d, places, position), dgamma, dbeta

"""Sums over the tokens that read a table's row: segments of every length, cut into pieces, and ids outside a table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vjp_checks import assert_same_bits, bits

from ernie_m.kernels import embedding
from ernie_m.kernels.embedding_backward import PIECE, sum_by_row
from ernie_m.kernels.runtime.dispatch import INTERPRETED

# Slow in the interpreter; `verify`, in `make test`, checks the same kernels with fewer inputs.
pytestmark = pytest.mark.all

DEVICE = "cpu" if INTERPRETED else "cuda"
P = PIECE
# Around one piece, several, and more than PIECE of them, which one step of the second sum adds.
LENGTHS = (1, 2, P - 1, P, P + 1, 2 * P - 1, 2 * P, 2 * P + 1, 5 * P + 3, P * P, P * P + 1)


def whole(*shape: int, seed: int = 0) -> torch.Tensor:
    """Small whole numbers, whose sums are exact in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float().to(DEVICE)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=6),
    E=st.sampled_from([1, 3, 255, 257]),
    seed=st.integers(0, 2**20),
)
def test_segments_of_any_length_are_summed(lengths: list[int], E: int, seed: int) -> None:
    """In any order of the tokens, wherever pieces begin. Seen red: two pieces with one place; the last piece left out;
    PIECE pieces at most."""
    generator = torch.Generator().manual_seed(seed)
    used = torch.randperm(3 * len(lengths), generator=generator)[: len(lengths)]
    rows = torch.cat([i.repeat(n) for i, n in zip(used, lengths, strict=True)])
    rows = rows[torch.randperm(len(rows), generator=generator)].to(DEVICE)
    d = whole(len(rows), E, seed=seed)
    table = torch.empty(3 * len(lengths), E, device=DEVICE)
    assert torch.equal(sum_by_row(d, rows, table), torch.zeros_like(table).index_add(0, rows, d))


def test_an_id_that_occurs_thousands_of_times() -> None:
    """5,000 tokens of one id, among others. No program adds more than PIECE rows, or PIECE² tokens a step."""
    rows = torch.arange(5400, device=DEVICE) % 27 % 25 % 2 * torch.arange(5400, device=DEVICE).remainder(400)
    d, table = whole(5400, 2), torch.empty(400, 2, dtype=torch.float32, device=DEVICE)
    assert int((rows == 0).sum()) > 2500
    assert torch.equal(sum_by_row(d, rows, table), torch.zeros_like(table).index_add(0, rows, d))


def test_sums_of_repeated_ids_are_the_same_bits_in_any_order() -> None:
    """Of random numbers, whose sums depend on the order of additions."""
    rows = torch.tensor([0, 3, 3, 3, 2] * 9, device=DEVICE)
    d = torch.randn(45, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    table = torch.empty(5, 3, dtype=torch.bfloat16, device=DEVICE)
    assert_same_bits(lambda: [sum_by_row(d, rows, table)], repeats=100)


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("form", ["kernel", "plain"])
def test_tokens_outside_a_table_take_no_part(form: str, id_dtype: torch.dtype) -> None:
    """Whatever is in the row that their clamped id selects. Seen red: nan of the last row; γ's gradient of them."""
    generator = torch.Generator().manual_seed(0)
    dy, word, position, gamma = (torch.randn(s, generator=generator).to(DEVICE) for s in ((6, 8), (5, 8), (7, 8), (8,)))
    word[4], word[0] = float("nan"), float("inf")
    function = embedding._embed_vjp if form == "kernel" else embedding.plain_embed_vjp
    ids = torch.tensor([1, 5, 2, -1, 1, 3], dtype=id_dtype, device=DEVICE)
    places = torch.tensor([0, 1, 4, 2, 5, -3], dtype=id_dtype, device=DEVICE)
    inside = torch.tensor([0, 2], device=DEVICE)
    # An ε of 0: where a row is left out, 1/√0 is too.
    for eps in (1e-5, 0.0):
        found = function(dy, ids, places, word, position, gamma, eps)
        alone = function(dy[inside], ids[inside], places[inside], word, position, gamma, eps)
        assert all(bool(x.isfinite().all()) for x in found)
        for got, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(got, expected)
        assert not found[0][[0, 3, 4]].any() and not found[1][:2].any()


def test_positions_are_offset_by_two() -> None:
    """Rows 0 and 1 of the table have no gradient, and each position has its own."""
    tables = [whole(4, 6), whole(9, 6, seed=1), whole(6, seed=2)]
    ids = torch.tensor([0, 1, 2, 3], device=DEVICE)
    dword, dposition, _, _ = embedding.embed_vjp(whole(4, 6, seed=3), ids, ids + 1, *tables, 1e-5)
    assert bits([dposition[3:7]]) == bits([dword]) and not dposition[:3].any() and not dposition[7:].any()

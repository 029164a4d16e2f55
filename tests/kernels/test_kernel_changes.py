"""What each cast, mask and `other=` in the kernels is for: without it, a check in Triton's interpreter fails.

A change that nothing notices is either harmless, and listed here, or a fault that could come back.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from kernel_changes import Change, changed_kernels, same, without, without_int64
from torch import Tensor

from ernie_m import kernels
from ernie_m.kernels import (
    attention,
    embedding,
    embedding_backward,
    first_token,
    gelu,
    gelu_backward,
    layer_norm,
    layer_norm_backward,
    linear_cross_entropy_backward,
)
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.coverage import normal_numbers, rounded
from ernie_m.kernels.checking.families import family
from ernie_m.kernels.checking.operations import OPERATIONS
from ernie_m.kernels.checking.report import Failure
from ernie_m.kernels.checking.runner import Runner
from ernie_m.kernels.checking.virtual import OnlyKernels
from ernie_m.kernels.checking.watching import watching
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.optional_triton import tl, triton

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="on a GPU, an address out of range ends the process")

PAGES = {
    "bias_gelu": gelu,
    "add_layer_norm": layer_norm,
    "embed": embedding,
    "bias_gelu_vjp": gelu_backward,
    "add_layer_norm_vjp": layer_norm_backward,
    "embed_vjp": embedding_backward,
    "linear_cross_entropy_vjp": linear_cross_entropy_backward,
    "packed_attention": attention,
    "first_token_attention": first_token,
}


def small_inputs(op: str) -> dict[str, Any]:
    """Inputs of a small size; for gradients of tables, 70 tokens of few ids, whose sums have several pieces; that
    of the last word too, and the last position has one."""
    known = family(op)
    assert known is not None
    inputs = known.small(normal_numbers(0))
    if op == "embed_vjp":
        words, places = np.arange(70) % 3, np.arange(70) % 2
        words[-20:], places[-1] = 299, 511
        inputs |= {"dy": normal_numbers(9)(70, 65), "input_ids": words, "position_ids": places}
    return inputs


@contextmanager
def replaced(page: ModuleType, functions: dict[str, Any]) -> Iterator[None]:
    """Inside, the page has these kernels."""
    with pytest.MonkeyPatch.context() as patch:
        for name, function in functions.items():
            patch.setattr(page, name, function)
        yield


def noticed(op: str, change: Change, folder: Path) -> dict[str, str | None]:
    """What a check of a small case says about each change to the operation's page; None for nothing.

    Checks are without dropout, and do not load tokens.
    """
    found: dict[str, str | None] = {}
    for call, functions in changed_kernels(PAGES[op], change, folder):
        if call.startswith("tl.load(tokens"):
            continue
        runner = Runner(OPERATIONS[op].kernel, "torch", "cpu")  # type: ignore[arg-type]
        assert call not in found
        found[call] = None
        with replaced(PAGES[op], functions):
            try:
                runner.verdicts(rounded(op, "float32", small_inputs(op), "fixed inputs"))
            except Failure as failure:
                found[call] = failure.reason
    return found


# Stores of a partial sum's first vectors: the program's next store writes the numbers past their ends again, here. On a
# GPU the two would race.
WRITTEN_AGAIN = ("tl.store(p_partial, d_", "tl.store(p_partial + E, d_gamma")


@pytest.mark.parametrize("op", PAGES)
def test_every_mask_is_needed(op: str, tmp_path: Path) -> None:
    """Without it, a load or a store is outside its array, or reads a number of the next row."""
    found = noticed(op, without("mask", "other"), tmp_path)
    assert len(found) >= 2
    for call, reason in found.items():
        assert (reason is None) == call.startswith(WRITTEN_AGAIN), call
        if call.startswith("tl.store") and reason is not None and not op.endswith("_vjp"):
            assert reason.startswith("the kernel wrote past the end of")
    if op == "bias_gelu":
        assert found["tl.load(bias + o_f, mask=m_f, other=0.0)"] == "the kernel read past the end of bias"


def test_the_mask_of_tokens_is_needed(tmp_path: Path) -> None:
    """Without it, attention with dropout reads past their end."""

    def damage() -> str | None:
        with watching() as watch:
            tokens = torch.arange(5)
            attention._packed_attention(torch.ones(5, 3, 1, 16), ends(0, 5), 5, 0.25, torch.tensor(7), tokens)
        return watch.damage

    assert damage() is None
    changes = [c for c in changed_kernels(attention, without("mask", "other"), tmp_path) if "(tokens" in c[0]]
    assert len(changes) == 1
    with replaced(attention, changes[0][1]):
        assert damage() == "the kernel read past the end of the array `tokens`"


# Loads whose masked numbers reach nothing that is stored or summed: keys get a score of -inf, the rest is masked again.
HARMLESS = {"bias + o_f", "x + o_nf", "gamma + o_e", "beta + o_e", "p_k", "p_block", "p_q"}
# In gradients, columns of 0 past the end are what keeps sums right; ids only select what a mask leaves out again.
HARMLESS_IN_GRADIENTS = {"bias + o_f", "ids + o_t", "order + o_s", "starts + o_s", "ends + o_s"}


@pytest.mark.parametrize("op", PAGES)
def test_every_other_is_needed_unless_it_is_harmless(op: str, tmp_path: Path) -> None:
    """What a mask leaves out is NaN here, as it may be on a GPU. Upstream's interpreter has 0, and notices nothing."""
    pointers = HARMLESS_IN_GRADIENTS if op.endswith("_vjp") else HARMLESS
    for call, reason in noticed(op, without("other"), tmp_path).items():
        harmless = any(call.startswith((f"tl.load({pointer},", f"tl.load({pointer} + o_m")) for pointer in pointers)
        assert (reason is None) == harmless, (call, reason)


@triton.jit
def norm_kernel(x, gamma, beta, y, eps, E: tl.constexpr, BLOCK: tl.constexpr, GIVEN: tl.constexpr):
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    p_x = x + tl.program_id(0).to(tl.int64) * E + o_e
    b_x = tl.load(p_x, mask=m_e, other=0.0) if GIVEN else tl.load(p_x, mask=m_e)
    centred = tl.where(m_e, b_x - tl.sum(b_x, 0) / E, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / E + eps)
    b_y = centred * rstd * tl.load(gamma + o_e, mask=m_e) + tl.load(beta + o_e, mask=m_e)
    tl.store(y + tl.program_id(0).to(tl.int64) * E + o_e, b_y, mask=m_e)


@pytest.mark.parametrize("given", [True, False])
def test_check_refuses_a_sum_over_what_a_mask_leaves_out(given: bool) -> None:
    """Seen red with upstream's interpreter, where what a mask leaves out is 0, so that the sum is right."""

    def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        x, E = x.contiguous(), x.shape[1]
        y = torch.empty_like(x)
        norm_kernel[(x.shape[0],)](x, gamma, beta, y, eps, E=E, BLOCK=triton.next_power_of_2(E), GIVEN=given)
        return y

    if given:
        assert check(layer_norm, "layer_norm", dtypes=["float32"], examples=5, quick=True, plain=True)
        return
    with pytest.raises(Failure, match="got nan at"):
        check(layer_norm, "layer_norm", dtypes=["float32"], examples=5, quick=True, plain=True)


def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Zeros of which only the pages that are touched take memory; the rest is not even promised.

    Before them, as far as an offset in 32 bits can be wrong, there is no other array.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    before = 2**31 * dtype.itemsize
    memory = mmap.mmap(-1, before + math.prod(shape) * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype, offset=before).view(shape)


def ends(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


# In each of these, every product of an index and a stride of the last program is past 2³¹ (and below 2³², so that in
# 32 bits it is far before the start).
WIDE, LONG = 2**16, 2**15 + 2
H, D = 2**15, 16


def large_gelu() -> None:
    kernels.bias_gelu(empty(LONG, WIDE), empty(WIDE))


def large_layer_norm() -> None:
    vector = empty(WIDE)
    kernels.add_layer_norm(empty(LONG, WIDE), vector, empty(LONG, WIDE), vector, vector, 1e-5)


def large_gelu_gradient() -> None:
    gelu._bias_gelu_vjp(empty(LONG, WIDE), empty(LONG, WIDE), empty(WIDE))


def large_layer_norm_gradient() -> None:
    rows, vector = (empty(LONG, WIDE) for _ in range(3)), empty(WIDE)
    dy, x, residual = rows
    statistics = (empty(LONG, dtype=torch.float32) for _ in range(2))
    layer_norm._add_layer_norm_vjp(dy, x, vector, residual, vector, *statistics)


def large_embedding() -> None:
    ids = torch.full((LONG,), LONG - 1, dtype=torch.int32)
    kernels.embed(ids, ids * 0, empty(LONG, WIDE), empty(3, WIDE), empty(WIDE), empty(WIDE), 1e-5)


def large_attention(start: int) -> None:
    """Launched directly, with more tokens than there are, and with a sequence of two more than its blocks cover."""
    n, T = 66 * 64 + 2, 2**16 + 64
    chosen = attention.configuration("sm_90", torch.float16, D, 64)
    arrays = empty(start + n, 3, H, D), ends(0, start, start + n), empty(start + n, H, D)
    lse, seed, tokens = empty(H * T, dtype=torch.float32), torch.tensor(7), torch.zeros(T, dtype=torch.int64)
    attention.launch(
        attention.packed_attention_kernel,
        attention.grid(2, H, 66 * 64, chosen),
        *(lse, *arrays, lse, seed, tokens, T, 1.0, 66, 2**30, 4 / 3),
        H=H,
        D=D,
        **{**chosen.blocks, "LOOP": True, "DROP": True},
        **chosen.options,
    )


def large_first_token(start: int) -> None:
    n, B = 2400, 4200
    cu_seqlens = torch.zeros(B + 1, dtype=torch.int32)
    cu_seqlens[-2:] = ends(start, start + n)
    kernels.first_token_attention(empty(B, H, D), empty(start + n, 2, H, D), cu_seqlens)


# The last sequence starts late, or at 0: there the offset of a key in it is not added to a large one.
LARGE: dict[ModuleType, tuple[Callable[[], None], ...]] = {
    gelu: (large_gelu,),
    layer_norm: (large_layer_norm,),
    embedding: (large_embedding,),
    gelu_backward: (large_gelu_gradient,),
    layer_norm_backward: (large_layer_norm_gradient,),
    attention: (partial(large_attention, 0), partial(large_attention, 1400)),
    first_token: (partial(large_first_token, 0), partial(large_first_token, 2100)),
}


def damage_of(page: ModuleType) -> str | None:
    """The first access out of range of the first, the last and one more program of the page's launches."""
    for call in LARGE[page]:
        with (
            watching(programs=3) as watch,
            OnlyKernels(),
            torch.no_grad(),
            warnings.catch_warnings(),
            pytest.MonkeyPatch.context() as patch,
        ):
            # What is read out of range is NaN.
            warnings.simplefilter("ignore", RuntimeWarning)
            patch.setattr(torch, "empty_like", lambda x, **_: empty(*x.shape, dtype=x.dtype))
            patch.setattr(torch, "empty", lambda *n, dtype, device: empty(*(n if n[1:] else n[0]), dtype=dtype))
            call()
        assert watch.grids and watch.sampled and not watch.exhausted
        if watch.damage is not None:
            return watch.damage
    return None


@pytest.mark.parametrize(
    "page",
    # Half a minute for one page, a quarter for the other.
    [pytest.param(page, marks=pytest.mark.all if page in (layer_norm_backward, attention) else ()) for page in LARGE],
    ids=lambda page: page.__name__.rpartition(".")[2],
)
def test_every_int64_cast_is_needed(page: ModuleType, tmp_path: Path) -> None:
    """Without any one of them, an offset past 2³¹ is before the start of an array. Takes no memory to speak of."""
    assert damage_of(page) is None
    with replaced(page, next(changed_kernels(page, same, tmp_path))[1]):
        assert damage_of(page) is None
    casts = 0
    for call, functions in changed_kernels(page, without_int64, tmp_path):
        with replaced(page, functions):
            assert damage_of(page) is not None, call
        casts += 1
    assert casts

"""Plain packed attention: groups of similar length, the memory that they take, and the single rectangle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import U64, attention_bound
from torch.utils._python_dispatch import TorchDispatchMode

import ernie_m.reference as reference
from ernie_m.kernels import rectangles
from ernie_m.kernels.rectangles import groups, plain_packed_attention

LENGTHS = (0, 1, 2, 3, 7, 8, 20, 64, 65)


def cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def drawn(T: int, H: int = 2, D: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(T, 3, H, D, generator=torch.Generator().manual_seed(T), dtype=dtype)


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return result


@given(lengths=st.lists(st.integers(0, 600), max_size=60), heads=st.integers(1, 16))
def test_groups_hold_each_sequence_once_and_at_most_half_padding(lengths: list[int], heads: int) -> None:
    """Seen red: groups by length alone, without the limit on scores; a comparison with the previous sequence."""
    found = groups(lengths, heads)
    assert sorted(b for group in found for b in group) == [b for b, n in enumerate(lengths) if n]
    for group in found:
        sizes = [lengths[b] for b in group]
        assert len(group) * max(sizes) ** 2 <= 2 * sum(n * n for n in sizes)
        assert len(group) == 1 or len(group) * heads * max(sizes) ** 2 <= rectangles.GROUP_SCORES


def test_groups_are_few() -> None:
    """√2 from one to the next: 20 for any lengths up to 1,000."""
    assert len(groups(range(1000), 1)) <= 20 + 1000**3 / 3 * 2 / rectangles.GROUP_SCORES
    assert groups([5] * 7, 12) == [list(range(7))]
    assert [len(group) for group in groups([64] * 2048, 2)] == [2048]  # exactly `GROUP_SCORES`
    assert [len(group) for group in groups([64] * 2049, 2)] == [2048, 1]


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_is_bounded_by_the_real_work(gradient: bool) -> None:
    """3,000 sequences of one token beside one of 128. Seen red: one rectangle, 98 million scores."""
    lengths, H, D = [1] * 1500 + [128] + [1] * 1500, 2, 4
    qkv = drawn(sum(lengths), H, D, torch.float32).requires_grad_(gradient)
    with Largest() as largest:
        context, _ = plain_packed_attention(qkv, cumulative(lengths), 128)
        if gradient:
            context.sum().backward()
    work = 2 * H * sum(n * n for n in lengths)
    # The rectangle that a group is copied to has one row more.
    assert largest.numbers <= max(work, qkv.numel() + 3 * H * D)


def test_scores_of_one_group_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sequences of one length there are. Seen red: no limit."""
    monkeypatch.setattr(rectangles, "GROUP_SCORES", 5000)
    qkv, cu = drawn(60 * 20, 2, 1), cumulative([20] * 60)
    with Largest() as largest:
        limited = plain_packed_attention(qkv, cu, 20)
    assert largest.numbers <= max(5000, qkv.numel() + 6)
    monkeypatch.undo()
    for x, y in zip(limited, plain_packed_attention(qkv, cu, 20), strict=True):
        torch.testing.assert_close(x, y)


@settings(max_examples=60)
@given(lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=12), limit=st.sampled_from([1, 2000, 2**24]))
def test_results_and_gradients_do_not_depend_on_the_grouping(lengths: list[int], limit: int) -> None:
    """Grouped, alone, in one rectangle, and the reference. Seen red: contexts not put back in the order of tokens."""
    qkv, cu = drawn(sum(lengths)), cumulative(lengths)
    weights = torch.linspace(-1, 1, qkv[:, 0].numel(), dtype=torch.float64).view(qkv[:, 0].shape)
    found = []
    for traced in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rectangles, "GROUP_SCORES", limit)
            patch.setattr(torch.jit, "is_tracing", lambda traced=traced: traced)
            leaf = qkv.clone().requires_grad_()
            context, lse = plain_packed_attention(leaf, cu, max(lengths) + 3)
            loss = (context * weights).sum() + lse.square().sum()
            found.append((context.detach(), lse.detach(), torch.autograd.grad(loss, leaf)[0]))
    for grouped, whole in zip(*found, strict=True):
        torch.testing.assert_close(grouped, whole, rtol=1e-6, atol=1e-6 if grouped.dtype == torch.float32 else 1e-11)
    exact = reference.packed_attention(qkv.numpy(), cu.numpy())
    q, k, v = qkv.numpy().transpose(1, 2, 0, 3)
    if len(qkv):
        assert (np.abs(found[0][0].numpy() - exact) <= attention_bound(q, k, v, U64)).all()


@pytest.mark.parametrize("traced", [False, True])
def test_wrong_bounds_give_nan_and_never_another_sequences_tokens(
    traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen red: the tokens of no sequence computed with the last one's."""
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: traced)
    qkv = drawn(10)
    right = plain_packed_attention(qkv[2:7], cumulative([5]), 5)[0]
    context, lse = plain_packed_attention(qkv, torch.tensor([2, 7], dtype=torch.int32), 5)
    torch.testing.assert_close(context[2:7], right)
    outside = torch.tensor([True] * 2 + [False] * 5 + [True] * 3)
    assert torch.equal(context.isnan().all(dim=-1).all(dim=-1), outside)
    assert torch.equal(lse.isnan(), outside.expand(2, -1))
    for values in ([0, 5000], [-7, 20], [12, 3], [5], []):
        context, _ = plain_packed_attention(qkv, torch.tensor(values, dtype=torch.int32), 20)
        assert context.shape == (10, 2, 4)
    assert plain_packed_attention(qkv, cumulative([10]), 0)[0].isnan().all()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens_still_belong_to_the_graph(lengths: list[int]) -> None:
    qkv = drawn(0).requires_grad_()
    context, lse = plain_packed_attention(qkv, cumulative(lengths), 0)
    assert context.shape == (0, 2, 4) and lse.shape == (2, 0)
    assert torch.autograd.grad(context.sum(), qkv)[0].shape == qkv.shape


def test_compiled_it_is_one_graph_for_all_lengths() -> None:
    """One rectangle, which reads no lengths."""
    torch._dynamo.reset()
    compiled = torch.compile(plain_packed_attention, fullgraph=True, backend="aot_eager")
    for lengths in ([3, 0, 5], [4, 4, 0]):
        leaves = [drawn(8).requires_grad_() for _ in range(2)]
        results = [
            f(x, cumulative(lengths), 6)[0] for f, x in zip((compiled, plain_packed_attention), leaves, strict=True)
        ]
        torch.testing.assert_close(*results)
        gradients = [torch.autograd.grad(y.cos().sum(), x)[0] for x, y in zip(leaves, results, strict=True)]
        torch.testing.assert_close(*gradients)
    assert math.isfinite(float(results[0].sum()))

"""Plain packed attention: groups of equal length, the memory that they take, derivatives, and the single rectangle."""

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
from ernie_m.kernels.dropping import ProbabilityDrops
from ernie_m.kernels.rectangles import attention_by_length, grouping, plain_packed_attention

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


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_grouping_holds_each_token_once_beside_its_own_sequence(lengths: list[int]) -> None:
    """The tokens of each shape are whole sequences of its length. Seen red: starts counted without empty sequences."""
    found = grouping(cumulative(lengths), sum(lengths), max(lengths))
    assert found is not None
    order = np.arange(sum(lengths)) if found.order is None else found.order.numpy()
    assert sorted(order.tolist()) == list(range(sum(lengths)))
    if found.inverse is not None:
        assert order[found.inverse.numpy()].tolist() == list(range(sum(lengths)))
    assert [n for _, n in found.shapes] == sorted({*lengths} - {0})
    place = 0
    spans = {start: start + n for start, n in zip(np.cumsum([0, *lengths[:-1]]).tolist(), lengths, strict=True) if n}
    for count, n in found.shapes:
        for _ in range(count):
            tokens = order[place : place + n].tolist()
            assert tokens == list(range(tokens[0], tokens[0] + n)) and spans.pop(tokens[0]) == tokens[0] + n
            place += n
    assert not spans


@pytest.mark.parametrize("values", [[0, 9], [1, 10], [0, 7, 4, 10], [0, 11], [0, 10]])
def test_grouping_is_none_for_wrong_bounds(values: list[int]) -> None:
    assert grouping(torch.tensor(values, dtype=torch.int32), 10, 9) is None


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
    assert largest.numbers <= max(work, qkv.numel())


def test_fused_attention_never_holds_the_scores() -> None:
    """Neither does its gradient. Seen red: the form that dropout needs."""
    T, H, D = 400, 2, 4
    qkv = drawn(T, H, D, torch.float32).requires_grad_()
    with Largest() as largest:
        groups = grouping(cumulative([T]), T, T)
        assert groups is not None
        attention_by_length(qkv.unbind(1), groups)[0].sum().backward()
    assert largest.numbers == qkv.numel() < H * T * T


def test_second_derivatives() -> None:
    """Of several groups, and where only one of the three inputs needs any."""
    qkv, cu = drawn(6, 1, 2).requires_grad_(), cumulative([2, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda x: plain_packed_attention(x, cu, 2)[0], qkv)
    assert torch.autograd.gradgradcheck(lambda x: plain_packed_attention(x, cu, 2)[0], qkv)
    groups = grouping(cu, 6, 2)
    assert groups is not None
    q, k, v = qkv.detach().unbind(1)
    for i in range(3):
        fixed = [q, k, v]

        def one(x: torch.Tensor, i: int = i, fixed: list[torch.Tensor] = fixed) -> torch.Tensor:
            return attention_by_length((*fixed[:i], x, *fixed[i + 1 :]), groups)[0]

        assert torch.autograd.gradcheck(one, fixed[i].clone().requires_grad_())
        assert torch.autograd.gradgradcheck(one, fixed[i].clone().requires_grad_())


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_reaches_every_probability(p: float) -> None:
    qkv = drawn(7)
    drops = ProbabilityDrops(p, torch.tensor(1), torch.arange(7))
    context, _ = plain_packed_attention(qkv, cumulative([4, 1, 2]), 4, drops)
    assert bool(context.any()) == (p == 0.0)


@settings(max_examples=60)
@given(lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=12))
def test_results_and_gradients_do_not_depend_on_the_grouping(lengths: list[int]) -> None:
    """Grouped, alone, in one rectangle, and the reference. Seen red: contexts not put back in the order of tokens."""
    qkv, cu = drawn(sum(lengths)), cumulative(lengths)
    weights = torch.linspace(-1, 1, qkv[:, 0].numel(), dtype=torch.float64).view(qkv[:, 0].shape)
    found = []
    for traced in (False, True):
        with pytest.MonkeyPatch.context() as patch:
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

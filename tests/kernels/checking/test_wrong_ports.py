"""Ports of an operation that are wrong for one kind of input alone, all of which `check` once passed; and right ones in
other styles, which it must not refuse.

Seen red: each, before its kind of input was tried.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import planted
import pytest
import torch
from judging.wrappers import past_row
from planted_attention import in_blocks
from torch import Tensor
from torch.nn import functional as F

from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.examples import MASKED_SOFTMAX
from ernie_m.kernels.checking.operations import Operation
from ernie_m.kernels.checking.report import Failure

pytestmark = pytest.mark.usefixtures("no_shrinking")
Function = Callable[..., Any]
KERNELS = planted.KERNELS


def failure_of(function: Function, op: str | Operation, **options: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        check(function, op, **{"examples": 2, "dtypes": ["float32"], "quick": True, **options})
    return caught.value


def wrong_if(op: str, condition: Callable[..., bool]) -> Function:
    """The right function, whose last result is a little off if its arguments meet the condition."""

    def port(*arguments: Any) -> Any:
        found = KERNELS[op](*arguments)
        *others, last = found if isinstance(found, tuple) else (found,)
        last = 1.01 * last if condition(*arguments) else last
        return (*others, last) if others else last

    return port


def remembers(op: str, index: int) -> Function:
    """Keeps one argument for later calls with the same shapes, such as the mask that is made of it."""
    known: dict[Any, Any] = {}

    def port(*arguments: Any) -> Any:
        shapes = tuple(tuple(x.shape) for x in arguments if isinstance(x, Tensor))
        found = known.setdefault((shapes, arguments[0].dtype), arguments[index])
        found = known[shapes, arguments[0].dtype] = found.clone() if isinstance(found, Tensor) else found
        return KERNELS[op](*arguments[:index], found, *arguments[index + 1 :])

    return port


def lengths(cu_seqlens: Tensor) -> list[int]:
    return [int(n) for n in cu_seqlens.diff()]


@pytest.mark.parametrize("op", ["gelu", "softmax", "add_layer_norm", "bias_gelu_vjp", "linear_cross_entropy_vjp"])
def test_rows_that_fill_whole_blocks_are_checked(op: str) -> None:
    wrong = wrong_if(op, lambda *inputs: next(len(x) for x in inputs if x.ndim == 2) % 128 == 0)
    failure_of(wrong, op, quick=False)


@pytest.mark.parametrize("op", ["gelu", "bias_gelu", "softmax", "layer_norm", "add_layer_norm", "embed"])
def test_many_rows_are_checked_without_a_kernel(op: str) -> None:
    failure = failure_of(past_row(KERNELS[op], 65_536), op)
    assert failure.case.origin == "fixed inputs with 70,000 rows"


def test_ids_that_need_more_than_16_bits_are_checked() -> None:
    failure_of(lambda ids, *rest: planted.embed(ids % 65_536, *rest), "embed")


@pytest.mark.parametrize("table", [2, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_special_values_in_rows_of_a_table_that_are_read_are_checked(table: int, value: float) -> None:
    def wrong(*inputs: Any) -> Tensor:
        changed = torch.where(inputs[table].isnan() if value != value else inputs[table] == value, 0.0, inputs[table])
        return planted.embed(*inputs[:table], changed, *inputs[table + 1 :])

    assert f"{value} in" in failure_of(wrong, "embed").case.origin


def padded_head(q: Tensor, k: Tensor, v: Tensor, value: float) -> Tensor:
    """Attention over keys that are padded to a multiple of 16 with this score."""
    scores = F.pad(q.float() @ k.float().T / math.sqrt(q.shape[1]), (0, -len(k) % 16), value=value)
    return (scores.softmax(-1)[:, : len(k)] @ v.float()).to(q.dtype)


def of_sequences(head: Function) -> dict[str, Function]:
    """Attention that computes each head with `head`."""

    def packed(qkv: Tensor, cu_seqlens: Tensor) -> Tensor:
        found = torch.zeros_like(qkv[:, 0])
        for start, end in pairwise(cu_seqlens.tolist()):
            for h in range(qkv.shape[2] if start < end else 0):
                found[start:end, h] = head(*qkv[start:end, :, h].unbind(1))
        return found

    def first(q: Tensor, kv: Tensor, cu_seqlens: Tensor) -> Tensor:
        found = torch.zeros_like(q)
        for b, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
            for h in range(q.shape[1] if start < end else 0):
                found[b, h] = head(q[b, h][None], kv[start:end, 0, h], kv[start:end, 1, h])[0]
        return found

    return {"packed_attention": packed, "first_token_attention": first, "attention_head": head}


@pytest.mark.parametrize("op", ["packed_attention", "first_token_attention", "attention_head"])
@pytest.mark.parametrize("value", [-100.0, -1e4, -65504.0, -1e9])
def test_scores_of_padding_that_are_not_minus_infinity_are_refused(op: str, value: float) -> None:
    failure_of(of_sequences(functools.partial(padded_head, value=value))[op], op)


@pytest.mark.parametrize("value", [-65504.0, -1e9, torch.finfo(torch.float32).min])
def test_padding_of_a_softmax_that_is_not_minus_infinity_is_refused(value: float) -> None:
    """A row of the lowest numbers is what masks that are added make of padding."""

    def wrong(scores: Tensor) -> Tensor:
        return F.pad(scores.float(), (0, 1), value=value).softmax(-1)[:, :-1].to(scores.dtype)

    assert failure_of(wrong, "softmax").case.origin == "fixed inputs with the lowest number alone in scores"


@pytest.mark.parametrize("value", [-100.0, -1e4, -65504.0, -1e9])
def test_a_mask_that_is_not_minus_infinity_is_refused(value: float) -> None:
    """In operations of one's own, too."""

    def wrong(scores: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, scores.float().masked_fill(~mask, value).softmax(-1), 0.0).to(scores.dtype)

    failure_of(wrong, MASKED_SOFTMAX)


def gradients_padded(dy: Tensor, qkv: Tensor, cu_seqlens: Tensor, value: float) -> Tensor:
    x = qkv.double().requires_grad_()
    with torch.enable_grad():
        total = sum(
            (padded_head(*x[start:end, :, h].unbind(1), value=value) * dy[start:end, h].double()).sum()
            for start, end in pairwise(cu_seqlens.tolist())
            for h in range(qkv.shape[2] if start < end else 0)
        )
        return torch.autograd.grad(total, x)[0].to(qkv.dtype)


@pytest.mark.parametrize("value", [-3e4, -65504.0])
def test_gradients_with_padding_that_is_not_minus_infinity_are_refused(value: float) -> None:
    failure_of(functools.partial(gradients_padded, value=value), "packed_attention_vjp")


def loss_by_autograd(
    d_loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, value: float | None = None
) -> tuple[Tensor, ...]:
    own = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    with torch.enable_grad():
        logits = F.linear(*own)
        logits = logits if value is None else F.pad(logits, (0, -logits.shape[1] % 16), value=value)
        loss = F.cross_entropy(logits, labels) if (labels != -100).any() else 0 * logits.sum()
        return tuple(x.to(hidden.dtype) for x in torch.autograd.grad(loss, own, d_loss.double()))


@pytest.mark.parametrize("value", [-1e4, -65504.0])
def test_words_of_padding_that_are_not_minus_infinity_are_refused(value: float) -> None:
    failure_of(functools.partial(loss_by_autograd, value=value), "linear_cross_entropy_vjp", examples=20)


def test_a_loss_by_autograd_is_right() -> None:
    assert check(loss_by_autograd, "linear_cross_entropy_vjp", examples=10, quick=True)


def online(scores: Tensor, block: int, guard: bool) -> Tensor:
    """Softmax with a running maximum; `guard`: it may still be -inf."""
    z = scores.float()
    top, total = torch.full((len(z), 1), -math.inf), torch.zeros(len(z), 1)
    for part in z.split(block, 1):
        new = torch.maximum(top, part.amax(-1, keepdim=True))
        base = torch.where(new == -math.inf, 0.0, new) if guard else new
        total = total * torch.exp(top - base) + torch.exp(part - base).sum(-1, keepdim=True)
        top = new
    return (torch.exp(z - top) / total).to(scores.dtype)


@pytest.mark.parametrize("block", [16, 64, 1024])
def test_blocks_of_minus_infinity_are_checked(block: int) -> None:
    failure = failure_of(functools.partial(online, block=block, guard=False), "softmax")
    assert failure.case.origin == "scores of -inf but for the last 100"
    assert check(functools.partial(online, block=block, guard=True), "softmax", examples=5, quick=True)


ATTENTION = ["packed_attention", "first_token_attention", "packed_attention_vjp", "first_token_attention_vjp"]


@pytest.mark.parametrize("op", ATTENTION)
def test_sequences_of_equal_lengths_are_checked(op: str) -> None:
    failure_of(wrong_if(op, lambda *inputs: len(n := lengths(inputs[-1])) > 2 and len({*n}) == 1 and n[0] > 1), op)


@pytest.mark.parametrize("op", [*ATTENTION, "group_attention", "group_attention_vjp"])
def test_an_odd_number_of_heads_is_checked(op: str) -> None:
    failure_of(wrong_if(op, lambda *inputs: inputs[-2].shape[-2] == 3), op)


@pytest.mark.parametrize("op", ATTENTION)
def test_an_empty_sequence_before_others_is_checked(op: str) -> None:
    failure_of(wrong_if(op, lambda *inputs: 0 in lengths(inputs[-1])[:-1]), op)


def test_nan_in_the_query_of_a_sequence_is_checked() -> None:
    """Seen red: it lay in the query of an empty one."""

    def wrong(q: Tensor, *rest: Any) -> Tensor:
        return planted.first_token_attention(q.nan_to_num(0.0), *rest)

    assert failure_of(wrong, "first_token_attention").case.origin == "fixed inputs with nan in q"


@pytest.mark.parametrize("op", ["group_attention", "group_attention_vjp"])
def test_groups_in_another_order_are_checked(op: str) -> None:
    failure_of(wrong_if(op, lambda *inputs: bool((inputs[-1][:, 0].diff() < 0).any())), op, examples=30)


@pytest.mark.parametrize(
    ("op", "index"),
    [
        *(("packed_attention", 1), ("first_token_attention", 2), ("packed_attention_vjp", 2)),
        *(("first_token_attention_vjp", 3), ("embed_vjp", 1), ("embed_vjp", 2), ("embed", 1)),
        *(("dropout_vjp", 1), ("dropout_vjp", 2), ("dropout_vjp", 3), ("dropped_layer_norm_vjp", 7)),
    ],
)
def test_what_is_remembered_by_shape_is_checked(op: str, index: int) -> None:
    assert failure_of(remembers(op, index), op, examples=1).case.origin == "fixed inputs"


def test_heads_of_128_are_checked() -> None:
    """Their scale is 0.088, rounded."""
    wrong = of_sequences(lambda q, k, v: in_blocks(q, k, v, scale=0.088 * math.sqrt(128) if len(q.T) == 128 else 1.0))
    failure_of(wrong["packed_attention"], "packed_attention")


def test_means_far_below_0_are_checked() -> None:
    def wrong(x: Tensor, *rest: Any) -> Tensor:
        low, high = x.aminmax(dim=-1, keepdim=True)
        below = (low < high) & (high < 3 * (low - high))
        return planted.layer_norm(x, *rest) * torch.where(below, 1.01, 1.0).to(x.dtype)

    failure_of(wrong, "layer_norm", examples=20)


def test_other_inputs_are_drawn_in_each_dtype() -> None:
    shapes: dict[torch.dtype, list[Any]] = {}

    def kept(scores: Tensor) -> Tensor:
        shapes.setdefault(scores.dtype, []).append(scores.shape)
        return planted.softmax(scores)

    assert check(kept, "softmax", dtypes=["float32", "float16"], examples=10, quick=True)
    assert shapes[torch.float32][:20] != shapes[torch.float16][:20]


def test_tokens_that_float32_has_no_digits_for_are_checked() -> None:
    def wrong(*inputs: Any) -> Tensor:
        return KERNELS["dropout_vjp"](*inputs[:3], inputs[3].float().long())

    failure_of(wrong, "dropout_vjp", examples=10)


@pytest.mark.parametrize("op", ["first_token_attention", "group_attention"])
def test_long_sums_in_the_dtype_are_seen_in_averages(op: str) -> None:
    """More than 256 keys, added in blocks of 16 and rounded after each."""

    def head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(k) <= 256:
            return in_blocks(q, k, v)
        e = torch.exp((scores := q.float() @ k.float().T / math.sqrt(q.shape[1])) - scores.amax(-1, keepdim=True))
        found = torch.zeros_like(q)
        for i in range(0, len(k), 16):
            found = found + (e[:, i : i + 16] @ v[i : i + 16].float()).to(q.dtype)
        return (found.float() / e.sum(-1, keepdim=True)).to(q.dtype)

    def groups(qkv: Tensor, groups: Tensor) -> Tensor:
        found = KERNELS["group_attention"](qkv, groups)
        for q0, _, first, k0, k1 in groups.tolist():
            for h in range(qkv.shape[2] if k1 - k0 > 256 else 0):
                found[q0:first, h] = head(qkv[q0:first, 0, h], qkv[k0:k1, 1, h], qkv[k0:k1, 2, h])
        return found

    wrong = groups if op == "group_attention" else of_sequences(head)[op]
    assert failure_of(wrong, op, dtypes=["bfloat16"]).case.origin == "fixed random data"


def test_a_view_of_an_argument_is_refused() -> None:
    """Here one that is right: the result of one token is its value."""

    def wrong(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v if len(v) == 1 else in_blocks(q, k, v)

    assert failure_of(wrong, "attention_head").reason == "it returned a view of its argument v"

"""reduce(): failures are cut to the smallest sizes that can show them, in every direction, in few calls.

Seen red: without cutting sequences; when a failure of any kind counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ernie_m import reference
from ernie_m.kernels.checking.attention_inputs import rebuilt, spans_of, with_tokens
from ernie_m.kernels.checking.coverage import normal_numbers
from ernie_m.kernels.checking.drawing import pair_groups
from ernie_m.kernels.checking.loss_inputs import loss_vjp
from ernie_m.kernels.checking.operations import Case, fixed_case
from ernie_m.kernels.checking.report import Failure
from ernie_m.kernels.checking.runner import Runner
from ernie_m.kernels.checking.shrinking import FEW_BITS, MOST_CALLS, few_bits, reduce, shortest
from ernie_m.reference.objectives import dense

LENGTHS = (5, 70, 33, 2)


def packed(heads: int = 4, size: int = 64, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((sum(lengths), 3, heads, size)).astype(np.float32)
    return {"qkv": qkv.astype(np.float64), "cu_seqlens": np.cumsum([0, *lengths]).astype(np.int32)}


def first_token(**options: Any) -> dict[str, Any]:
    found = packed(**options)
    starts = found["cu_seqlens"][:-1]
    return {"q": found["qkv"][starts, 0], "kv": found["qkv"][:, 1:], "cu_seqlens": found["cu_seqlens"]}


def head() -> dict[str, Any]:
    qkv = packed(1)["qkv"]
    return {name: qkv[:, i, 0] for i, name in enumerate("qkv")}


def groups() -> dict[str, Any]:
    """Two pairs, whose text sees its own side."""
    return {"qkv": packed(lengths=(81,))["qkv"], "groups": pair_groups([(20, 9, 11, 5), (7, 3, 24, 2)])}


def with_cotangent(inputs: dict[str, Any]) -> dict[str, Any]:
    shape = (inputs["q"] if "q" in inputs else inputs["qkv"][:, 0]).shape
    dy = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return {"d_context": dy.astype(np.float64), **inputs}


INPUTS: dict[str, Callable[..., dict[str, Any]]] = {
    "packed_attention": packed,
    "first_token_attention": first_token,
    "attention_head": head,
    "group_attention": groups,
    "packed_attention_vjp": lambda: with_cotangent(packed()),
    "first_token_attention_vjp": lambda: with_cotangent(first_token()),
    "group_attention_vjp": lambda: with_cotangent(groups()),
}


def shrunk(
    function: Callable[..., Any],
    op: str,
    inputs: dict[str, Any] | None = None,
    arrays: str = "torch",
    head_size: int = 16,
) -> tuple[Failure, int]:
    """The smallest failure, and how many calls it took."""
    runner = Runner(function, arrays, "cpu", tail=False)
    calls = []

    def run(case: Case) -> Any:
        calls.append(case)
        return runner.verdicts(case)

    with pytest.raises(Failure) as caught:
        runner.verdicts(Case(op, "float32", INPUTS[op]() if inputs is None else inputs))
    found = reduce(caught.value, run, head_size)
    assert len(calls) <= MOST_CALLS + len(FEW_BITS)
    return found, len(calls)


def heads_from(first: int, qkv: Tensor, cu_seqlens: Tensor) -> Tensor:
    found = planted.attention(qkv, cu_seqlens)
    found[:, first:] = 0
    return found


def raises_with_heads(first: int, qkv: Tensor, cu_seqlens: Tensor) -> Tensor:
    if qkv.shape[2] >= first:
        raise ValueError(f"at most {first - 1} heads, got {qkv.shape[2]}")
    return planted.attention(qkv, cu_seqlens)


def keys_up_to(most: int, qkv: Tensor, cu_seqlens: Tensor) -> Tensor:
    found = planted.attention(qkv, cu_seqlens)
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        if end - start > most:
            part = torch.tensor([0, most], dtype=torch.int32)
            found[start : start + most] = planted.attention(qkv[start : start + most], part)
    return found


def only_large_heads(qkv: Tensor, cu_seqlens: Tensor) -> Tensor:
    if qkv.shape[3] < 32:
        raise ValueError("head sizes from 32")
    return planted.attention(qkv, cu_seqlens, scale=2.0)


# operation, function, and the smallest sizes: lengths of sequences, heads, head size.
SMALLEST: dict[str, tuple[str, Callable[..., Any], tuple[int, ...], int, int]] = {
    "wrong scale": ("packed_attention", functools.partial(planted.attention, scale=2.0), (2,), 1, 16),
    "next sequence read": (
        "packed_attention",
        functools.partial(planted.attention, layout="next key"),
        (1, 1),
        1,
        16,
    ),
    "next sequence read by one query": (
        "first_token_attention",
        functools.partial(planted.first_token_attention, layout="next key"),
        (1, 1),
        1,
        16,
    ),
    "wrong scale of one query": (
        "first_token_attention",
        functools.partial(planted.first_token_attention, scale=2.0),
        (2,),
        1,
        16,
    ),
    "heads from the third": ("packed_attention", functools.partial(heads_from, 2), (1,), 3, 16),
    "three heads raise": ("packed_attention", functools.partial(raises_with_heads, 3), (1,), 3, 16),
    "keys from the 34th": ("packed_attention", functools.partial(keys_up_to, 33), (34,), 1, 16),
    "heads from 32 columns": ("packed_attention", only_large_heads, (2,), 1, 32),
}


@pytest.mark.parametrize("fault", SMALLEST)
def test_attention_is_cut_in_every_direction(fault: str) -> None:
    op, function, lengths, heads, size = SMALLEST[fault]
    found, _ = shrunk(function, op)
    array = found.inputs["kv" if op == "first_token_attention" else "qkv"]
    assert tuple(np.diff(found.inputs["cu_seqlens"]).tolist()) == lengths
    assert array.shape[0] == sum(lengths) and array.shape[2:] == (heads, size)
    if "q" in found.inputs:
        assert found.inputs["q"].shape == (len(lengths), heads, size)


def test_one_head_is_cut_in_both_directions() -> None:
    found, _ = shrunk(functools.partial(planted.attention_head, scale=2.0), "attention_head")
    assert {x.shape for x in found.inputs.values()} == {(2, 16)}


def test_numpy_functions_are_cut_to_one_column() -> None:
    def wrong(q: Any, k: Any, v: Any) -> Any:
        return reference.attention(2 * q, k, v)[0]

    found, _ = shrunk(wrong, "attention_head", arrays="numpy", head_size=1)
    assert {x.shape for x in found.inputs.values()} == {(2, 1)}


@pytest.mark.parametrize("column", [0, 1, 40, 255, 256, 299])
def test_columns_are_cut_up_to_the_first_wrong_one(column: int) -> None:
    def wrong(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        found = planted.layer_norm(x, gamma, beta, eps)
        found[:, column:] += 1
        return found

    rng = np.random.default_rng(0)
    x, gamma, beta = (
        rng.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in ((9, 300), 300, 300)
    )
    found, _ = shrunk(wrong, "layer_norm", {"x": x, "gamma": gamma, "beta": beta, "eps": 1e-5})
    assert found.inputs["x"].shape == (1, column + 1)
    assert found.inputs["gamma"].shape == found.inputs["beta"].shape == (column + 1,)


def test_a_table_that_ids_point_into_is_not_cut_too_far() -> None:
    rng = np.random.default_rng(0)
    inputs = {"input_ids": np.array([7, 3, 5]), "position_ids": np.array([4, 1, 2])}
    inputs |= {name: rng.standard_normal((9, 8)).round(3) for name in ("word", "position")}
    inputs |= {"gamma": rng.standard_normal(8).round(3), "beta": rng.standard_normal(8).round(3), "eps": 1e-5}
    rounded = {
        n: x.astype(np.float32).astype(np.float64) if n not in ("eps",) and x.dtype == float else x
        for n, x in inputs.items()
    }
    found, _ = shrunk(functools.partial(planted.embed, affine="none"), "embed", rounded)
    assert found.inputs["input_ids"].shape == (1,) and found.inputs["word"].shape[1] == 1
    assert found.inputs["word"].shape[0] > found.inputs["input_ids"].max()


def test_a_failure_of_another_kind_does_not_count() -> None:
    """A function that is wrong, and raises for fewer than 7 rows, is shown with wrong numbers."""

    def wrong(x: Tensor) -> Tensor:
        if x.shape[0] < 7:
            raise ValueError("too few rows")
        return planted.gelu(x) + 1

    x = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32).astype(np.float64)
    found, _ = shrunk(wrong, "gelu", {"x": x})
    assert found.verdict is not None and found.inputs["x"].shape == (7, 1)


# operation, options of `planted`'s function, and the smallest sizes: lengths of sequences, or rows of groups.
SMALLEST_OTHERS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "rows do not see themselves": ("group_attention", {"own": "none"}, [[0, 1, 0, 0, 0]]),
    "the last key left out": ("group_attention", {"keys": "all but one"}, [[0, 1, 1, 0, 1]]),
    "no δ": ("packed_attention_vjp", {"fault": "no delta"}, (1,)),
    "no δ of one query": ("first_token_attention_vjp", {"fault": "no delta"}, (1,)),
    "no δ between ranges": ("group_attention_vjp", {"fault": "no delta"}, [[0, 1, 0, 0, 0]]),
    "dq without itself": ("group_attention_vjp", {"fault": "dq without itself"}, [[0, 2, 1, 0, 1]]),
}


@pytest.mark.parametrize("fault", SMALLEST_OTHERS)
def test_ranges_and_cotangents_are_cut_too(fault: str) -> None:
    op, options, smallest = SMALLEST_OTHERS[fault]
    found, _ = shrunk(functools.partial(planted.KERNELS[op], **options), op)
    ends = found.inputs.get("groups")
    assert tuple(np.diff(found.inputs["cu_seqlens"])) == smallest if ends is None else ends.tolist() == smallest
    T = sum(smallest) if ends is None else int(ends.max())
    array = found.inputs["kv" if "kv" in found.inputs else "qkv"]
    assert array.shape[0] == T and array.shape[2:] == (1, 16)
    if "d_context" in found.inputs:
        queries = found.inputs["q" if "q" in found.inputs else "qkv"]
        assert found.inputs["d_context"].shape == (len(queries), 1, 16)


@pytest.mark.parametrize(("fault", "columns"), [("dx not dropped", 12), ("residual dropped", 3), ("swapped", 1)])
def test_dropout_is_cut_with_its_tokens(fault: str, columns: int) -> None:
    """The twelfth number of the first token is its first that is dropped. Gradients of rows of two are nearly 0."""
    op = "dropped_layer_norm_vjp"
    inputs = fixed_case(op, "float32").inputs
    found, _ = shrunk(functools.partial(planted.KERNELS[op], fault=fault), op, inputs)
    assert {found.inputs[name].shape for name in ("dy", "x", "residual")} == {(1, columns)}
    assert {found.inputs[name].shape for name in ("bias", "gamma")} == {(columns,)}
    assert found.inputs["tokens"].shape == (1,) and found.inputs["tokens"] in inputs["tokens"]


def test_a_losss_gradient_fails_on_one_row_and_one_word() -> None:
    """Two rows if one part takes another's place, and two words: one has no gradient. The cotangent gets plain."""
    inputs = loss_vjp(normal_numbers(0), 7, 65, 16)
    rounded = {n: few_bits(x, 24) if x.dtype == np.float64 else x for n, x in inputs.items()}
    op = "linear_cross_entropy_vjp"
    for fault, sizes in (("no label", (1, 1, 1)), ("last part", (2, 1, 2))):
        wrong = functools.partial(planted.KERNELS[op], fault=fault)
        found, _ = shrunk(wrong, op, rounded | {"d_loss": few_bits(np.asarray(0.7), 24)})
        hidden, weight = (found.inputs[name] for name in ("hidden", "weight"))
        assert (*hidden.shape, len(weight)) == sizes
        assert len(found.inputs["labels"]) == sizes[0] and len(found.inputs["bias"]) == sizes[2]
        assert found.inputs["d_loss"] in (0.5, 0.75)


@settings(max_examples=30)
@given(data=st.data())
def test_inputs_with_fewer_tokens_have_the_results_of_the_rows_that_lose_no_key(data: Any) -> None:
    inputs = groups()
    dropped = data.draw(st.sets(st.integers(0, 80)))
    kept = ~np.isin(np.arange(81), sorted(dropped))
    found = reference.group_attention(**with_tokens(inputs, kept))
    sees = dense(inputs["groups"], 81)
    whole = ~(sees & ~kept).any(1)
    exact = reference.group_attention(**inputs)
    np.testing.assert_allclose(found[whole[kept]], exact[whole & kept], rtol=0, atol=1e-13)


@given(n=st.integers(1, 600), start=st.integers(0, 599), length=st.integers(1, 600))
def test_shortest_finds_the_part_that_fails(n: int, start: int, length: int) -> None:
    start = min(start, n - 1)
    end = min(start + length, n)
    smallest = [(0, n)]

    def fails(a: int, b: int) -> bool:
        found = a <= start and end <= b
        if found:
            smallest.append((a, b))
        return found

    shortest(n, fails)
    assert smallest[-1] == (start, end)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any))
def test_rebuilt_inputs_have_the_results_of_the_sequences_kept(data: Any, lengths: list[int]) -> None:
    inputs = packed(1, 4, tuple(lengths))
    kept = sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1)))
    spans = [spans_of(inputs)[i] for i in kept]
    exact = reference.packed_attention(**inputs)
    found = reference.packed_attention(**rebuilt(inputs, kept, spans))
    np.testing.assert_array_equal(found, np.concatenate([exact[start:end] for start, end in spans]))


def test_few_bits_keeps_that_many() -> None:
    assert few_bits(np.array([0.7, -5.3, 0.0]), 2).tolist() == [0.75, -6.0, 0.0]

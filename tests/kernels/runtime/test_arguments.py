"""Every argument of every public operation: a wrong value is one TypeError or ValueError that names the argument."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_m import kernels
from ernie_m.kernels.runtime.arguments import check_count, check_eps
from ernie_m.kernels.runtime.dispatch import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"


def good() -> dict[str, dict[str, Any]]:
    """Arguments that each public operation accepts."""
    vector, rows, ids = torch.ones(8), torch.ones(3, 8), torch.tensor([0, 1, 2])
    cu, mask = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([[1, 1, 0], [1, 0, 0]])
    norm = {"gamma": vector, "beta": vector, "eps": 1e-5}
    found: dict[str, dict[str, Any]] = {
        "bias_gelu": {"x": rows, "bias": vector},
        "add_layer_norm": {"x": rows, "bias": vector, "residual": rows, **norm},
        "embed": {"input_ids": ids, "position_ids": ids, "word": rows, "position": torch.ones(5, 8), **norm},
        "packed_attention": {"qkv": torch.ones(3, 3, 2, 16), "cu_seqlens": cu, "max_seqlen": 3},
        "first_token_attention": {"q": torch.ones(1, 2, 16), "kv": torch.ones(3, 2, 2, 16), "cu_seqlens": cu},
        "token_indices": {"mask": mask},
        "cu_seqlens": {"mask": mask},
        "unpad": {"x": torch.ones(2, 3, 4), "indices": ids},
        "pad": {"packed": torch.ones(3, 4), "indices": ids, "batch": 2, "length": 3},
    }
    return {
        op: {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in a.items()} for op, a in found.items()
    }


SLOTS = [(op, name) for op, arguments in good().items() for name in arguments]
NEVER = st.sampled_from([None, [0, 3], (), "x", {}, object(), 1j, b"", int, ...])
NOT_A_TENSOR = NEVER | st.sampled_from([0, 1.5, True, np.zeros(3, np.float32), np.array([0, 3], np.int32)])
NOT_A_COUNT = NEVER | st.sampled_from([3.0, True, -1, np.float64(2), np.int64(-2), math.nan, torch.tensor([1, 2])])
NOT_EPS = NEVER | st.sampled_from([-1, -1e-9, math.nan, math.inf, True, np.float32(-1), np.zeros(1)])
# `max_seqlen` may be None, counts are never larger than what they count here.
WRONG = {"eps": NOT_EPS, "batch": NOT_A_COUNT, "length": NOT_A_COUNT}
WRONG["max_seqlen"] = NOT_A_COUNT.filter(lambda x: x is not None) | st.sampled_from([0, 2])


@st.composite
def wrong_tensors(draw: Any, right: torch.Tensor) -> torch.Tensor:
    """A tensor like the right one, but for its dtype, its shape, or its device."""
    kind = draw(st.sampled_from(["dtype", "axis", "scalar", "size", "device"]))
    if kind == "device" and right.dim() == 2 and right.dtype == torch.int64:
        kind = "axis"  # a mask alone may be on any device
    if kind == "dtype":
        return right.to(draw(st.sampled_from([torch.complex64, torch.uint8, torch.bool, torch.float64])))
    return {"axis": right[None], "scalar": right.flatten()[0], "size": right[..., :-1], "device": right.to("meta")}[
        kind
    ]


# What looks wrong and is not: any dtype of `mask` and of what is padded, other sizes of a free axis.
FREE = {
    *(
        ("unpad", "x"),
        ("pad", "packed"),
        ("token_indices", "mask"),
        ("cu_seqlens", "mask"),
        ("packed_attention", "qkv"),
    ),
    *(("unpad", "indices"), ("bias_gelu", "x")),
}


@settings(max_examples=400)
@given(slot=st.sampled_from(SLOTS), data=st.data())
def test_a_wrong_argument_is_named(slot: tuple[str, str], data: Any) -> None:
    """Seen red: AttributeError for cu_seqlens=[0, 3], input_ids=[0]; a schema dump for max_seqlen=3.0; nan for eps=-1;
    float(eps) for "x"; IndexError for indices."""
    op, name = slot
    arguments = good()[op]
    value = data.draw(WRONG.get(name, NOT_A_TENSOR), label=f"{op}({name}=...)")
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected ") as caught:
        getattr(kernels, op)(**arguments | {name: value})
    assert re.search(r", got |, got$", str(caught.value))
    assert len(str(caught.value)) < 200


@settings(max_examples=300)
@given(slot=st.sampled_from(SLOTS), data=st.data())
def test_a_tensor_that_does_not_fit_is_an_error_about_an_argument(slot: tuple[str, str], data: Any) -> None:
    """The first argument of a mismatched pair may be right and the second be named; both are arguments."""
    op, name = slot
    arguments = good()[op]
    if not isinstance(arguments[name], torch.Tensor):
        return
    value = data.draw(wrong_tensors(arguments[name]), label=f"{op}({name}=...)")
    try:
        getattr(kernels, op)(**arguments | {name: value})
    except (TypeError, ValueError) as error:
        assert re.match(rf"({'|'.join(arguments)})(, \w+)?: expected ", str(error)), error
    else:
        assert (op, name) in FREE


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: kernels.packed_attention(a["qkv"], [0, 3]), r"cu_seqlens: .* torch.Tensor, got list \[0, 3\]"),
        (lambda a: kernels.packed_attention(a["qkv"], a["cu_seqlens"], 3.0), "max_seqlen: .* got float 3.0"),
        (lambda a: kernels.packed_attention(a["qkv"], a["cu_seqlens"], -1), "max_seqlen: .* at least 0, got -1"),
        (lambda a: kernels.packed_attention(a["qkv"], a["cu_seqlens"], 2, True), "max_seqlen: .* least 3, .* got 2"),
    ],
)
def test_error_messages(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(good()["packed_attention"])


def test_counts_and_eps_accept_numbers_of_numpy() -> None:
    assert type(check_count("n", np.int32(3))) is int
    assert [type(check_eps(x)) for x in (1, 0, np.float32(0.5), np.int64(1))] == [float] * 4


def test_eps_and_counts_are_checked_in_compiled_graphs_too() -> None:
    torch._dynamo.reset()
    a = good()
    norm = torch.compile(kernels.add_layer_norm, fullgraph=True, backend="eager")
    attend = torch.compile(kernels.packed_attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(norm(**a["add_layer_norm"]), kernels.add_layer_norm(**a["add_layer_norm"]))
    for n in (3, 4, 70):
        context = attend(**a["packed_attention"] | {"max_seqlen": n})
        torch.testing.assert_close(context, kernels.packed_attention(**a["packed_attention"]))

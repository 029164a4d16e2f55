"""hint(): every common mistake gets its own sentence and no other; functions with another fault get none.

Seen red: without the input of a large mean, and with a matrix that is not square.
"""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import planted
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.diagnosis import MISTAKES, TRUNCATED, hint
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.mistakes import Fitted
from ernie_m.kernels.checking.operations import OPERATIONS, Case
from ernie_m.kernels.checking.report import Failure, differing
from ernie_m.kernels.checking.runner import Runner
from ernie_m.kernels.checking.telling import telling
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.optional_triton import tl, triton

DTYPES = ("float32", "float16", "bfloat16")
ONE_PASS, ROOT, LAST = "in one pass", "the root is missing", "the mask is off by one: the last"
FIRST, KEY = "the mask is off by one: the first", "is off by one: the %s key is left out"

# operation, options of `planted`'s function, and a part of its sentence that no other of the operation has.
NAMED: list[tuple[str, dict[str, Any], str]] = [
    ("gelu", {"form": "tanh"}, "tanh"),
    ("gelu", {"form": "sigmoid"}, "1.702"),
    ("gelu", {"form": "silu"}, "SiLU"),
    ("gelu", {"form": "relu"}, "ReLU"),
    ("gelu", {"form": "no root"}, "without dividing x by √2"),
    ("gelu", {"form": "no half"}, "½ is left out"),
    ("bias_gelu", {"form": "tanh"}, "tanh"),
    ("bias_gelu", {"place": "none"}, "bias is not added"),
    ("bias_gelu", {"place": "after"}, "bias is added after GELU"),
    ("softmax", {"form": "no maximum"}, "subtract the row maximum"),
    ("softmax", {"form": "whole maximum"}, "the maximum of all rows is subtracted"),
    ("softmax", {"form": "column maximum"}, "the maximum of each column is subtracted"),
    ("softmax", {"form": "log"}, "the logarithm of the softmax"),
    ("softmax", {"form": "columns"}, "each column sums to 1"),
    ("softmax", {"form": "column sums"}, "each column sums to 1"),
    ("softmax", {"form": "all"}, "over all rows; it"),
    ("softmax", {"form": "sum of all"}, "over all rows; it"),
    ("softmax", {"form": "no sum"}, "not divided by their sum"),
    ("softmax", {"form": "exp"}, "not divided by their sum"),
    ("softmax", {"form": "mean"}, "divided by their mean"),
    ("softmax", {"form": "padded"}, "with scores of 0"),
    ("softmax", {"form": "padded with -1000"}, "a score that is not small enough"),
    ("softmax", {"form": "no last"}, LAST),
    ("softmax", {"form": "no first"}, FIRST),
    ("softmax", {"form": "base 2"}, "powers of 2"),
    ("softmax", {"form": "transposed"}, "swapped where the input is read"),
    ("layer_norm", {"variance": "one pass"}, ONE_PASS),
    ("layer_norm", {"mean": "all", "variance": "all"}, "of all rows; each row has its own"),
    ("layer_norm", {"variance": "unbiased"}, "divided by E - 1"),
    ("layer_norm", {"variance": "sum"}, "the variance is a sum"),
    ("layer_norm", {"variance": "about zero"}, "not subtracted for the variance"),
    ("layer_norm", {"mean": "none"}, "mistake: the mean is not subtracted"),
    ("layer_norm", {"mean": "sum"}, "the sum is subtracted"),
    ("layer_norm", {"divisor": "no root"}, ROOT),
    ("layer_norm", {"divisor": "eps outside"}, "it belongs under the square root"),
    ("layer_norm", {"divisor": "no eps"}, "eps is left out"),
    ("layer_norm", {"divisor": "times"}, "it should be divided"),
    ("layer_norm", {"affine": "swapped"}, "gamma and beta are swapped"),
    ("layer_norm", {"affine": "sum"}, "beta is added to gamma"),
    ("layer_norm", {"affine": "beta first"}, "beta is added before multiplying"),
    ("layer_norm", {"affine": "no beta"}, "beta is left out"),
    ("layer_norm", {"affine": "no gamma"}, "mistake: gamma is left out"),
    ("layer_norm", {"affine": "none"}, "both left out"),
    ("layer_norm", {"affine": "gamma twice"}, "gamma is added in place of beta"),
    ("layer_norm", {"affine": "beta twice"}, "beta multiplies in place of gamma"),
    ("layer_norm", {"affine": "one plus"}, "1 is added to gamma"),
    ("layer_norm", {"affine": "minus"}, "beta is subtracted"),
    ("layer_norm", {"rows": "transposed input"}, "swapped where the input is read"),
    ("layer_norm", {"rows": "transposed result"}, "swapped where the result is written"),
    ("layer_norm", {"rows": "first row"}, "computed from the first one"),
    ("layer_norm", {"rows": "no last column"}, LAST),
    ("layer_norm", {"rows": "no first column"}, FIRST),
    ("add_layer_norm", {"read": "xr"}, "bias is left out of the sum"),
    ("add_layer_norm", {"read": "xb"}, "residual is left out of the sum"),
    ("add_layer_norm", {"read": "br"}, "x is left out of the sum"),
    ("add_layer_norm", {"read": "xbrb"}, "bias is added twice"),
    ("add_layer_norm", {"variance": "one pass"}, ONE_PASS),
    ("add_layer_norm", {"variance": "unbiased"}, "divided by E - 1"),
    ("add_layer_norm", {"divisor": "no root"}, ROOT),
    ("add_layer_norm", {"affine": "sum"}, "beta is added to gamma"),
    ("embed", {"offset": 1}, "positions are off by one"),
    ("embed", {"offset": 3}, "positions are off by one"),
    ("embed", {"offset": 0}, "the offset of 2 is not added"),
    ("embed", {"positions": False}, "the position embedding is not added"),
    ("embed", {"variance": "one pass"}, ONE_PASS),
    ("embed", {"affine": "swapped"}, "gamma and beta are swapped"),
    ("attention_head", {"form": "no scale"}, "not divided by √D"),
    ("attention_head", {"form": "scale twice"}, "divided by √D twice"),
    ("attention_head", {"form": "no last key"}, KEY % "last"),
    ("attention_head", {"form": "no first key"}, KEY % "first"),
    ("attention_head", {"form": "padded"}, "keys past the end"),
    ("attention_head", {"form": "values as keys"}, "keys and values are swapped"),
    ("attention_head", {"form": "no maximum"}, "subtract the row maximum"),
    ("attention_head", {"form": "no rescale"}, "not rescaled"),
    ("attention_head", {"form": "no sum"}, "not divided by the sum"),
    ("attention_head", {"form": "transposed key"}, "row and column strides of q, k or v"),
    ("packed_attention", {"form": "no scale"}, "not divided by √D"),
    ("packed_attention", {"form": "scale twice"}, "divided by √D twice"),
    ("packed_attention", {"form": "no last key"}, KEY % "last"),
    ("packed_attention", {"form": "no first key"}, KEY % "first"),
    ("packed_attention", {"form": "no rescale"}, "not rescaled"),
    ("packed_attention", {"layout": "all keys"}, "attends to the keys of all sequences"),
    ("packed_attention", {"layout": "next key"}, "lets in the key behind the last"),
    ("packed_attention", {"layout": "key before"}, "lets in the key before the first"),
    ("packed_attention", {"layout": "from the start"}, "does not move by cu_seqlens"),
    ("packed_attention", {"layout": "next head"}, "heads are swapped"),
    ("packed_attention", {"layout": "reversed"}, "heads are swapped"),
    ("packed_attention", {"layout": "head 0"}, "every head reads head 0"),
    ("group_attention", {"own": "none"}, "from `first` on do not see themselves"),
    ("group_attention", {"own": "all"}, "all rows see themselves"),
    ("group_attention", {"own": "after first"}, "the row `first` does not see itself"),
    ("group_attention", {"keys": "of the queries"}, "the pointer does not move by k0"),
    ("group_attention", {"keys": "one more"}, "lets in the key behind the last"),
    ("group_attention", {"keys": "all but one"}, KEY % "last"),
    ("group_attention", {"scale": 4.0}, "the scores are not divided by √D"),
    ("group_attention", {"scale": 0.25}, "the scores are divided by √D twice"),
    ("group_attention", {"own_scale": 4.0}, "of rows with themselves are not divided by √D"),
    ("group_attention", {"heads": "next"}, "heads are swapped"),
    ("first_token_attention", {"form": "no scale"}, "not divided by √D"),
    ("first_token_attention", {"form": "no rescale"}, "not rescaled"),
    ("first_token_attention", {"layout": "all keys"}, "attends to the keys of all sequences"),
    ("first_token_attention", {"layout": "next key"}, "lets in the key behind the last"),
    ("first_token_attention", {"layout": "from the start"}, "does not move by cu_seqlens"),
    ("first_token_attention", {"layout": "next head"}, "heads are swapped"),
    ("first_token_attention", {"layout": "head 0"}, "every head reads head 0"),
]


def hint_for(function: Callable[..., Any], op: str, dtype: str, seed: int = 0) -> str | None:
    return hint(Case(op, dtype, {}), Runner(function, "torch", "cpu").result, seed)


@pytest.mark.parametrize(("op", "options", "words"), NAMED, ids=lambda x: str(x) if isinstance(x, dict) else None)
def test_a_common_mistake_is_named(op: str, options: dict[str, Any], words: str) -> None:
    # A mistake whose sentence begins another's is given with the words before it, and has no others.
    assert words.startswith("mistake: ") or len([sentence for sentence in MISTAKES[op] if words in sentence]) == 1
    function = functools.partial(planted.KERNELS[op], **options)
    for dtype in DTYPES:
        for seed in range(3):
            found = hint_for(function, op, dtype, seed)
            assert found is not None and words in found, (dtype, seed, found)
            assert not words.startswith("mistake: ") or found.endswith(words), (dtype, seed, found)


@pytest.mark.parametrize("op", ["gelu", "bias_gelu"])
def test_a_lost_tail_is_named_where_the_format_has_one(op: str) -> None:
    function = functools.partial(planted.KERNELS[op], form="no tail")
    found = [hint_for(function, op, dtype) for dtype in DTYPES]
    assert found[1] is None
    assert all(words is not None and "the tail is lost" in words for words in (found[0], found[2]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_sum_rounded_to_the_format_is_named(dtype: str) -> None:
    found = hint_for(functools.partial(planted.add_layer_norm, rounded_sum=True), "add_layer_norm", dtype)
    assert found is not None and f"rounded to {dtype} before it is normalised" in found


@pytest.mark.parametrize("op", ["gelu", "bias_gelu", "softmax", "layer_norm", "embed"])
def test_truncation_is_named(op: str) -> None:
    assert hint_for(functools.partial(planted.KERNELS[op], truncated=True), op, "bfloat16") == TRUNCATED


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", MISTAKES)
def test_no_two_mistakes_look_alike(op: str, dtype: str) -> None:
    """Each sentence's first form, computed in float64 and rounded, gets that sentence."""
    silent = {("add_layer_norm", "bfloat16"): "rounded to float16"}
    for words, forms in MISTAKES[op].items():
        if isinstance(forms[0], Fitted) or silent.get((op, dtype), "-") in words:
            continue

        def wrong(case: Case, form: Any = forms[0]) -> Any:
            with np.errstate(all="ignore"):
                found = form(**case.inputs)
                return FORMATS[dtype].round(case.expected.exact if found is None else found)

        found = hint(Case(op, dtype, {}), wrong)
        assert found is not None and found.endswith(words), (words, found)


# Functions with another fault, right ones, and ones with two mistakes at once.
UNNAMED: list[tuple[str, Callable[..., Any]]] = [
    *((op, planted.KERNELS[op]) for op in MISTAKES),
    ("attention_head", functools.partial(planted.attention_head, form="online")),
    ("packed_attention", functools.partial(planted.attention, scale=1.003)),
    ("packed_attention", functools.partial(planted.attention, accumulate_low=True)),
    ("packed_attention", functools.partial(planted.attention, form="no scale", layout="next head")),
    ("packed_attention", functools.partial(planted.attention, form="no last key", layout="next key")),
    ("layer_norm", functools.partial(planted.layer_norm, eps_factor=10.0)),
    ("layer_norm", functools.partial(planted.layer_norm, column=1.02)),
    ("layer_norm", functools.partial(planted.layer_norm, variance="unbiased", affine="sum")),
    ("layer_norm", functools.partial(planted.layer_norm, variance="one pass", divisor="no root")),
    ("add_layer_norm", functools.partial(planted.add_layer_norm, read="xr", affine="no beta")),
    ("embed", functools.partial(planted.embed, offset=1, divisor="no eps")),
    ("gelu", lambda x: planted.gelu(x) * 1.01),
    ("gelu", lambda x: planted.gelu(x) + 1),
    ("softmax", lambda scores: planted.softmax(scores * 1.01)),
    ("softmax", lambda scores: torch.zeros_like(scores)),
    ("softmax", lambda scores: torch.full_like(scores, torch.nan)),
    ("layer_norm", lambda x, gamma, beta, eps: torch.zeros_like(x)),
]


@pytest.mark.parametrize(("op", "function"), UNNAMED)
def test_another_fault_has_no_hint(op: str, function: Callable[..., Any]) -> None:
    for dtype in DTYPES:
        for seed in range(2):
            assert hint_for(function, op, dtype, seed) is None


def raises(x: torch.Tensor) -> torch.Tensor:
    raise ValueError("x: expected one row")


@pytest.mark.parametrize("function", [raises, lambda x: x[0], lambda x: None, lambda x: x.double()])
def test_a_function_without_a_result_has_no_hint(function: Callable[..., Any]) -> None:
    assert hint_for(function, "gelu", "float32") is None


def test_an_operation_of_ones_own_has_no_hint() -> None:
    own = replace(OPERATIONS["gelu"], name="gelu")
    runner = Runner(functools.partial(planted.gelu, form="tanh"), "torch", "cpu")
    assert hint(Case("gelu", "float32", {}, own=own), runner.result) is None


@pytest.mark.parametrize("op", MISTAKES)
def test_telling_inputs_tell(op: str) -> None:
    """Every operation with one result has some; the first has numbers that are all different, in its format, and
    neither 0 nor 1."""
    assert {name for name in OPERATIONS if not name.endswith("_vjp")} == set(MISTAKES)
    for dtype in DTYPES:
        inputs = telling(op, FORMATS[dtype], 7)[0].inputs
        for name, x in inputs.items():
            if not isinstance(x, np.ndarray) or x.dtype != np.float64:
                continue
            np.testing.assert_array_equal(x, FORMATS[dtype].round(x))
            assert x.shape[-1] >= 3 and not np.isin(x, (0.0, 1.0)).any(), name
            assert op.endswith(("attention", "head")) or np.unique(x).size == x.size, (name, dtype)
        if "cu_seqlens" in inputs:
            lengths = np.diff(inputs["cu_seqlens"])
            assert lengths.min() >= 2 and np.unique(lengths).size == lengths.size >= 3


def failure_of(function: Callable[..., Any], op: str, **options: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        check(function, op, dtypes=["float32"], examples=8, quick=True, **options)
    return caught.value


@pytest.mark.parametrize(
    ("op", "options", "words"),
    [
        ("layer_norm", {"variance": "one pass"}, ONE_PASS),
        ("layer_norm", {"affine": "sum"}, "beta is added to gamma"),
        ("packed_attention", {"layout": "next key"}, "lets in the key behind the last"),
    ],
)
def test_check_prints_the_hint_after_the_reason(op: str, options: dict[str, Any], words: str) -> None:
    wrong = failure_of(functools.partial(planted.KERNELS[op], **options), op)
    assert wrong.hint is not None and words in wrong.hint
    lines = str(wrong).splitlines()
    assert wrong.reason in lines[0] and lines[1] == f"hint: {wrong.hint}" and lines[2].startswith("on ")
    again = pickle.loads(pickle.dumps(wrong))
    assert again.hint == wrong.hint and str(again) == str(wrong)


def test_check_prints_no_hint_without_one() -> None:
    wrong = failure_of(lambda x: planted.gelu(x) + 1, "gelu")
    assert wrong.hint is None and "hint" not in str(wrong)
    assert failure_of(raises, "gelu").hint is None


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 60), st.integers(1, 12))
def test_numbers_that_differ_look_different(a: float, steps: int, digits: int) -> None:
    b = a
    for _ in range(steps):
        b = math.nextafter(b, math.inf)
    one, other = differing(a, b, digits)
    assert one != other


def test_a_number_equal_to_the_right_one_is_shown_once() -> None:
    assert differing(0.5, 0.5, 9) == ("0.5", "0.5")
    assert differing(1.0, 1.0 + 2**-52, 9) == ("1", "1.0000000000000002")


@triton.jit
def norm_kernel(
    x, gamma, beta, y, eps, E, BLOCK: tl.constexpr, MASKED: tl.constexpr, END: tl.constexpr, ADVANCE: tl.constexpr
):
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E + END
    p_row = tl.program_id(0).to(tl.int64) * E * ADVANCE
    b_x = tl.load(x + p_row + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_d = b_x - tl.sum(b_x, 0) / E
    if MASKED:
        b_d = tl.where(m_e, b_d, 0.0)
    b_y = b_d / tl.sqrt(tl.sum(b_d * b_d, 0) / E + eps)
    b_y *= tl.load(gamma + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_y += tl.load(beta + o_e, mask=m_e, other=0.0).to(tl.float32)
    tl.store(y + tl.program_id(0).to(tl.int64) * E + o_e, b_y.to(y.dtype.element_ty), mask=m_e)


def launch_norm(x: Any, gamma: Any, beta: Any, eps: float, MASKED: bool = True, END: int = 0, ADVANCE: int = 1) -> Any:
    y = torch.empty_like(x)
    N, E = x.shape
    how = {"MASKED": MASKED, "END": END, "ADVANCE": ADVANCE}
    norm_kernel[(N,)](x, gamma, beta, y, eps, E, BLOCK=max(16, triton.next_power_of_2(E)), **how)
    return y


@triton.jit
def head_kernel(q, k, v, y, S, scale, D: tl.constexpr, BLOCK: tl.constexpr, RESCALE: tl.constexpr, END: tl.constexpr):
    o_r, o_d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    m_r = (o_r < S)[:, None]
    b_q = tl.load(q + o_r[:, None] * D + o_d[None, :], mask=m_r, other=0.0)
    b_max = tl.full((BLOCK,), -float("inf"), tl.float32)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    b_y = tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, S, BLOCK):
        o_c = start + tl.arange(0, BLOCK)
        o_cd, m_c = o_c[:, None] * D + o_d[None, :], (o_c < S)[:, None]
        b_k, b_v = tl.load(k + o_cd, mask=m_c, other=0.0), tl.load(v + o_cd, mask=m_c, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        b_s = tl.where((o_c < S + END)[None, :], b_s, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_e = tl.exp(b_s - b_new[:, None])
        if RESCALE:
            b_factor = tl.exp(b_max - b_new)
            b_sum *= b_factor
            b_y *= b_factor[:, None]
        b_sum += tl.sum(b_e, 1)
        b_y += tl.dot(b_e.to(b_v.dtype), b_v, input_precision="ieee")
        b_max = b_new
    b_y = b_y / b_sum[:, None]
    tl.store(y + o_r[:, None] * D + o_d[None, :], b_y.to(y.dtype.element_ty), mask=m_r)


def launch_head(q: Any, k: Any, v: Any, scaled: bool = True, RESCALE: bool = True, END: int = 0) -> Any:
    y = torch.empty_like(q)
    S, D = q.shape
    how = {"BLOCK": 32, "RESCALE": RESCALE, "END": END}
    head_kernel[(triton.cdiv(S, 32),)](q, k, v, y, S, D**-0.5 if scaled else 1.0, D=D, **how)
    return y


@pytest.mark.skipif(not INTERPRETED, reason="reads and writes out of bounds")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("op", "function", "options", "words"),
    [
        ("layer_norm", launch_norm, {"MASKED": False}, "padding is not masked again after the mean"),
        ("layer_norm", launch_norm, {"END": -1}, LAST),
        ("layer_norm", launch_norm, {"ADVANCE": 0}, "computed from the first one"),
        ("layer_norm", launch_norm, {}, None),
        ("attention_head", launch_head, {"RESCALE": False}, "not rescaled"),
        ("attention_head", launch_head, {"END": -1}, KEY % "last"),
        ("attention_head", launch_head, {"END": 1}, "lets in one key past the end"),
        ("attention_head", launch_head, {"scaled": False}, "not divided by √D"),
        ("attention_head", launch_head, {}, None),
    ],
)
def test_mistakes_of_kernels_are_named(
    op: str, function: Callable[..., Any], options: dict[str, Any], words: str | None, dtype: str
) -> None:
    found = hint_for(functools.partial(function, **options), op, dtype)
    assert found is None if words is None else found is not None and words in found

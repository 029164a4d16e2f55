"""Kernels that are right on small inputs and wrong where real models live: each is refused, and the report says why
the right ones are not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import planted
import pytest
import torch
from judging.wrappers import as_if_contiguous, cached, one_buffer, past_column, past_row, replaced, zero_heads

from ernie_m.kernels.checking import coverage, families
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.drawing import SIZES
from ernie_m.kernels.checking.examples import EXAMPLES
from ernie_m.kernels.checking.operations import OPERATIONS, with_kernel
from ernie_m.kernels.checking.report import Failure
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.optional_triton import tl, triton

only_interpreted = pytest.mark.skipif(not INTERPRETED, reason="launches are watched in the interpreter alone")


pytestmark = pytest.mark.usefixtures("no_shrinking")


def failure_of(function: Callable[..., Any], op: str, **options: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        check(function, op, **{"examples": 2, "dtypes": ["float32"], "quick": True, **options})
    return caught.value


@pytest.mark.parametrize("op", ["layer_norm", "add_layer_norm", "embed", "softmax", "gelu", "bias_gelu"])
@pytest.mark.parametrize("limit", [768, 1025, 2048, 3072])
def test_columns_past_a_limit_are_checked(op: str, limit: int) -> None:
    failure_of(past_column(planted.KERNELS[op], limit), op)


@pytest.mark.parametrize("op", ["layer_norm", "add_layer_norm", "embed", "softmax", "gelu", "bias_gelu"])
def test_rows_past_2048_are_checked(op: str) -> None:
    failure_of(past_row(planted.KERNELS[op], 2048), op, quick=False)


@pytest.mark.parametrize("most", [300, 511, pytest.param(2048, marks=pytest.mark.all)])
def test_keys_past_a_limit_are_checked(most: int) -> None:
    def head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return planted.attention_head(q, k[:most], v[:most])

    failure_of(head, "attention_head", quick=most < 2048)
    for op in ("packed_attention", "first_token_attention"):
        failure_of(functools.partial(planted.KERNELS[op], most=most), op, quick=most < 2048)


@pytest.mark.parametrize("first_wrong", [2, 8, 12])
def test_heads_past_a_limit_are_checked(first_wrong: int) -> None:
    for op in ("packed_attention", "first_token_attention"):
        failure_of(zero_heads(planted.KERNELS[op], first_wrong), op)


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        ("softmax", functools.partial(planted.softmax, form="transposed")),
        ("layer_norm", functools.partial(planted.layer_norm, rows="transposed input")),
        ("attention_head", functools.partial(planted.attention_head, form="transposed key")),
        ("packed_attention", functools.partial(planted.attention, form="transposed key")),
    ],
)
def test_squares_in_which_rows_and_columns_can_be_confused_are_checked(op: str, wrong: Callable[..., Any]) -> None:
    """Seen red without a square among the fixed sizes: drawn ones have few rows."""
    failure_of(wrong, op)


def test_a_softmax_whose_padding_is_not_minus_infinity_is_refused() -> None:
    """Seen red without rows of very negative scores: it passed."""
    failure = failure_of(functools.partial(planted.softmax, form="padded with -1000"), "softmax", quick=True)
    assert failure.hint is not None and "they must be -inf" in failure.hint


def test_drawn_sizes_are_around_every_power_of_two() -> None:
    assert {2**k + step for k in range(2, 11) for step in (-1, 0, 1)} <= set(SIZES)


@pytest.mark.parametrize("op", planted.KERNELS)
def test_kernels_that_ignore_strides_are_refused(op: str) -> None:
    """Each argument alone; embedding tables and lengths too."""
    names = OPERATIONS[op].call[2:-1].split(", ")
    for i, name in enumerate(names):
        if name in ("eps", "p", "seed", "d_loss"):
            continue
        failure = failure_of(replaced(planted.KERNELS[op], i, as_if_contiguous), op)
        assert f"{name} " in failure.case.origin and "in memory" in failure.case.origin


@pytest.mark.parametrize("word", ["contiguous", "strides"])
def test_an_error_that_asks_for_contiguous_arrays_is_an_answer(word: str) -> None:
    def strict(x: torch.Tensor) -> torch.Tensor:
        if not x.is_contiguous():
            raise ValueError(f"x: {word}, please")
        return planted.gelu(x)

    assert check(strict, "gelu", dtypes=["float32"], quick=True)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda x: planted.gelu(x) + 0.0, "got 0 at [0, 0], expected -0"),
        (lambda x: planted.gelu(x).nan_to_num(nan=0.0, posinf=torch.inf), "got 0 at [0, 0], expected nan"),
        (lambda x: planted.gelu(x.nan_to_num(nan=torch.nan)), "expected inf"),
        (lambda x: torch.where(x < -5.5, torch.zeros_like(x), planted.gelu(x)), "expected -"),
        (functools.partial(planted.gelu, form="no tail"), "expected -"),
        (lambda x: torch.where(x.abs() > 1e38, torch.zeros_like(x), planted.gelu(x)), "expected 3.4"),
    ],
)
def test_special_values_of_gelu_are_checked(wrong: Callable[..., Any], expected: str) -> None:
    assert expected in failure_of(wrong, "gelu").reason


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_tail_is_asked_for_unless_it_is_not(dtype: str) -> None:
    wrong = functools.partial(planted.gelu, form="no tail")
    failure_of(wrong, "gelu", dtypes=[dtype])
    report = check(wrong, "gelu", dtypes=[dtype], quick=True, tail=False)
    assert "the tail of gelu (tail=False)" in str(report)
    assert "tail of gelu" not in str(check(planted.gelu, "gelu", dtypes=[dtype], quick=True))


@pytest.mark.parametrize(
    "op", ["layer_norm", "add_layer_norm", "softmax", "packed_attention", "group_attention", "first_token_attention"]
)
def test_nan_must_be_where_the_twin_has_it(op: str) -> None:
    failure = failure_of(lambda *inputs: planted.KERNELS[op](*inputs).nan_to_num(0.25, torch.inf, -torch.inf), op)
    assert "expected nan" in failure.reason and "nan in" in failure.case.origin


def test_inputs_that_change_in_place_are_read_again() -> None:
    assert failure_of(cached(planted.gelu), "gelu").reason.endswith(
        ", when called again with new numbers at the same address"
    )


def test_results_must_outlive_later_calls() -> None:
    assert failure_of(one_buffer(planted.gelu), "gelu").reason.startswith(
        "the result of an earlier call changed during a later one"
    )


@triton.jit
def scale_kernel(x, y, N, E, ROWS_FIRST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """gelu in one row, by the tanh-free formula of its twin for |x| < 5; rows on axis x or y."""
    i_row = tl.program_id(0) if ROWS_FIRST else tl.program_id(1)
    i_row = i_row.to(tl.int64) if WIDE else i_row
    o = tl.arange(0, BLOCK)
    b = tl.load(x + i_row * E + o, mask=o < E, other=0.0).to(tl.float32)
    b_y = 0.5 * b * (1.0 + tl.math.erf(b * 0.7071067811865476))
    tl.store(y + i_row * E + o, b_y.to(y.dtype.element_ty), mask=o < E)


def row_gelu(x: torch.Tensor, rows_first: bool = True, wide: bool = True) -> torch.Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    N, E = x.shape
    grid = (N, 1) if rows_first else (1, N)
    scale_kernel[grid](x, y, N, E, rows_first, wide, BLOCK=triton.next_power_of_2(E))
    return y


@only_interpreted
def test_row_offsets_in_int32_are_refused() -> None:
    options = {"tail": False, "dtypes": ["float16"]}
    report = check(row_gelu, "gelu", quick=True, examples=2, **options)
    assert report.tried.sizes["x"][0][1] * 768 > 2**31
    assert "rows" not in str(report).split("not tried")[1]
    failure = failure_of(functools.partial(row_gelu, wide=False), "gelu", **options)
    # Arrays of 4 GB may be neighbours: what leaves the upper one lands in the lower one, and only that one's is seen.
    assert "before the start of the array `" in failure.reason
    assert failure.reason.endswith(": an offset left the range of int32")
    assert failure.case.origin == "inputs with more than 2³¹ numbers"


@only_interpreted
def test_a_grid_that_cuda_does_not_allow_is_refused() -> None:
    failure = failure_of(functools.partial(row_gelu, rows_first=False), "gelu", tail=False)
    assert failure.reason.startswith("its grid is (1, 70000, 1), and CUDA allows at most")


@only_interpreted
def test_sampled_rows_that_are_wrong_are_refused() -> None:
    """Only the last of 70,000 rows: it is always among the programs that run."""

    def wrong(x: torch.Tensor) -> torch.Tensor:
        y = row_gelu(x)
        y[69_999:] *= 2
        return y

    failure = failure_of(wrong, "gelu", tail=False)
    assert failure.inputs["x"].shape == (66, 17) and failure.verdict.index[0] == 65


@only_interpreted
def test_an_operation_on_a_whole_virtual_array_is_not_tried() -> None:
    report = check(lambda x: row_gelu(x * 1), "gelu", quick=True, examples=2, tail=False, dtypes=["float16"])
    assert "more than 2³¹ numbers: it calls aten.mul" in str(report)


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_report_says_what_was_tried(op: str) -> None:
    report = check(planted.KERNELS[op], op, dtypes=["float32"], quick=True, examples=3)
    text = str(report)
    assert f"  tried      {report.tried.calls:,} calls" in text and report.tried.calls > 20
    for words in ("transposed", "every second number", "offset by one", "subnormal numbers", "nan in "):
        assert words in text
    assert "  not tried  speed; gradients; races" in text


@pytest.mark.parametrize("op", [*OPERATIONS, *EXAMPLES])
def test_large_cases_have_the_sizes_of_models(op: str) -> None:
    """Shapes of 768, 1,024, 3,072 and 4,096 columns, 12 and 16 heads, 512 keys, and past 2,048 in each direction."""
    operation = OPERATIONS[op] if op in OPERATIONS else EXAMPLES[op]
    given = op if op in OPERATIONS else operation
    trials = list(coverage.large_trials(given, "float32", (families.ALWAYS, families.ONCE, families.FULL)))
    shapes = [value.shape for trial in trials for value in trial.inputs.values() if isinstance(value, np.ndarray)]
    if op.removesuffix("_vjp") in ("packed_attention", "first_token_attention"):
        assert {12, 16} <= {shape[-2] for shape in shapes if len(shape) > 2}
        lengths = [int(np.diff(trial.inputs["cu_seqlens"]).max()) for trial in trials]
        assert 512 in lengths and max(lengths) > 2048
        assert max(shape[0] for shape in shapes) > 2048
    elif op.startswith("group_attention"):
        assert {12, 16} <= {shape[-2] for shape in shapes if len(shape) > 2}
        lengths = [int((trial.inputs["groups"][:, 1] - trial.inputs["groups"][:, 0]).max()) for trial in trials]
        assert 512 in lengths and max(lengths) > 2048
    elif op == "attention_head":
        assert {512, 2050} <= {shape[0] for shape in shapes}
    elif op != "rotary":
        assert {768, 1024, 3072, 4096} <= {shape[-1] for shape in shapes if shape}
        assert max(shape[0] for shape in shapes if len(shape) == 2) > 2048 or op == "embed"


@only_interpreted
@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=[pytest.mark.all] * (op == "group_attention")) for op in with_kernel()]
)
def test_our_kernels_are_tried_with_70000_rows_and_past_int32(op: str) -> None:
    report = check(OPERATIONS[op].kernel, op, dtypes=["bfloat16"], examples=2, quick=True)
    # Sums over all rows cannot be judged by a few of them.
    reasons = [reason.partition(": ")[2] for reason in report.tried.left_out]
    assert reasons == ["its rows are not independent"] * (2 if op.endswith("_vjp") else 0)
    assert op.endswith("_vjp") or max(high for axes in report.tried.sizes.values() for _, high in axes) >= 70_000


@pytest.mark.parametrize("name", EXAMPLES)
def test_operations_of_ones_own_get_large_cases_layouts_and_special_values(name: str) -> None:
    from ernie_m.kernels.checking.formats import FORMATS
    from ernie_m.kernels.checking.special import special_trials

    operation = EXAMPLES[name]
    trials = [*special_trials(operation, "float16", True), *coverage.layout_trials(operation, "float16")]
    assert any("nan in" in trial.origin for trial in trials) and any(trial.layouts for trial in trials)
    for trial in trials:
        for value in trial.inputs.values():
            if getattr(value, "dtype", None) == np.float64:
                np.testing.assert_array_equal(value, FORMATS["float16"].round(value))


@pytest.mark.parametrize("op", ["packed_attention", "group_attention", "first_token_attention", "embed", "layer_norm"])
def test_narrowing_keeps_the_rows(op: str) -> None:
    trial = coverage.many_trial(op, "float32")
    assert trial is not None
    rows = np.array([0, 1, 7, 500])
    few = {
        n: x[:501] if n not in ("cu_seqlens", "groups", "word", "position") and np.ndim(x) > 1 else x
        for n, x in trial.inputs.items()
    }
    if "cu_seqlens" in few:
        ends = trial.inputs["cu_seqlens"]
        count = 501 if op == "first_token_attention" else int(np.searchsorted(ends, 501))
        few["cu_seqlens"] = ends[: count + 1]
        key = "kv" if "kv" in few else "qkv"
        few[key] = trial.inputs[key][: ends[count]]
    if "groups" in few:
        few["groups"] = trial.inputs["groups"][trial.inputs["groups"][:, 1] <= 501]
        few["qkv"] = trial.inputs["qkv"][: few["groups"][-1, 1]]
    few = {n: x[:501] if n.endswith("_ids") else x for n, x in few.items()}
    whole = dataclasses.replace(trial, inputs=few)
    small, where = coverage.narrowed(whole, rows)
    np.testing.assert_allclose(small.expected.exact[where], whole.expected.exact[rows], rtol=1e-12, atol=1e-14)

"""check(): what passes, how failures are reported, and that it detects faults other than wrong numbers."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch

import ernie_m.reference as reference
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.guards import place, poisoned
from ernie_m.kernels.checking.operations import OPERATIONS, cases, fixed_case
from ernie_m.kernels.checking.report import Failure
from ernie_m.kernels.checking.runner import SET_INTERPRET
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.optional_triton import tl, triton


@triton.jit
def gelu_kernel(x, y, n, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x + o, mask=(o < n), other=0.0).to(tl.float32)
    b_y = 0.5 * b_x * (1.0 + tl.math.erf(b_x * 0.7071067811865476))
    tl.store(y + o, b_y.to(y.dtype.element_ty), mask=(o < n) | (MASKED == 0))


def launch_gelu(x: torch.Tensor, masked: bool = True, block: int = 64) -> torch.Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    gelu_kernel[(triton.cdiv(x.numel(), block),)](x, y, x.numel(), BLOCK=block, MASKED=masked)
    return y


def failure_of(function: Callable[..., Any], op: str = "gelu", **options: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        check(function, op, **{"examples": 10, "dtypes": ["float32"], "quick": True, **options})
    return caught.value


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("gelu", reference.gelu),
        ("bias_gelu", reference.bias_gelu),
        ("softmax", lambda scores: reference.softmax(scores.astype(np.float32)).astype(scores.dtype)),
        ("layer_norm", reference.layer_norm),
        ("add_layer_norm", reference.add_layer_norm),
        ("embed", reference.embed),
        ("packed_attention", reference.packed_attention),
        ("attention_head", lambda q, k, v: reference.attention(q, k, v)[0]),
    ],
)
def test_check_takes_numpy_functions(op: str, function: Callable[..., Any]) -> None:
    """float32 for all; float16 where the twin computes it in float32."""
    dtypes = ["float32", "float16"] if op in ("gelu", "softmax", "layer_norm") else ["float32"]
    assert list(check(function, op, arrays="numpy", dtypes=dtypes, examples=10).dtypes) == dtypes


def test_check_takes_triton_launchers_and_reports_each_dtype() -> None:
    report = check(launch_gelu, "gelu", examples=8, tail=False)
    assert list(report.dtypes) == ["float32", "float16", "bfloat16"]
    assert [found.inputs for found in report.dtypes.values()] == [8, 8, 8]
    once, twice = (check(planted.gelu, "gelu", ["float16"] * n, quick=True).tried.calls for n in (1, 2))
    assert once == twice
    assert set(report.dtypes["bfloat16"].worst) == {"componentwise", "rms", "signed_mean"}
    assert str(report).startswith("launch_gelu computes gelu: all errors within bounds\n  float32   8 drawn inputs")


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU it would overwrite another array's memory")
def test_check_detects_a_triton_kernel_that_writes_past_the_end() -> None:
    wrong = failure_of(functools.partial(launch_gelu, masked=False))
    assert wrong.reason == "the kernel wrote past the end of an array from `torch.empty`"
    assert wrong.case.inputs["x"].shape == (1, 1)


def test_failure_shows_the_smallest_input() -> None:
    """tanh for erf in bfloat16 only shows between -4 and -1.5: one short number, its result and its exact result."""
    wrong = failure_of(functools.partial(planted.gelu, form="tanh"), dtypes=["bfloat16"])
    assert wrong.inputs["x"].shape == wrong.got.shape == wrong.expected.shape == wrong.limit.shape == (1, 1)
    x = wrong.inputs["x"].item()
    assert -4 <= x <= -1.5 and x * 32 == round(x * 32)
    assert wrong.expected.item() == reference.gelu(np.array(x))
    assert wrong.verdict.bound == "componentwise" and wrong.verdict.index == (0, 0)
    error = abs(wrong.got.item() - wrong.expected.item())
    assert error == wrong.verdict.error > wrong.verdict.limit == wrong.limit.item()
    text = str(wrong)
    assert f"x = [[{x}]]" in text and "bfloat16" in text and f"expected {wrong.expected.item():.9g} (error " in text


def test_failure_of_attention_names_its_lengths() -> None:
    wrong = failure_of(functools.partial(planted.attention, layout="next key"), "packed_attention")
    assert wrong.inputs["cu_seqlens"].size <= 4
    assert f"cu_seqlens = {wrong.inputs['cu_seqlens'].tolist()}" in str(wrong)
    assert wrong.inputs["qkv"].shape[2] == 1


def test_failure_of_truncation_says_what_is_allowed() -> None:
    wrong = failure_of(functools.partial(planted.gelu, truncated=True), dtypes=["bfloat16"], examples=1)
    assert wrong.verdict.bound in ("componentwise", "signed_mean")
    assert "allowed" in wrong.reason


def test_failures_can_be_sent_to_another_process() -> None:
    wrong = failure_of(lambda x: x)
    again = pickle.loads(pickle.dumps(wrong))
    assert str(again) == str(wrong) and again.verdict == wrong.verdict


def changes_its_argument(x: torch.Tensor) -> torch.Tensor:
    y = planted.gelu(x)
    x.zero_()
    return y


def writes_past_the_end(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    torch.as_strided(y, (1,), (1,), y.storage_offset() + y.numel()).fill_(0)
    return y.copy_(planted.gelu(x))


def writes_before_its_argument(x: torch.Tensor) -> torch.Tensor:
    torch.as_strided(x, (1,), (1,), x.storage_offset() - 1).fill_(0)
    return planted.gelu(x)


def forgets_a_number(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    y.view(-1)[1:] = planted.gelu(x).view(-1)[1:]
    return y


def reads_past_the_end(x: torch.Tensor) -> torch.Tensor:
    return planted.gelu(x) + 0 * torch.as_strided(x, (1,), (1,), x.storage_offset() + x.numel())


def never_repeats(x: torch.Tensor) -> torch.Tensor:
    never_repeats.calls += 1
    return planted.gelu(x) * (1 + 2.0**-23 * (never_repeats.calls % 2))


never_repeats.calls = 0


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (changes_its_argument, "it changed its argument x"),
        (writes_past_the_end, "the kernel wrote past the end of an array from `torch.empty`"),
        (writes_before_its_argument, "the kernel wrote before the start of x"),
        (forgets_a_number, "got nan at [0, 0], expected"),
        (reads_past_the_end, "got nan at [0, 0], expected"),
        (never_repeats, "two calls with the same input returned different results"),
        (lambda x: planted.gelu(x).double(), "it returned float64 for float32 inputs"),
        (lambda x: planted.gelu(x)[0], "it returned shape (1,), expected (1, 1)"),
        (lambda x: planted.gelu(x).numpy(), "it returned ndarray, expected Tensor (for a NumPy function, pass arrays="),
        (lambda x: planted.gelu(x, form="cubic"), "it raised KeyError: 'cubic'"),
    ],
)
def test_failure_reports_faults_other_than_wrong_numbers(function: Callable[..., Any], reason: str) -> None:
    wrong = failure_of(function)
    assert wrong.reason.startswith(reason)
    assert wrong.case.inputs["x"].shape == (1, 1)


def test_failure_keeps_the_exception() -> None:
    assert isinstance(failure_of(lambda x: x + undefined).__cause__, NameError)  # noqa: F821


def test_numpy_arrays_are_guarded_and_poisoned_too() -> None:
    def forgets(x: np.ndarray) -> np.ndarray:
        return np.empty_like(x)

    assert failure_of(forgets, arrays="numpy").reason.startswith("got nan at [0, 0], expected")
    guarded = place("x", np.ones((2, 3)), "numpy", "float32", "cpu")
    guarded.buffer[-1] = 0.0
    assert guarded.damage == "the kernel wrote past the end of"


def test_poisoned_restores_the_functions() -> None:
    before = torch.empty, torch.empty_like, torch.Tensor.new_empty, np.empty, np.empty_like
    with pytest.raises(KeyError), poisoned([]):
        assert torch.empty(3).isnan().all() and np.isnan(np.empty(3)).all()
        assert torch.empty(3, dtype=torch.int64).dtype == torch.int64
        raise KeyError
    assert before == (torch.empty, torch.empty_like, torch.Tensor.new_empty, np.empty, np.empty_like)


def test_check_with_the_same_seed_fails_on_the_same_input() -> None:
    wrong = functools.partial(planted.softmax, truncated=True)
    first, second = (failure_of(wrong, "softmax", dtypes=["bfloat16"], seed=5) for _ in range(2))
    assert str(first) == str(second)


@pytest.mark.parametrize("op", OPERATIONS)
def test_drawn_inputs_are_numbers_of_their_format(op: str) -> None:
    from hypothesis import given, settings

    from ernie_m.kernels.checking.formats import FORMATS

    @settings(max_examples=15)
    @given(case=cases(op, "float16"))
    def rounded(case: Any) -> None:
        for value in case.inputs.values():
            if getattr(value, "dtype", None) == np.float64:
                np.testing.assert_array_equal(value, FORMATS["float16"].round(value))
                assert np.abs(value).max() <= 65504 / 2

    rounded()


@pytest.mark.parametrize("op", [op for op in OPERATIONS if "gamma" in fixed_case(op, "float32").inputs])
def test_affine_parameters_are_random(op: str) -> None:
    inputs = fixed_case(op, "float32").inputs
    # Gradients do not depend on beta.
    assert all(np.std(inputs[name]) > 0.5 for name in ("gamma", "beta") if name in inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"op": "relu"}, "op: expected one of gelu, bias_gelu, "),
        ({"op": "gelu", "dtypes": ["float64"]}, "dtypes: expected any of float32, float16, bfloat16 for torch arrays"),
        (
            {"op": "gelu", "dtypes": ["bfloat16"], "arrays": "numpy"},
            "expected any of float32, float16 for numpy arrays",
        ),
        ({"op": "gelu", "arrays": "jax"}, "arrays: expected 'torch' or 'numpy', got 'jax'"),
        ({"op": "gelu", "examples": 0}, "examples: expected at least 1, got 0"),
    ],
)
def test_check_names_the_invalid_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(planted.gelu, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_check_says_what_to_set_if_kernels_cannot_run() -> None:
    program = "from test_check import check, launch_gelu; check(launch_gelu, 'gelu')"
    folders = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(planted.__file__)])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": folders}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stderr.rstrip().endswith(f"RuntimeError: {SET_INTERPRET}")


def test_check_leaves_nothing_in_the_current_directory(tmp_path: Path) -> None:
    program = "import planted; from ernie_m.kernels import check; check(planted.softmax, 'softmax', quick=True)"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(planted.__file__)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_check_leaves_the_home_of_hypothesis_as_it_was(tmp_path: Path) -> None:
    from hypothesis import configuration

    before = configuration.storage_directory().path
    configuration.set_hypothesis_home_dir(tmp_path)
    try:
        failure_of(planted.softmax)
        assert configuration.storage_directory().path == tmp_path and list(tmp_path.iterdir()) == []
    finally:
        configuration.set_hypothesis_home_dir(before)

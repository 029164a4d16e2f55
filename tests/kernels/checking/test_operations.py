"""The registry: every operation is in checking, verify, benchmark and machine code, and adding one takes one row."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_m import kernels, reference
from ernie_m.kernels.benchmark.workloads import WORKLOADS
from ernie_m.kernels.checking.letters import drawn
from ernie_m.kernels.checking.operations import OPERATIONS, Operation, case_of, find, fixed_case, with_kernel
from ernie_m.kernels.checking.verify import kernel_rows
from ernie_m.kernels.machine_code.report import all_variants
from ernie_m.kernels.runtime.variants import TARGETS

# Public functions of `ernie_m.kernels` that are not operations with a kernel.
NOT_KERNELS = {"check", "cu_seqlens", "pad", "token_indices", "unpad"}


def test_every_operation_is_in_every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if any table lacks an operation: two once lacked `first_token_attention`."""
    names = set(with_kernel())
    public = {name for name in kernels.__all__ if callable(getattr(kernels, name)) and name.islower()}
    assert names == public - NOT_KERNELS
    assert set(WORKLOADS) == names
    for target in TARGETS:
        assert {variant.operation for variant in all_variants(target)} == names
    monkeypatch.setattr("ernie_m.kernels.checking.verify.check_dtype", lambda runner, op, dtype, plan: None)
    assert {row.op for row in kernel_rows(("float32",), quick=True)} == names


def test_every_kernel_is_compiled_and_gated() -> None:
    """Fails if a kernel of the package is in no list of variants: that for attention's δ once was in none."""
    names = [module.name for module in pkgutil.iter_modules(kernels.__path__) if module.name != "__main__"]
    pages = [importlib.import_module(f"ernie_m.kernels.{name}") for name in names]
    kernels_of = [{name for name, value in vars(page).items() if hasattr(value, "fn")} for page in pages]
    written = {name for names in kernels_of for name in names if name.endswith("_kernel")}
    for target in TARGETS:
        assert {variant.kernel.fn.__name__ for variant in all_variants(target)} == written


class _Report:
    def __init__(self, dtypes: list[str]) -> None:
        self.dtypes = dict.fromkeys(dtypes)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_row_has_the_public_name_of_the_operation(name: str) -> None:
    """In both packages; only `attention_head` is an exercise without a public function."""
    operation = OPERATIONS[name]
    # The reference's gradients are public in the operation's page.
    page = operation.kernel.__module__.rpartition(".")[2] if operation.results and operation.kernel else None
    where = reference if page is None else importlib.import_module(f"ernie_m.reference.{page}")
    assert name == "attention_head" or callable(getattr(where, name))
    if operation.kernel is not None:
        assert operation.kernel is getattr(kernels, name)
        assert operation.variants is not None
    # The inputs are the arguments that `call` names.
    arguments = operation.call.removeprefix("f(").removesuffix(")").split(", ")
    assert list(fixed_case(name, "float32").inputs) == arguments


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if operation.crop])
def test_cropping_keeps_the_result_at_the_index(name: str) -> None:
    case = fixed_case(name, "float32")
    exact = case.expected.exact
    index = tuple(n - 1 for n in exact.shape)
    crop = OPERATIONS[name].crop
    assert crop is not None
    cropped = crop(case.inputs, index)
    small = OPERATIONS[name].expect(case.expected.format, cropped).exact
    assert small.size < exact.size or exact.shape[1] == 1  # there is only one head
    # Both in float64, with sums of up to 768 numbers; relative to the largest result.
    bound = 2 * 768 * 2.0**-53 * np.abs(exact).max()
    np.testing.assert_allclose(small[tuple(n - 1 for n in small.shape)], exact[index], rtol=0, atol=bound)


def doubled(x: Any) -> Any:
    return 2.0 * x


OWN = {"name": "doubled", "call": "f(x)", "truth": doubled, "draw": drawn(x="N E")}


def test_the_fields_that_may_be_left_out() -> None:
    """The bound and the fixed data come from the definition and from the letters."""
    own = Operation(**OWN)
    case = fixed_case(own, "bfloat16")
    assert (case.op, case.own, case.operation) == ("doubled", own, own)
    assert case.inputs["x"].shape == (16, 768)
    np.testing.assert_array_equal(case.expected.exact, 2 * case.inputs["x"])
    derived = replace(own, bound=lambda format, x: np.abs(x))
    case = fixed_case(derived, "float32")
    assert (case.expected.limit >= np.abs(case.inputs["x"])).all()
    assert find("gelu").name == "gelu" and fixed_case("gelu", "float32").own is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"call": "x"}, r"call: expected it to look like 'f\(x, gamma, eps\)', got 'x'"),
        ({"truth": None}, "doubled: expected one of truth and expected, got neither"),
        ({"expected": lambda format, x: None}, "doubled: expected one of truth and expected, got both"),
        ({"bound": "derived"}, "bound: expected a function or one of running, three-way, got 'derived'"),
        ({"call": "f(y)"}, r"draw: expected the arguments of f\(y\), got x"),
        ({"truth": lambda y: y}, r"truth: expected the arguments of f\(x\): missing a required argument: 'y'"),
        ({"draw": lambda draw, format: {}}, "fixed: expected a function of `normal`"),
    ],
)
def test_fields_that_do_not_agree_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Operation(**{**OWN, **change})


def test_an_operation_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"op: expected an Operation with a name, got one without, called as f\(x\)"):
        find(Operation(**{**OWN, "name": ""}))
    with pytest.raises(ValueError, match=r"op: expected one of gelu, .*, or an Operation, got 'relu'"):
        find("relu")


def test_a_bound_that_is_infinite_on_fixed_data_is_refused() -> None:
    """It would let anything pass."""
    own = Operation(**{**OWN, "truth": lambda x: 1.0 / (x * 3.0 - x * 3.0 + 0.0 * x)})
    with pytest.raises(ValueError, match="doubled: expected a finite bound on fixed data, got inf"):
        _ = fixed_case(own, "float32").expected


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ValueError, r"cases: expected inputs by name for f\(x\), in this order; got none"),
        ({"y": np.ones(3)}, ValueError, "in this order; got y"),
        ({"x": [1.0]}, TypeError, "cases: x: expected a NumPy array or a number, got list"),
    ],
)
def test_inputs_of_ones_own_are_validated(inputs: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        case_of("gelu", "float32", inputs)


def test_inputs_of_ones_own_are_rounded_to_the_dtype() -> None:
    case = case_of("gelu", "bfloat16", {"x": np.array([1.001], np.float32)}, "mine")
    assert case.inputs["x"].tolist() == [1.0] and case.inputs["x"].dtype == np.float64 and case.origin == "mine"


# A user's addition: two pages, a row, a workload. The pages are files, because Triton reads a kernel's source.
REFERENCE_PAGE = '''
"""Scaling: y = a x."""


def scale(x, a):  # (..., E), (E,) -> (..., E)
    """Multiply each column by its factor."""
    return x * a
'''
KERNEL_PAGE = '''
"""Scaling in one pass. Twin: `scale_page.py`."""

import torch

from ernie_m.kernels.runtime.dtypes import TORCH_DTYPES, TRITON_TYPES
from ernie_m.kernels.runtime.optional_triton import tl, triton
from ernie_m.kernels.runtime.variants import Configuration, Variant, next_power_of_2


@triton.jit
def scale_kernel(x, a, y, E: tl.constexpr, BLOCK: tl.constexpr):
    i_row = tl.program_id(0).to(tl.int64)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    b_x = tl.load(x + i_row * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_a = tl.load(a + o_e, mask=m_e, other=0.0).to(tl.float32)
    tl.store(y + i_row * E + o_e, (b_x * b_a).to(y.dtype.element_ty), mask=m_e)


def variants(target):
    for name, dtype in TORCH_DTYPES.items():
        pointers = dict.fromkeys(("x", "a", "y"), f"*{TRITON_TYPES[dtype]}")
        chosen = Configuration({"BLOCK": 1024}, num_warps=4)
        yield Variant("scale", name, "E=768", scale_kernel, pointers, {"E": 768, "BLOCK": 1024}, chosen, tile=1)


def scale(x, a):
    x, a = x.contiguous(), a.contiguous()
    y = torch.empty_like(x)
    E = x.shape[-1]
    scale_kernel[(x.numel() // E,)](x, a, y, E=E, BLOCK=next_power_of_2(E))
    return y
'''
PROGRAM = """
import json
import sys

import numpy as np
import torch

from ernie_m.kernels.benchmark import work, workloads
from ernie_m.kernels.benchmark.report import Case
from ernie_m.kernels.benchmark.runner import Output, measure
from ernie_m.kernels.benchmark.timing import Timing
from ernie_m.kernels.checking import operations
from ernie_m.kernels.checking.bounds import EPS, expected
from ernie_m.kernels.checking.drawing import drawn_rows
from ernie_m.kernels.cli.program import main

import scale_kernel_page
import scale_page

operations.OPERATIONS["scale"] = operations.Operation(
    call="f(x, a)",
    expected=lambda format, x, a: expected(format, scale_page.scale(x, a), EPS * np.abs(x * a)),
    draw=drawn_rows(x=2, a=1),
    fixed=lambda normal: {"x": normal(16, 768), "a": normal(768)},
    crop=operations.one_number,
    kernel=scale_kernel_page.scale,
    variants=scale_kernel_page.variants,
)


def scale_case(size, batch, dtype, device):
    T, E = batch.tokens, size.hidden
    def make():
        return torch.randn(T, E, dtype=dtype, device=device), torch.randn(E, dtype=dtype, device=device)
    moved = work.Work(0.0, (2 * T + 1) * E * dtype.itemsize)
    functions = {workloads.OURS: scale_kernel_page.scale, "eager": lambda x, a: x * a}
    return workloads.case(make, functions, moved, T * E * dtype.itemsize)


workloads.WORKLOADS["scale"] = scale_case
if sys.argv[1] == "bench":
    output = Output(None)
    output.about = {"matrix_flops_per_s": {"float32": 1e12}, "copy_bytes_per_s": 1e9}
    timer = lambda calls, runs, hide: {name: Timing(call(0).numel() * 1e-9, 0, 0, runs) for name, call in calls.items()}
    measure([Case("scale", "base", "one", "float32")], output, 3, timer, "cpu")
    print(json.dumps([row.as_json()["rms_from_ours"] for row in output.rows]))
elif sys.argv[1] == "compile":
    from ernie_m.kernels.machine_code import report
    (place,) = report.select(["sm_90"], ["scale"], ["bfloat16"])
    row = report._row(*place, False)
    print(json.dumps({"error": row.get("error"), "spills": row.get("spills"), "per": row.get("per")}))
elif sys.argv[1] == "check":
    sys.exit(main(["check", "--op", "scale", "wrong.py:doubled", "--examples", "5", "--dtype", "float32"]))
elif sys.argv[1] == "verify":
    operations.OPERATIONS = {"scale": operations.OPERATIONS["scale"]}
    from ernie_m.kernels.checking.verify import kernel_rows
    print(json.dumps([row.as_json()["passed"] for row in kernel_rows(("float32", "bfloat16"), quick=True)]))
"""


@pytest.mark.parametrize(
    ("what", "interpreted", "code", "shown"),
    [
        ("verify", True, 0, "[true, true]"),
        ("check", True, 1, "doubled "),
        ("bench", True, 0, "[null, 0.0]"),
        ("compile", False, 0, '{"error": null, "spills": 0, "per": "row"}'),
    ],
)
def test_adding_an_operation_takes_two_pages_a_row_and_a_workload(
    what: str, interpreted: bool, code: int, shown: str, tmp_path: Path
) -> None:
    """In a new process, because Triton compiles kernels only if its interpreter is off."""
    pytest.importorskip("triton")
    for name, text in {
        "scale_page.py": REFERENCE_PAGE,
        "scale_kernel_page.py": KERNEL_PAGE,
        "program.py": PROGRAM,
        "wrong.py": "def doubled(x, a):\n    return 2 * x * a\n",
    }.items():
        (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
    environment = {**os.environ, "TRITON_INTERPRET": "1"} if interpreted else {**os.environ}
    if not interpreted:
        environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "program.py", what]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert shown in done.stdout

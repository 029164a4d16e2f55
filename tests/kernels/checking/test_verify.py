"""verify: passes right kernels, and names the kernel or the layer of a model that is wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import planted
import pytest
import torch

from ernie_m.kernels import dropped_layer_norm
from ernie_m.kernels.checking import operations, verify, verify_model, verify_training
from ernie_m.kernels.checking.operations import OPERATIONS, Operation
from ernie_m.kernels.checking.report import Failure
from ernie_m.kernels.cli import program as cli
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.interpreter import upstream
from ernie_m.kernels.runtime.optional_triton import triton
from ernie_m.reference.trace import Entry

LAYERS = ["embeddings", *(f"encoder.layers.{i}" for i in range(4)), "pooler"]


@pytest.fixture
def few_kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Operation]:
    """Fast functions in place of the kernels."""
    rows = {op: dataclasses.replace(OPERATIONS[op], kernel=planted.KERNELS[op]) for op in ("bias_gelu", "embed")}
    monkeypatch.setattr(operations, "OPERATIONS", rows)
    return rows


def plant(rows: dict[str, Operation], op: str, kernel: Any) -> None:
    """Put a wrong kernel into the registry."""
    rows[op] = dataclasses.replace(rows[op], kernel=kernel)


def test_verify_prints_a_row_for_each_kernel_and_dtype(
    few_kernels: dict[str, Operation], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify_model, "rows", lambda dtypes, quick: iter([]))
    monkeypatch.setattr(verify_training, "rows", lambda dtypes, quick: iter([]))
    # The second float16 changes nothing. Seen red: everything ran twice.
    chosen = ("--dtype", "float16", "--dtype", "bfloat16", "--dtype", "float16")
    assert cli.main(["verify", "--quick", *chosen]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.endswith("ok")]
    assert [(row[0], row[1]) for row in rows] == [(op, d) for op in few_kernels for d in ("float16", "bfloat16")]
    assert all(float(row[4]) <= float(row[5]) and float(row[6]) <= float(row[7]) for row in rows)
    assert lines[-1].startswith("all errors within bounds (float16, bfloat16; quick")


def test_verify_names_the_wrong_kernel(
    few_kernels: dict[str, Operation], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(few_kernels, "bias_gelu", functools.partial(planted.bias_gelu, form="tanh"))
    monkeypatch.setattr(verify_model, "rows", lambda dtypes, quick: iter([]))
    monkeypatch.setattr(verify_training, "rows", lambda dtypes, quick: iter([]))
    assert cli.main(["verify", "--quick", "--dtype", "float32"]) == 1
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if line.endswith("FAILED")] == ["bias_gelu"]
    assert "does not compute bias_gelu: got " in text and text.splitlines()[-1].startswith("FAILED (float32")


def test_verify_prints_json_lines(
    few_kernels: dict[str, Operation], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(few_kernels, "bias_gelu", functools.partial(planted.bias_gelu, place="none"))
    monkeypatch.setattr(verify_model, "rows", lambda dtypes, quick: iter([]))
    monkeypatch.setattr(verify_training, "rows", lambda dtypes, quick: iter([]))
    assert cli.main(["verify", "--quick", "--json", "--dtype", "bfloat16"]) == 1
    wrong, right = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (wrong["kernel"], wrong["passed"], right["kernel"], right["passed"]) == (
        "bias_gelu",
        False,
        "embed",
        True,
    )
    assert right["rms"]["error"] <= right["rms"]["bound"] and "does not compute bias_gelu" in wrong["failure"]


@pytest.mark.parametrize(("dtype", "count"), [("float32", 1), ("bfloat16", 3)])
def test_a_whole_model_is_within_bounds_layer_by_layer(dtype: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_model, "QUICK_SENTENCES", count)
    rows = list(verify_model.rows((dtype,), quick=True))
    assert [row.layer for row in rows] == LAYERS
    assert all(row.holds for row in rows)
    # Intermediate values of the layers are compared, not only their outputs.
    names = {entry.name.removeprefix("encoder.layers.0.") for entry in rows[1].compared}
    projections = {f"self_attn.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "context")}
    assert names == projections | {"norm1", "activation", "norm2"}
    if dtype == "bfloat16":
        # The computation was in bfloat16.
        assert all(entry.error > 1e-4 for entry in rows[2].compared)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.all), "bfloat16"])
def test_a_training_step_is_within_bounds_layer_by_layer(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: a kernel's gradient that is 1 % off shows in the layer where it is used last, and below.

    Seen red with plain torch's gradients taken for the kernels': these would be equal, bit for bit.
    """
    monkeypatch.setattr(verify_training, "QUICK_SENTENCES", 2 if dtype == "float32" else 1)
    rows = list(verify_training.rows((dtype,), quick=True))
    assert [row.layer for row in rows] == ["classifier", *reversed(LAYERS[1:-1]), "embeddings"]
    assert all(row.holds for row in rows), [row.cells() for row in rows]
    assert any(entry.error != entry.plain for row in rows for entry in row.compared)
    assert sum(len(row.compared) for row in rows) > 60
    if dtype == "float32":
        right = dropped_layer_norm._dropped_layer_norm_vjp
        wrong = lambda *given: tuple(x * 1.01 for x in right(*given))  # noqa: E731
        monkeypatch.setattr(dropped_layer_norm, "_dropped_layer_norm_vjp", wrong)
        monkeypatch.setattr(verify_training, "QUICK_SENTENCES", 1)
        rows = list(verify_training.rows((dtype,), quick=True))
        assert [row.holds for row in rows] == [True, *[False] * (len(rows) - 1)]


def test_a_fault_first_shows_in_its_own_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_model, "QUICK_SENTENCES", 1)

    def spoil(model: torch.nn.Module) -> None:
        with torch.no_grad():
            dict(model.named_parameters())["encoder.layers.2.norm1.weight"].mul_(1.01)

    rows = list(verify_model.rows(("float32",), True, change=spoil))
    assert next(row.layer for row in rows if not row.holds) == "encoder.layers.2"


def entries(values: np.ndarray) -> dict[str, Entry]:
    """A trace with the same array in every layer."""
    return {f"{layer}.x": Entry(f"{layer}.x", values) for layer in LAYERS}


@pytest.mark.parametrize(("error", "plain", "holds"), [(1.2, 1.0, True), (1.3, 1.0, False), (np.nan, 1.0, False)])
def test_the_bound_is_a_quarter_above_the_error_of_plain_torch(error: float, plain: float, holds: bool) -> None:
    class Config:
        num_hidden_layers, hidden_size, intermediate_size = 4, 32, 128

    exact = np.ones((2, 3, 4))
    traces = [entries(exact), entries(exact + 1e-2 * plain), entries(exact + 1e-2 * error)]
    with np.errstate(invalid="ignore"):
        rows = list(verify_model.compare("bfloat16", Config, *traces))
    assert [row.holds for row in rows] == [holds] * 6
    assert rows[0].cells()[-1] == ("ok" if holds else "FAILED")


def test_traces_without_a_layer_are_an_error() -> None:
    class Config:
        num_hidden_layers, hidden_size, intermediate_size = 4, 32, 128

    exact = entries(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"pooler: expected names in the torch model's traces"):
        list(
            verify_model.compare("float32", Config, exact, exact, {k: v for k, v in exact.items() if "pooler" not in k})
        )


@pytest.mark.all
def test_verify_starts_the_interpreter_by_itself() -> None:
    """End to end, as `make demo` runs it, in one dtype. What it is made of has tests of its own: each kernel's row
    (test_coverage.py, by `check`), the layers, the training step, and the start of the interpreter (test_program.py).
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "ernie_m.kernels", "verify", "--quick", "--dtype", "bfloat16", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(operations.with_kernel()) + 2 * len(LAYERS) and all(row["passed"] for row in rows)


@pytest.mark.parametrize("op", operations.with_kernel())
def test_verify_refuses_kernels_that_write_nothing(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it proves something: every launch of the kernel does nothing, and its results are as they were allocated."""
    launches = []
    monkeypatch.setattr(operations, "OPERATIONS", {op: OPERATIONS[op]})
    kind = upstream.InterpretedFunction if INTERPRETED else triton.JITFunction
    monkeypatch.setattr(kind, "run", lambda self, *arguments, **options: launches.append(self))
    rows = list(verify.kernel_rows(("float32", "bfloat16"), True))
    assert launches and [row.holds for row in rows] == [False, False]
    # Rows of no group have results of 0, with which memory begins. Logits that are not replaced by their gradient are
    # multiplied in its place; the smallest case has one word, and a gradient of 0.
    got = {"group_attention": "got 0 ", "linear_cross_entropy": "expected 0 "}.get(op.removesuffix("_vjp"), "got nan")
    assert all(got in str(row.found) for row in rows)


def test_rows_are_failures_or_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "OPERATIONS", {"gelu": dataclasses.replace(OPERATIONS["gelu"], kernel=lambda x: x)})
    (row,) = verify.kernel_rows(("float16",), True)
    assert isinstance(row.found, Failure) and not row.holds
    assert len(row.cells()) == len(verify.HEADINGS)

"""The command `compile`: its table, arguments and error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ernie_m.kernels.machine_code.report import all_variants, select, table
from ernie_m.kernels.runtime.variants import TARGETS

ROW: dict[str, Any] = {
    "operation": "packed_attention",
    "dtype": "bfloat16",
    "label": "H=12 D=64 S<=512",
    "target": "sm_90",
    "num_warps": 8,
    "registers": 109,
    "spills": 12,
    "stack": 16,
    "shared": 49152,
    "shared_limit": 232448,
    "occupancy": 2,
    "tensor_cores": {"wgmma": 16},
    "loads_16": 24,
    "loads_2": 3,
    "instructions_per": 8.69,
    "per": "element",
    "warnings": [],
}


def run_command(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process with additional environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "ernie_m.kernels", "compile", *arguments],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_table_shows_every_figure() -> None:
    lines = table([ROW]).splitlines()
    assert lines[2] == "sm_90, shared memory up to 232,448 bytes"
    assert lines[3].split("  ")[-1].strip() == "instructions"
    cells = "packed_attention bfloat16 H=12 D=64 S<=512 8 109 12 16 49152 2 16 wgmma 24 3 8.7 / element"
    assert lines[4].split() == cells.split()


def test_table_shows_excess_memory_warnings_and_errors() -> None:
    large = {**ROW, "target": "gfx942", "shared": 98304, "shared_limit": 65536, "warnings": ["slow"]}
    wrong = {name: ROW[name] for name in ("operation", "dtype", "label", "target")}
    text = table([{**wrong, "error": "CompilationError: no"}, large])
    assert " !98304 " in text
    assert "! gfx942 packed_attention bfloat16 H=12 D=64 S<=512: slow\n" in text
    assert "! sm_90 packed_attention bfloat16 H=12 D=64 S<=512: CompilationError: no\n" in text


def test_select_filters_and_defaults_to_everything() -> None:
    variants = {target: all_variants(target) for target in TARGETS}
    assert len(select([], [], [])) == sum(map(len, variants.values()))
    found = [variants[target][i] for target, i in select(["sm_90"], ["bias_gelu"], ["float16"])]
    assert found
    assert {(x.operation, x.dtype) for x in found} == {("bias_gelu", "float16")}


@pytest.mark.all
def test_compile_turns_the_interpreter_off(tmp_path: Path) -> None:
    options = ("--json", "--target", "sm_90", "--operation", "bias_gelu", "--dtype", "bfloat16")
    done = run_command(*options, folder=tmp_path, TRITON_INTERPRET="1")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["kernels"]
    assert [row["label"] for row in rows] == ["F=3072", "F=4096"]
    assert all(row["instructions"] > 100 and row["registers"] > 16 for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--operation", "softmax"), "--operation: expected one of add_layer_norm, add_layer_norm_vjp, bias_gelu, "),
        (("--target", "sm_70"), "argument --target: invalid choice: 'sm_70' (choose from "),
    ],
)
def test_compile_names_invalid_arguments(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run_command(*options, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ernie_m.kernels: error: {message}")
    assert done.stderr.count("\n") == 1


def test_compile_reports_that_triton_is_missing(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise ImportError('not here')\n")
    done = run_command(folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("ernie_m.kernels: error: triton is not installed: there is nothing to compile with")

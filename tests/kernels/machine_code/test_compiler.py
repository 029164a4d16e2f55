"""Compiling one kernel to each depth, in a process without Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_m.kernels.gelu import variants
from ernie_m.kernels.machine_code.compiler import compile_kernel
from ernie_m.kernels.runtime.dispatch import INTERPRETED

CODE = """
import json
from ernie_m.kernels.attention import variants
from ernie_m.kernels.machine_code.compiler import Depth, compile_kernel

rows = []
for target in ("sm_80", "gfx942"):
    kernel = next(x for x in variants(target) if x.dtype == "bfloat16" and x.loop)
    rows.append([compile_kernel(kernel, target, depth) for depth in Depth])
print(json.dumps(rows))
"""


def test_compile_kernel_adds_figures_with_depth(tmp_path: Path) -> None:
    """Figures that two depths have in common are equal, such as the shared memory known long before machine code."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for memory, code, listing in json.loads(done.stdout):
        assert memory.keys() < code.keys() < listing.keys()
        assert memory["shared"] == code["shared"] == listing["shared"] > 0
        assert memory["tf32_dots"] == code["tf32_dots"] == memory["nan_maxima"] == code["nan_maxima"] == 0
        for figure in ("registers", "spills", "occupancy", "tensor_cores", "loads_16"):
            assert code[figure] == listing[figure]
        assert 16 < code["registers"] <= 512
        assert code["loads_16"] > 0
        assert set(code["tensor_cores"]) == ({"mma.sync"} if code["target"] == "sm_80" else {"mfma"})
        assert listing["per"] == "element"
        assert 5 < listing["instructions_per"] < 50


@pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off")
def test_compile_kernel_reports_that_the_interpreter_is_on() -> None:
    with pytest.raises(RuntimeError, match=r"interpreted in this process: TRITON_INTERPRET was set"):
        compile_kernel(next(variants("sm_90")), "sm_90")

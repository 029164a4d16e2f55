"""Exact bfloat16 in Triton's interpreter, against torch; the self-test fails if any part of the patch is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ernie_m.kernels.runtime import interpreter
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.self_test import self_test


def run_python(code: str, interpret: str | None, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new process with TRITON_INTERPRET set to `interpret`, or unset if that is None."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret is not None:
        environment["TRITON_INTERPRET"] = interpret
    names = "from ernie_m.kernels.runtime import interpreter\nfrom ernie_m.kernels.runtime.self_test import self_test"
    code = f"import numpy\n{names}\nnumpy.seterr(all='ignore')\n{code}"
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)


@pytest.mark.skipif(not INTERPRETED, reason="kernels run on a GPU here")
def test_self_test_passes_if_the_patch_is_installed() -> None:
    interpreter.install()
    assert interpreter.upstream._patch_lang_tensor.__name__ == "patch_tensor_and_index"
    patched = interpreter.upstream._patch_lang_tensor
    interpreter.install()
    assert interpreter.upstream._patch_lang_tensor is patched, "a second call patched again"
    self_test()


def test_self_test_fails_without_each_part_of_the_patch(tmp_path: Path) -> None:
    """With nothing installed, and with each method in turn left to upstream."""
    code = """
def outcome():
    try:
        self_test()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "passed"

print("nothing", outcome())
interpreter.install()
print("all", outcome())
for owner in (interpreter.ExactBuilder, interpreter.ExactReduceOps):
    for name in [name for name in vars(owner) if not name.startswith("__")]:
        method = getattr(owner, name)
        delattr(owner, name)
        print(name, outcome())
        setattr(owner, name, method)
print("all", outcome())
"""
    done = run_python(code, "1", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    passed = [name for name, result in lines if result == "passed"]
    own_constants = tuple(map(int, version("triton").split(".")[:2])) >= (3, 9)
    assert [name for name in passed if not (own_constants and name == "get_bf16")] == ["all", "all"]
    expected = {"get_bf16", "cast_impl", "create_fp_to_fp", "binary_op", "create_fma", "create_dot", "sum"}
    expected |= {"create_masked_load"}
    assert {name for name, _ in lines} == {"nothing", "all", *expected}
    assert "254 of 65536 differ from torch" in dict(lines)["nothing"]


@pytest.mark.parametrize("interpret", [None, "0"])
def test_install_says_what_to_set(interpret: str | None, tmp_path: Path) -> None:
    """Also if the variable is set too late."""
    done = run_python("import os; os.environ['TRITON_INTERPRET'] = '1'; interpreter.install()", interpret, tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: Triton's interpreter is not active: set TRITON_INTERPRET=1 before triton" in done.stderr

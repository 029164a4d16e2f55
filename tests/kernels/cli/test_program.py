"""`python -m ernie_m.kernels`: exit codes, one-line errors, imports, and `check` on files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ernie_m.kernels.cli import interpreted
from ernie_m.kernels.cli import program as cli

PROGRAM = [sys.executable, "-m", "ernie_m.kernels"]
# As a user starts it: without TRITON_INTERPRET.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}

KERNELS = """
import torch
import triton
import triton.language as tl


@triton.jit
def gelu_kernel(x, y, n, HALF: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * 64 + tl.arange(0, 64)
    b = tl.load(x + o, mask=o < n, other=0.0).to(tl.float32)
    tl.store(y + o, (HALF * b * (1 + tl.math.erf(b * 0.7071067811865476))).to(y.dtype.element_ty), mask=o < n)


def launch(x, half):
    x = x.contiguous()
    y = torch.empty_like(x)
    gelu_kernel[(triton.cdiv(x.numel(), 64),)](x, y, x.numel(), HALF=half)
    return y


def right(x):
    return launch(x, 0.5)


def wrong(x):
    return launch(x, 0.51)


def raises(x):
    return {}["missing"]


def interrupted(x):
    raise KeyboardInterrupt


number = 3
"""


OPERATION = """
from ernie_m.kernels.checking.letters import drawn
from ernie_m.kernels.checking.operations import Operation

DOUBLING = Operation(name="doubling", call="f(x)", truth=lambda x: 2 * x, draw=drawn(x="N E"))


def doubled(x):
    return 2 * x


def tripled(x):
    return 3 * x
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(KERNELS, encoding="utf-8")
    return str(file)


def test_check_sets_up_the_interpreter_by_itself(mine: str) -> None:
    """End to end: this starts a process, which starts another."""
    command = [*PROGRAM, "check", "--op", "gelu", f"{mine}:right", "--no-tail", "--quick", "--examples", "3"]
    command += ["--dtype", "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("right computes gelu: all errors within bounds\n  bfloat16  3 drawn inputs")


def test_check_takes_an_operation_from_the_same_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "doubling.py"
    file.write_text(OPERATION, encoding="utf-8")
    command = ["check", "--op", f"{file}:DOUBLING", "--quick", "--dtype", "float32"]
    assert cli.main([*command, f"{file}:doubled"]) == 0
    assert capfd.readouterr().out.startswith("doubled computes doubling: all errors within bounds")
    assert cli.main([*command, f"{file}:tripled"]) == 1


def test_check_fails_on_a_wrong_kernel(mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--op", "gelu", f"{mine}:wrong", "--dtype", "float16"]) == 1
    output, errors = capfd.readouterr()
    assert output.startswith("wrong does not compute gelu: got ") and "x = [[" in output
    assert errors == ""


def test_check_shows_where_a_function_raises(mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--op", "gelu", f"{mine}:raises", "--dtype", "float32"]) == 1
    output = capfd.readouterr().out
    assert output.startswith("raises does not compute gelu: it raised KeyError: 'missing'")
    assert 'return {}["missing"]' in output


def test_interrupt_is_exit_code_130_without_a_traceback(mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--op", "gelu", f"{mine}:interrupted"]) == 130
    assert capfd.readouterr() == ("", "ernie_m.kernels: interrupted\n")


class Child:
    """A stand-in for a process: how it was started, and how it ends."""

    ends: Any = 0
    started: ClassVar[list[tuple[list[str], dict[str, str]]]] = []

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.started.append((command, env))
        self.waited = 0

    def wait(self, timeout: float | None = None) -> int:
        self.waited += 1
        if self.ends is KeyboardInterrupt and self.waited == 1:
            raise KeyboardInterrupt
        return 130 if self.ends is KeyboardInterrupt else self.ends


@pytest.mark.parametrize(
    ("ends", "status", "message"),
    [
        (0, 0, ""),
        (7, 7, ""),
        (KeyboardInterrupt, 130, ""),
        (-11, 1, "ernie_m.kernels: SIGSEGV ended the process: did a kernel access memory out of range?\n"),
    ],
)
def test_the_parent_returns_the_exit_code_of_its_child(
    ends: Any,
    status: int,
    message: str,
    mine: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = dict(os.environ)
    monkeypatch.setattr("ernie_m.kernels.runtime.dispatch.INTERPRETED", False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(Child, "ends", ends)
    monkeypatch.setattr(Child, "started", [])
    monkeypatch.setattr(interpreted.subprocess, "Popen", Child)
    arguments = ["check", "--op", "gelu", f"{mine}:right"]
    assert cli.main(arguments) == status
    assert capfd.readouterr() == ("", message)
    [(command, environment)] = Child.started
    assert command[-4:] == arguments and environment["TRITON_INTERPRET"] == "1"
    assert os.environ == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["prove"], "argument COMMAND: invalid choice: 'prove'"),
        (["check", "f.py:f"], "the following arguments are required: --op"),
        (["check", "--op", "relu", "{mine}:right"], "op: expected one of gelu, bias_gelu, "),
        (["check", "--op", "{mine}:number", "{mine}:right"], "mine.py: expected an Operation named number, got 3"),
        (["check", "--op", "gelu", "--quick", "--thorough", "{mine}:right"], "not allowed with argument --quick"),
        (["check", "--op", "gelu", "f.py"], "function: expected FILE.py:NAME, got 'f.py'"),
        (["check", "--op", "gelu", "not_there.py:f"], "not_there.py: no such file"),
        (["check", "--op", "gelu", "{mine}:none"], "mine.py: expected a function named none, got none"),
        (["check", "--op", "gelu", "{mine}:number"], "mine.py: expected a function named number, got 3"),
        (["check", "--op", "gelu", "{mine}:right", "--examples", "0"], "examples: expected at least 1, got 0"),
        (["check", "--op", "gelu", "{bad}:f"], "bad.py, line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    mine: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("x = 0\n1 / x\n", encoding="utf-8")
    assert cli.main([argument.format(mine=mine, bad=bad) for argument in arguments]) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.startswith("ernie_m.kernels: error: ") and errors.count("\n") == 1
    assert message in errors


def test_help_names_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys; from ernie_m.kernels.cli import program; program.main(['--help']);"
        "print(*(m for m in program.COMMANDS if f'ernie_m.kernels.cli.{m}' in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stderr == "\n"
    assert all(f"    {name} " in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m ernie_m.kernels {name}")

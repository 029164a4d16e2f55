"""`python -m ernie_m.kernels`: exit codes, one-line errors, imports, and `check` on files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cli_helpers import interruptible

from ernie_m.kernels.cli import interpreted
from ernie_m.kernels.cli import program as cli
from ernie_m.kernels.cli.interpreted import FINISHED

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


def exits(x):
    raise SystemExit(0)


def forever(x):
    print("started", flush=True)
    while True:
        pass


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
    assert output.count('return {}["missing"]') == output.count("Traceback") == 1 and "hypothesis" not in output


def test_interrupt_is_exit_code_130_without_a_traceback(mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--op", "gelu", f"{mine}:interrupted"]) == 130
    told = "interrupted was running, called as f(x) with x (1, 1)"
    assert capfd.readouterr() == ("", f"ernie_m.kernels: interrupted: {told}\n")


def test_interrupt_ends_a_function_that_does_not_end(mine: str) -> None:
    """Ctrl-C reaches the process and the one that it starts. Seen red: a child that ignores it."""
    command = [*PROGRAM, "check", "--op", "gelu", f"{mine}:forever", "--dtype", "float32"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    alone: Any = {"start_new_session": True, "preexec_fn": interruptible}
    with subprocess.Popen(command, **pipes, env=ENVIRONMENT, **alone) as program:
        assert program.stdout is not None and program.stdout.readline() == "started\n"
        os.killpg(program.pid, signal.SIGINT)
        output, errors = program.communicate()
    assert (program.returncode, output) == (130, "")
    assert errors == "ernie_m.kernels: interrupted: forever was running, called as f(x) with x (1, 1)\n"


ENDINGS = {
    "import sys; sys.exit(0)": "line 1: SystemExit: 0",
    "import sys; sys.exit()": "line 1: SystemExit: ",
    "import sys; sys.exit('done')": "line 1: SystemExit: done",
    "import unittest; unittest.main(argv=['x'])": "line 1: SystemExit: ",
    "raise ImportError('no')": "line 1: ImportError: no",
}
# What the process of the command cannot see, its parent does.
HARD_ENDINGS = {
    "import os; os._exit(0)": "the process ended with code 0 before the command had finished",
    "import os; os.kill(os.getpid(), 9)": "SIGKILL ended the process before the command had finished",
}
COMMANDS = {
    "check": ["check", "--op", "gelu", "{file}:f"],
    "op": ["check", "--op", "{file}:OP", "{mine}:right"],
    "compile": ["compile", "{file}:kernel"],
    "data": ["compile", "{mine}:right", "--op", "{file}:OP"],
    "bench": ["bench", "{file}:f", "--op", "gelu"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_ends_the_program_is_an_error(
    command: str, ending: str, mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Seen red: exit code 0 for sys.exit(0), without a check."""
    file = tmp_path / "ending.py"
    file.write_text(f"{ending}\n", encoding="utf-8")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("ernie_m.kernels.cli.compile.interpreter.is_active", lambda: False)
    monkeypatch.setattr("ernie_m.kernels.cli.bench.require_gpu", lambda: None)
    assert cli.main([part.format(file=file, mine=mine) for part in COMMANDS[command]]) == 2
    assert f"error: {file}, {ENDINGS[ending]}" in capfd.readouterr().err
    assert "ending" not in sys.modules


@pytest.mark.parametrize("ending", HARD_ENDINGS)
def test_a_process_that_a_file_ends_is_an_error(ending: str, tmp_path: Path) -> None:
    file = tmp_path / "ending.py"
    file.write_text(f"{ending}\n", encoding="utf-8")
    command = [*PROGRAM, "check", "--op", "gelu", f"{file}:f"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ernie_m.kernels: error: {HARD_ENDINGS[ending]}\n"


def test_a_command_that_is_ended_has_not_succeeded(mine: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Wherever it comes from. Seen red: exit code 0."""
    monkeypatch.setattr("ernie_m.kernels.cli.check.check", lambda *arguments, **options: sys.exit(0))
    assert cli.main(["check", "--op", "gelu", f"{mine}:right"]) == 2
    assert capfd.readouterr() == ("", "ernie_m.kernels: error: the command was ended by SystemExit: 0\n")


def test_a_function_that_exits_is_wrong(mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--op", "gelu", f"{mine}:exits", "--dtype", "float32"]) == 1
    assert capfd.readouterr().out.startswith("exits does not compute gelu: it raised SystemExit: 0")


class Child:
    """A stand-in for a process: how it was started, and how it ends."""

    ends: Any = 0
    started: ClassVar[list[tuple[list[str], dict[str, str]]]] = []
    killed: ClassVar[list[int]] = []

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.started.append((command, env))
        self.waited = 0

    def wait(self, timeout: float | None = None) -> int:
        self.waited += 1
        if isinstance(self.ends, int):
            return self.ends
        if self.waited == 1:
            raise KeyboardInterrupt
        if self.ends is subprocess.TimeoutExpired:
            raise subprocess.TimeoutExpired("", 5)
        return 130 | FINISHED

    def kill(self) -> None:
        self.killed.append(self.waited)


@pytest.mark.parametrize(
    ("ends", "status", "message"),
    [
        *((code | FINISHED, code, "") for code in (0, 1, 2, 130, 141, 143)),
        (0, 2, "ernie_m.kernels: error: the process ended with code 0 before the command had finished\n"),
        (1, 2, "ernie_m.kernels: error: the process ended with code 1 before the command had finished\n"),
        (KeyboardInterrupt, 130, ""),
        (subprocess.TimeoutExpired, 130, "ernie_m.kernels: interrupted\n"),
        (-9, 2, "ernie_m.kernels: error: SIGKILL ended the process before the command had finished\n"),
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
    monkeypatch.setattr(Child, "killed", [])
    monkeypatch.setattr(interpreted.subprocess, "Popen", Child)
    arguments = ["check", "--op", "gelu", f"{mine}:right"]
    assert cli.main(arguments) == status
    assert capfd.readouterr() == ("", message)
    [(command, environment)] = Child.started
    assert command[-4:] == arguments and environment["TRITON_INTERPRET"] == "1"
    assert os.environ == before
    # Whatever happens, such as SIGTERM: no process is left behind.
    assert len(Child.killed) == 1


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
        (
            ["check", "--op", "gelu", "{mine}:right", "--examples", "0"],
            "--examples: expected a whole number of at least 1",
        ),
        (["check", "--op", "gelu", "{mine}:right", "--seed", "-1"], "--seed: expected a whole number of at least 0"),
        (["check", "--op", "layer_norm", "{mine}:right", "--no-tail"], "--no-tail: expected --op to be one of gelu, "),
        (["bench", "--cpu", "--threads", "0"], "argument --threads: expected a whole number of at least 1, got '0'"),
        (["bench", "--cpu", "--threads", "9" * 30], "--threads: expected a whole number from 1 to 4096, got '99"),
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

"""Kernels of one's own: launches are recorded as Triton specialises them, and descriptions are validated."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import own_kernels
import pytest
import torch
from cli_helpers import interruptible

from ernie_m import kernels
from ernie_m.kernels.machine_code import record, rows_of
from ernie_m.kernels.machine_code.advice import advice, sentences
from ernie_m.kernels.machine_code.children import launches_of
from ernie_m.kernels.machine_code.launches import Launch
from ernie_m.kernels.runtime.dispatch import INTERPRETED

FILE = Path(own_kernels.__file__)
# As a user has it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
interpreted = pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off")

EXPECTED = [
    Launch(
        "own_kernels",
        str(FILE),
        "scaled",
        {"x": "*bf16", "y": "*bf16", "n": "i32", "scale": "fp32"},
        {"mask": None, "BLOCK": 64},
        ("x", "y", "n"),
    ),
    Launch(
        "own_kernels",
        str(FILE),
        "scaled",
        {"x": "*fp16", "y": "*fp16", "scale": "fp32", "mask": "*fp32"},
        {"n": 1, "BLOCK": 64},
        ("y", "mask"),
        num_warps=8,
    ),
]


@interpreted
def test_record_takes_types_divisibility_and_constants_from_a_call() -> None:
    """None and 1 are constants; a view that is offset by one number is not aligned; equal launches are one."""
    assert record(own_kernels.example) == EXPECTED
    assert str(EXPECTED[1]) == "scaled(*fp16, *fp16:16, fp32, *fp32:16, n=1, BLOCK=64), 8 warps, 3 stages"
    assert pickle.loads(pickle.dumps(EXPECTED)) == EXPECTED


def test_launches_are_recorded_in_whatever_process_can() -> None:
    assert [(x.signature, x.constants) for x in launches_of(FILE, "example", None, [])] == [
        (x.signature, x.constants) for x in EXPECTED
    ]
    found = launches_of(FILE, "elementwise", "gelu", ["float32", "bfloat16"])
    assert [x.signature["x"] for x in found] == ["*fp32", "*bf16"]


@interpreted
def test_record_calls_the_function_and_restores_triton() -> None:
    from ernie_m.kernels.runtime.interpreter import upstream

    before = upstream.InterpretedFunction.run
    with pytest.raises(KeyError):
        record(lambda: {}["missing"])
    assert upstream.InterpretedFunction.run is before
    with pytest.raises(ValueError, match="launches_nothing: expected it to launch a Triton kernel, it did not"):
        record(own_kernels.launches_nothing)


@interpreted
@pytest.mark.parametrize(
    ("value", "got"), [(torch.zeros(64, dtype=torch.complex64), "torch.complex64"), (2**70, "int"), ("x", "str")]
)
def test_record_names_an_argument_that_no_kernel_can_have(value: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"n: expected a tensor of numbers, a number or a constant, got {got}"):
        record(own_kernels.launch, torch.zeros(64), value)


@interpreted
def test_record_finds_the_kernels_of_this_package_and_compiles_them_as_shipped() -> None:
    """The recorded launch of a base model's GELU is the variant that the report lists."""
    x, bias = torch.zeros(4, 3072, dtype=torch.bfloat16), torch.zeros(3072, dtype=torch.bfloat16)
    [launch] = record(kernels.bias_gelu, x, bias)
    [shipped] = [v for v in _variants() if (v.dtype, v.label) == ("bfloat16", "F=3072")]
    assert dict(launch.constants) == {**shipped.constants}
    [row] = rows_of([launch], ["sm_90"])
    assert "error" not in row and row["spills"] == 0 and row["loads_16"] > 0


def _variants() -> Any:
    from ernie_m.kernels.gelu import variants

    return variants("sm_90")


def launch_of(kernel: str, pointers: str = "*bf16", aligned: bool = True, warps: int = 4, **constants: Any) -> Launch:
    signature = {"x": pointers, "y": pointers, **({"n": "i32"} if kernel not in ("hoarding", "printing") else {})}
    multiples = tuple(signature) if aligned else ("n",)
    return Launch("own_kernels", str(FILE), kernel, signature, constants, multiples, warps)


# What is said about each kernel on sm_90, by the first words of each sentence.
FAULTS: dict[str, tuple[Launch, list[str]]] = {
    "none": (launch_of("copy", BLOCK=1024, SHIFT=0), []),
    "not aligned": (launch_of("copy", aligned=False, BLOCK=1024, SHIFT=0), ["8 loads of 2 bytes"]),
    "one column further": (launch_of("copy", BLOCK=1024, SHIFT=1), ["8 loads of 2 bytes"]),
    "a size that is any number": (
        replace(launch_of("copy", BLOCK=1024, SHIFT=0), aligned=("x", "y")),
        ["8 loads of 2 bytes"],
    ),
    "float32 not aligned": (launch_of("copy", "*fp32", False, BLOCK=1024, SHIFT=0), []),
    "a row per warp": (launch_of("hoarding", warps=1, N=8192), [" bytes of spills per thread: 255 registers"]),
    "a row per 8 warps": (launch_of("hoarding", warps=8, N=8192), []),
    "a print": (launch_of("printing", N=128), [" bytes of stack per thread", "1 loads of 2 bytes"]),
    "a good product": (launch_of("product", N=64, STAGES=2, PRECISION="tf32"), []),
    "six stages of 256 x 256": (
        launch_of("product", warps=8, N=256, STAGES=6, PRECISION="tf32"),
        [
            "786,432 bytes of shared memory, more than the limit of 232,448",
            " bytes of spills",
            "products of matrices are",
        ],
    ),
    "exact float32": (
        launch_of("product", "*fp32", N=64, STAGES=1, PRECISION="ieee"),
        ["no tensor cores, although it calls tl.dot"],
    ),
    "too few registers for wgmma": (
        launch_of("attention", N=128, D=64),
        ["products of matrices are serialised: each wgmma waits"],
    ),
    "enough of them": (launch_of("attention", warps=8, N=128, D=64), []),
}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """All of them compiled, in one process without the interpreter."""
    return dict(zip(FAULTS, rows_of([launch for launch, _ in FAULTS.values()], ["sm_90"]), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_bad_is_said_in_words(name: str, rows: dict[str, dict[str, Any]]) -> None:
    said, expected = advice(rows[name]), FAULTS[name][1]
    assert len(said) == len(expected), said
    assert all(words in text for words, text in zip(expected, said, strict=True)), said
    assert name not in ("none", "exact float32") or rows[name]["dots"] == (name != "none")


def test_sentences_name_the_row(rows: dict[str, dict[str, Any]]) -> None:
    text = sentences([rows["none"], rows["not aligned"]])
    assert text.startswith(
        "sm_90 copy bfloat16 BLOCK=1024 SHIFT=0 unaligned=x,y, 4 warps: 8 loads of 2 bytes, where 16"
    )
    assert text.count("\n") == 1
    assert sentences([rows["none"]]) == "nothing is bad about the machine code\n"
    assert sentences([{"error": "no"}]) == ""


def compiled(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user calls it."""
    command = [sys.executable, "-m", "ernie_m.kernels", "compile", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, cwd=FILE.parent, capture_output=True, text=True)


def test_the_command_compiles_a_described_launch() -> None:
    options = ("--signature", "*bf16, *bf16:1, i32:16", "--constants", "BLOCK=512", "--num-warps", "2")
    done = compiled("own_kernels.py:copy", *options, "--target", "sm_90")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("copy(*bf16:16, *bf16, i32:16, BLOCK=512, SHIFT=0), 2 warps, 3 stages\n\ntriton ")
    assert "copy bfloat16 BLOCK=512 SHIFT=0 unaligned=y" in done.stdout and " / warp\n" in done.stdout


def test_the_command_compiles_the_launches_of_a_call() -> None:
    done = compiled("own_kernels.py:example", "--target", "sm_90", "--target", "gfx942", "--target", "sm_90", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)["kernels"]
    assert [(row["target"], row["dtype"], row["num_warps"]) for row in found] == [
        (target, *rest) for target in ("sm_90", "gfx942") for rest in (("bfloat16", 4), ("float16", 8))
    ]
    assert all(isinstance(row["advice"], list) for row in found)


def test_the_command_says_that_a_kernel_does_not_compile() -> None:
    done = compiled("own_kernels.py:copy", "--signature=*bf16,*bf16,i32", "--constants=BLOCK=3", "--target=sm_90")
    assert done.returncode == 1 and "range must be a power of 2" in done.stdout and "nothing is bad" not in done.stdout


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
@pytest.mark.parametrize("own", [[], ["own_kernels.py:example"]])
def test_interrupt_while_children_import_is_one_line(own: list[str]) -> None:
    """Ctrl-C reaches them too. Seen red: their tracebacks."""
    options: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "text": True,
        "cwd": FILE.parent,
    }
    options |= {"start_new_session": True, "preexec_fn": interruptible, "env": ENVIRONMENT}
    with subprocess.Popen([sys.executable, "-m", "ernie_m.kernels", "compile", *own], **options) as program:
        while not Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text():
            time.sleep(0.01)
        time.sleep(0.5)
        os.killpg(program.pid, signal.SIGINT)
        assert program.communicate()[1] == "ernie_m.kernels: interrupted\n"
    assert program.returncode == 130


WRONG: list[tuple[list[str], str]] = [
    (["--signature", "i32"], "--signature: expected FILE.py:NAME with it, got no kernel"),
    (["--num-warps", "4"], "--num-warps: expected FILE.py:NAME with it, got no kernel"),
    (["copy", "--gates"], "--gates, --operation: expected no FILE.py:NAME with them"),
    (["copy", "--constants", "BLOCK=1"], "--constants: expected --signature with it"),
    (["copy", "--signature", "i32", "--dtype", "float32"], "--signature: expected neither --op nor --dtype with it"),
    (["example", "--dtype", "float32"], "--dtype: expected --op with it"),
    (
        ["copy", "--signature", "i32", "--num-stages", "0"],
        "--num-stages: expected a whole number of at least 1, got '0'",
    ),
    (["copy"], "copy: expected --signature with a kernel, or a function that launches it"),
    (["number", "--signature", "i32"], "expected a Triton kernel named number, got 3"),
    (["number"], "expected a function named number, got 3"),
    (["none"], "expected a function named none, got none"),
    (["launches_nothing"], "launches_nothing: expected it to launch a Triton kernel, it did not"),
    (["exits"], "SystemExit: 0"),
    (["ends"], "the process that launches were asked of ended with code 0"),
    (
        ["elementwise"],
        "elementwise: expected --op, or a function without arguments that makes a call; got elementwise(x)",
    ),
    (["elementwise", "--op", "relu"], "--op: expected one of gelu, "),
    (["elementwise", "--op", "{file}:number"], "own_kernels.py: expected an Operation named number, got 3"),
    (["copy", "--signature", "*bf16"], "--constants: expected BLOCK=VALUE, got none"),
    (
        ["copy", "--signature", "*bf16", "--constants", "BLOCK=4"],
        "--signature: expected 3 types, for x, y, n; got 1: '*bf16'",
    ),
    (
        ["copy", "--signature", "*bf16,*bf17,i32", "--constants", "BLOCK=4"],
        "--signature: y: expected a type such as *bf16, i32, i32:16 or fp32, got '*bf17'",
    ),
    (
        ["copy", "--signature", "i32", "--constants", "BLOC=4"],
        "--constants: expected any of x, y, n, BLOCK, SHIFT, got",
    ),
    (["copy", "--signature", "i32", "--constants", "4"], "--constants: expected NAME=VALUE, got '4'"),
]
# One process for all: each would take seconds to start.
CALLS = """
import contextlib, io, json, sys
from ernie_m.kernels.cli import program

found = []
for arguments in json.loads(sys.argv[1]):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        found.append([program.main(arguments), errors.getvalue()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refusals() -> list[tuple[int, str]]:
    lines = []
    for arguments, _ in WRONG:
        place = [] if arguments[0].startswith("--") else [f"{FILE}:{arguments[0]}"]
        lines.append(["compile", *place, *(x.format(file=FILE) for x in arguments[len(place) :])])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", CALLS, json.dumps(lines)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [(code, text) for code, text in json.loads(done.stdout)]


@pytest.mark.parametrize("i", range(len(WRONG)), ids=lambda i: " ".join(WRONG[i][0]))
def test_arguments_that_do_not_fit_are_named(i: int, refusals: list[tuple[int, str]]) -> None:
    code, errors = refusals[i]
    assert code == 2 and errors.count("\n") == 1
    assert WRONG[i][1] in errors

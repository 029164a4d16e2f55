"""The gates hold for every kernel variant; one run of `compile`, without Triton's interpreter, serves all tests.

Every gate is seen to fail for a row that violates it alone, and most for a real kernel too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from ernie_m import kernels, reference
from ernie_m.kernels.machine_code.gates import GATES, failures
from ernie_m.kernels.machine_code.report import all_variants
from ernie_m.kernels.runtime.variants import TARGETS

VARIANTS = [(target, x.operation, x.dtype, x.label) for target in TARGETS for x in all_variants(target)]
FORWARD = sorted({name[1] for name in VARIANTS if not name[1].endswith("_vjp")})
GRADIENTS = sorted({name[1] for name in VARIANTS if name[1].endswith("_vjp")})
# What `make test` compiles, in bfloat16: gradients, of which there are many, for the target with most gates; the others
# for every target. One gate is about attention in float32.
FLOAT32 = ("sm_90", "packed_attention", "float32")
QUICK = (
    [*(x for name in FORWARD for x in ("--operation", name)), "--dtype", "bfloat16"],
    [*(x for name in GRADIENTS for x in ("--operation", name)), "--dtype", "bfloat16", "--target", "sm_90"],
    ["--target", FLOAT32[0], "--operation", FLOAT32[1], "--dtype", FLOAT32[2]],
)


def is_quick(name: tuple[str, ...]) -> bool:
    """Whether `make test` compiles a variant."""
    return name[:3] == FLOAT32 or (name[2] == "bfloat16" and (name[1] in FORWARD or name[0] == "sm_90"))


def run_python(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)


def inputs_hash(arguments: list[str]) -> str:
    """A hash of all that the machine code depends on: sources (kernels use constants of the reference), versions, and
    Triton's environment variables."""
    variables = sorted(item for item in os.environ.items() if item[0].startswith("TRITON_"))
    texts = [sys.version, torch.__version__, triton.__version__, repr(variables), *arguments]
    for room in (kernels, reference):
        texts += [path.read_text("utf-8") for path in sorted(Path(room.__file__).parent.rglob("*.py"))]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@pytest.fixture(scope="session")
def report() -> dict[tuple[str, ...], dict[str, Any]]:
    """What `make test` compiles: see QUICK."""
    return {name: row for arguments in QUICK for name, row in compiled(arguments).items()}


@pytest.fixture(scope="session")
def whole_report() -> dict[tuple[str, ...], dict[str, Any]]:
    """Everything."""
    return compiled([])


def compiled(arguments: list[str]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The output of `compile --gates --json`, by target, operation, dtype and label.

    If all gates hold, it is kept in a temporary folder: pytest-xdist's workers compile once between them, and later
    sessions only after a change of `inputs_hash`.
    """
    folder = Path(tempfile.gettempdir()) / f"ernie_m-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"gates-{inputs_hash(arguments)}.json"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            text = path.read_text()
        else:
            done = run_python(["-m", "ernie_m.kernels", "compile", "--gates", "--json", *arguments], folder)
            assert done.returncode in (0, 1), done.stderr
            text = done.stdout
            if done.returncode == 0:
                partial = path.with_suffix(".partial")
                partial.write_text(text)
                partial.replace(path)
    rows = json.loads(text)["kernels"]
    return {(row["target"], row["operation"], row["dtype"], row["label"]): row for row in rows}


@pytest.mark.parametrize("name", list(filter(is_quick, VARIANTS)), ids=" ".join)
def test_gates_hold_for_every_variant(name: tuple[str, ...], report: dict[tuple[str, ...], dict[str, Any]]) -> None:
    assert not failures(report[name]), report[name]


@pytest.mark.all
@pytest.mark.parametrize("name", [name for name in VARIANTS if not is_quick(name)], ids=" ".join)
def test_gates_hold_for_the_others(name: tuple[str, ...], whole_report: dict[tuple[str, ...], dict[str, Any]]) -> None:
    assert not failures(whole_report[name]), whole_report[name]


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.name)
def test_each_gate_applies_to_a_kernel(gate: Any, report: dict[tuple[str, ...], dict[str, Any]]) -> None:
    """Otherwise a renamed kernel would escape its gates."""
    assert any(gate.applies(row) for row in report.values())


GOOD = {
    "operation": "packed_attention",
    "dtype": "bfloat16",
    "label": "H=12 D=64 S<=512",
    "target": "sm_90",
    "loop": True,
    "shared": 49152,
    "shared_limit": 232448,
    "tf32_dots": 0,
    "nan_maxima": 8,
    "nan_minima": 8,
    "spills": 0,
    "stack": 0,
    "loads_2": 0,
    "warnings": [],
    "tensor_cores": {"wgmma": 16},
    "instructions_per": 9.0,
    "per": "element",
}
GELU = {"operation": "bias_gelu", "label": "F=3072", "loop": False, "tensor_cores": {}, "instructions_per": 28.0}
SLOPE = {**GELU, "operation": "bias_gelu_vjp", "loop": True, "instructions_per": 40.0}
ROW = {"operation": "add_layer_norm", "label": "E=768", "loop": False, "instructions_per": 500.0, "per": "row"}
KEYS = {"operation": "packed_attention_vjp", "label": "H=12 D=64 dk dv", "instructions_per": 11.0}
DROPPING = {**KEYS, "label": "H=12 D=64 dk dv with dropout", "instructions_per": 30.0}
QUERIES = {**KEYS, "label": "H=12 D=64 dq", "instructions_per": 8.0}
BACK = {**ROW, "operation": "add_layer_norm_vjp", "loop": True, "instructions_per": 900.0}


SCORES = "at most 11 instructions per score for dk and dv, 8 for dq: 19 together"
DROPPED_SCORES = "with dropout, at most 30 instructions per score for dk and dv, 23 for dq: 53 together"


@pytest.mark.parametrize(
    "good", [{}, {"target": "sm_100", "tensor_cores": {"tcgen05": 8}}, GELU, ROW, SLOPE, BACK, KEYS, QUERIES, DROPPING]
)
def test_failures_of_a_good_row_is_empty(good: dict[str, Any]) -> None:
    assert failures({**GOOD, **good}) == []


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"error": "CompilationError: 1:2"}, "does not compile: CompilationError: 1:2"),
        ({"shared": 232449}, "shared memory within the target's limit"),
        ({"dtype": "float32", "shared": 232449}, "shared memory within the target's limit"),
        ({"dtype": "float32", "tf32_dots": 1}, "no tf32 in float32 attention"),
        ({**GELU, "nan_maxima": 0}, "NaN survives the maximum in GELU"),
        ({**SLOPE, "nan_minima": 0}, "NaN survives the minimum in GELU's gradient"),
        ({"spills": 4}, "no spills"),
        ({"stack": 8}, "no stack"),
        ({"loads_2": 1}, "no 2-byte loads"),
        ({"warnings": ["ptxas warning : x"]}, "no ptxas warnings"),
        ({"tensor_cores": {}}, "wgmma in attention"),
        ({"tensor_cores": {"wgmma": 8, "mma.sync": 8}}, "wgmma in attention"),
        ({"target": "sm_100"}, "tcgen05 in attention"),
        ({"instructions_per": 9.01}, "at most 9.0 instructions per attention score"),
        ({**GELU, "instructions_per": 28.01}, "at most 28 instructions per element of GELU"),
        ({**ROW, "instructions_per": 501.0}, "at most 500 instructions per row of LayerNorm"),
        ({**KEYS, "instructions_per": 11.01}, SCORES),
        ({**KEYS, "operation": "group_attention_vjp", "instructions_per": 11.01}, SCORES),
        ({**QUERIES, "operation": "group_attention_vjp", "instructions_per": 8.01}, SCORES),
        (
            {"operation": "group_attention", "label": "H=12 D=64", "instructions_per": 9.21},
            "at most 9.2 instructions per attention score of groups",
        ),
        ({**QUERIES, "instructions_per": 8.01}, SCORES),
        ({**DROPPING, "instructions_per": 30.01}, DROPPED_SCORES),
        ({**DROPPING, "label": "H=12 D=64 dq with dropout", "instructions_per": 23.01}, DROPPED_SCORES),
        ({**KEYS, "tensor_cores": {}}, "wgmma in attention"),
        ({**SLOPE, "instructions_per": 40.01}, "at most 40 instructions per element of GELU's gradient"),
        ({**BACK, "instructions_per": 901.0}, "at most 900 instructions per row of LayerNorm's gradient"),
    ],
)
def test_failures_names_the_violated_gate(change: dict[str, Any], gate: str) -> None:
    assert failures({**GOOD, **change}) == [gate]


PLANTED = """
import json
import triton
import triton.language as tl
from ernie_m.kernels.machine_code.gates import failures
from ernie_m.kernels.machine_code.compiler import Depth, compile_kernel
from ernie_m.kernels.runtime.variants import TARGETS, Configuration, Variant

@triton.jit
def strided(x, y, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(y + o, tl.load(x + 3 * o))

@triton.jit
def hoarding(x, y, N: tl.constexpr):
    o = tl.arange(0, N)
    v = tl.load(x + o).to(tl.float32)
    total = tl.sum(v, 0)
    tl.store(y + o, (v / total).to(tl.bfloat16))

@triton.jit
def erf_gelu(x, y, N: tl.constexpr):
    o = tl.arange(0, N)
    v = tl.load(x + o).to(tl.float32)
    tl.store(y + o, (0.5 * v * (1 + tl.math.erf(v * 0.7071067811865476))).to(tl.bfloat16))

@triton.jit
def maximum(x, y, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(y + o, tl.maximum(tl.load(x + o), 0.0))

@triton.jit
def product(x, y, N: tl.constexpr, PRECISION: tl.constexpr):
    o = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(y + o, tl.dot(tl.load(x + o), tl.load(x + o), input_precision=PRECISION))

@triton.jit
def greedy(x, y, n, N: tl.constexpr):
    o = tl.arange(0, N)
    acc = tl.zeros((N, N), tl.float32)
    for i in tl.range(0, n, num_stages=6):
        b = tl.load(x + i * N * N + o[:, None] * N + o[None, :])
        acc = tl.dot(b, b, acc)
    tl.store(y + o[:, None] * N + o[None, :], acc.to(tl.bfloat16))

def judge(operation, label, kernel, N, warps, tile, loop=False, target="sm_90", depth=Depth.LISTING):
    signature = {"x": "*bf16", "y": "*bf16", "n": "i32"}
    chosen = Configuration({"N": N}, warps)
    planted = Variant(operation, "bfloat16", label, kernel, signature, {"N": N}, chosen, tile, loop)
    return failures(compile_kernel(planted, target, depth))

def precision(target, chosen):
    signature, constants = {"x": "*fp32", "y": "*fp32"}, {"N": 64, "PRECISION": chosen}
    planted = Variant("packed_attention", "float32", "", product, signature, constants, Configuration({}, 4), 0)
    return failures(compile_kernel(planted, target, Depth.MEMORY))

print(json.dumps({
    "NaN": judge("bias_gelu", "", maximum, 1024, 4, 1024, depth=Depth.CODE),
    "NaN on AMD": judge("bias_gelu", "", maximum, 1024, 4, 1024, target="gfx942", depth=Depth.MEMORY),
    **{f"{chosen} on {target}": precision(target, chosen) for target in TARGETS for chosen in ("ieee", "tf32")},
    "NaN below": judge("bias_gelu_vjp", "", maximum, 1024, 4, 1024, depth=Depth.CODE),
    "strided": judge("planted", "", strided, 1024, 4, 1024, depth=Depth.CODE),
    "hoarding": judge("planted", "", hoarding, 8192, 1, 8192, depth=Depth.CODE),
    "erf": judge("bias_gelu", "F=3072", erf_gelu, 4096, 4, 4096),
    "row": judge("add_layer_norm", "E=768", erf_gelu, 1024, 1, 1),
    "no tensor core": judge("packed_attention", "", erf_gelu, 1024, 4, 1024, depth=Depth.CODE),
    "loop": judge("packed_attention", "H=12 D=64 S<=512", greedy, 64, 4, 64, loop=True),
    "shared": judge("planted", "", greedy, 256, 8, 65536, target="gfx942", depth=Depth.MEMORY),
}))
"""


def test_gates_fail_for_kernels_with_faults(tmp_path: Path) -> None:
    """Faulty kernels, really compiled: strided loads, too many registers, libdevice's erf, too many stages."""
    (tmp_path / "planted.py").write_text(PLANTED)
    done = run_python(["planted.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "strided": ["no 2-byte loads"],
        "hoarding": ["no spills", "no stack"],
        "erf": ["NaN survives the maximum in GELU", "at most 28 instructions per element of GELU"],
        "NaN": ["NaN survives the maximum in GELU"],
        "NaN below": ["NaN survives the minimum in GELU's gradient"],
        "NaN on AMD": ["NaN survives the maximum in GELU"],
        **{f"ieee on {target}": [] for target in TARGETS},
        **{f"tf32 on {target}": ["no tf32 in float32 attention"] for target in TARGETS},
        "row": ["at most 500 instructions per row of LayerNorm"],
        "no tensor core": ["wgmma in attention"],
        "loop": ["at most 9.0 instructions per attention score"],
        "shared": ["shared memory within the target's limit"],
    }

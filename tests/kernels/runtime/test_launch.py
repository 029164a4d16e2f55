"""Launches: on the device of the tensors, and on a grid that CUDA can count, however many sequences there are."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ernie_m import kernels
from ernie_m.kernels import attention, embedding, first_token, gelu, layer_norm
from ernie_m.kernels.runtime import launch as launching
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.dtypes import TRITON_TYPES
from ernie_m.kernels.runtime.launch import check_grid, launch
from ernie_m.kernels.runtime.variants import TARGETS

DEVICE = "cpu" if INTERPRETED else "cuda"
SEQUENCES, HEADS, LONGEST = 70_000, 16, 512
PAGES = (attention, embedding, first_token, gelu, layer_norm)


def grids() -> Iterator[tuple[int, ...]]:
    """Every page's grid for 70,000 sequences of 512 tokens."""
    tokens = SEQUENCES * LONGEST
    yield first_token.grid(SEQUENCES, HEADS)
    yield layer_norm.grid(tokens)
    yield embedding.grid(tokens)
    for target in TARGETS:
        yield gelu.grid(tokens, 4096, gelu.configuration(4096, target))
        for dtype in TRITON_TYPES:
            for D in attention.HEAD_SIZES:
                chosen = attention.configuration(target, dtype, D, LONGEST)
                yield attention.grid(SEQUENCES, HEADS, LONGEST, chosen)


def test_grids_for_70_000_sequences_are_launchable() -> None:
    """Seen red: (blocks, heads, sequences), and (heads, sequences) for first tokens."""
    for grid in grids():
        check_grid(grid)
        assert all(n >= 1 for n in grid)
    with pytest.raises(ValueError, match=r"grid: expected at most \(2147483647, 65535, 65535\) .* got \(16, 70000\)"):
        check_grid((16, 70_000))
    with pytest.raises(ValueError, match="grid: expected"):
        check_grid((2**31,))


def test_grids_cover_every_query() -> None:
    for n in (0, 1, 63, 64, 65, 513):
        chosen = attention.configuration("sm_90", torch.float16, 64, n)
        (programs,) = attention.grid(3, 5, n, chosen)
        assert programs == 15 * attention.blocks_of(n, chosen)
        assert attention.blocks_of(n, chosen) * chosen.blocks["BM"] >= n


def calls() -> list[Any]:
    """One call of every operation, which launches its kernel."""
    q, kv, cu = torch.zeros(1, 2, 16), torch.zeros(3, 2, 2, 16), torch.tensor([0, 3], dtype=torch.int32)
    vector, rows, ids = torch.ones(8), torch.zeros(3, 8), torch.tensor([0, 1, 2])
    arguments = {
        kernels.bias_gelu: (rows, vector),
        kernels.add_layer_norm: (rows, vector, rows, vector, vector, 1e-5),
        kernels.embed: (ids, ids, torch.ones(3, 8), torch.ones(5, 8), vector, vector, 1e-5),
        kernels.packed_attention: (torch.zeros(3, 3, 2, 16), cu),
        kernels.first_token_attention: (q, kv, cu),
    }
    return [(f, [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in given]) for f, given in arguments.items()]


def test_every_kernel_runs_while_its_tensors_device_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red: a page that launches its kernel itself, and `launch` without the guard."""
    entered: list[torch.Tensor] = []
    ran = []

    @contextlib.contextmanager
    def device_of(x: torch.Tensor) -> Iterator[None]:
        entered.append(x)
        yield
        entered.pop()

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **constants: ran.append((entered[-1], arguments))

    monkeypatch.setattr(launching.torch.cuda, "device_of", device_of)
    for page in PAGES:
        for name in [name for name in vars(page) if name.endswith("_kernel")]:
            monkeypatch.setattr(page, name, Recorder())
    for function, arguments in calls():
        function(*arguments)
        guarded, given = ran.pop()
        assert all(x.device == guarded.device for x in given if isinstance(x, torch.Tensor))
    assert not ran and not entered


@pytest.mark.parametrize("strided", [False, True])
def test_everything_that_a_launch_needs_is_on_the_device_of_its_input(
    strided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that is neither the CPU nor the default: results, statistics and copies of strided arguments.

    Seen red: each `device=` of a launcher left out in turn.
    """
    launched = []
    for page in PAGES:
        if hasattr(page, "launch"):
            monkeypatch.setattr(page, "runs_triton", lambda x: True)
            monkeypatch.setattr(page, "launch", lambda kernel, grid, like, *given, **_: launched.append((like, *given)))
    operations = {
        "bias_gelu": gelu._bias_gelu,
        "add_layer_norm": layer_norm._add_layer_norm,
        "embed": embedding._embed,
        "packed_attention": attention._packed_attention,
        "first_token_attention": first_token._first_token_attention,
    }
    for function, given in calls():
        arguments = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in given]
        if strided:
            arguments = [torch.stack([x, x], -1)[..., 0] if isinstance(x, torch.Tensor) else x for x in arguments]
        longest = [3] if function is kernels.packed_attention else []
        # The launcher itself: torch would run the rule for tensors without numbers in its place.
        results = operations[function.__name__]._init_fn(*arguments, *longest)
        everything = [*launched.pop(), *(results if isinstance(results, tuple) else [results])]
        tensors = [x for x in everything if isinstance(x, torch.Tensor)]
        assert len(tensors) >= 4 and {x.device.type for x in tensors} == {"meta"}
        assert all(x.is_contiguous() for x in tensors[1:])
    assert not launched


def test_no_page_launches_a_kernel_itself() -> None:
    """`kernel[grid](...)` stands in runtime/launch.py only (and where the interpreter tests itself, on a CPU)."""
    room = Path(str(kernels.__file__)).parent
    found = [
        path.relative_to(room).as_posix()
        for path in sorted(room.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
        if "kernel" in ast.unparse(node.func.value)
    ]
    assert set(found) == {"runtime/launch.py", "runtime/self_test.py"}


def test_a_launch_that_fails_restores_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    @contextlib.contextmanager
    def device_of(x: Any) -> Iterator[None]:
        before, current[0] = current[0], x.index
        try:
            yield
        finally:
            current[0] = before

    def fail() -> None:
        assert current == [1]
        raise RuntimeError("no")

    monkeypatch.setattr(launching.torch.cuda, "device_of", device_of)
    with pytest.raises(RuntimeError, match="no"):
        launch({(1,): fail}, (1,), SimpleNamespace(index=1))  # type: ignore[arg-type]
    assert current == [0]


def test_a_launch_in_the_interpreter_computes_bfloat16_exactly() -> None:
    """Whoever launches: a fresh process that only calls an operation. Upstream's interpreter gives numbers like 1e9."""
    program = (
        "import torch; from ernie_m.kernels.attention import packed_attention\n"
        "q = torch.randn(9, 3, 3, 16).bfloat16(); cu = torch.tensor([0, 4, 9], dtype=torch.int32)\n"
        "wrong = (packed_attention(q, cu, 9).double() - packed_attention(q.double(), cu, 9)).abs().max()\n"
        "assert wrong <= 2**-5, wrong\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr

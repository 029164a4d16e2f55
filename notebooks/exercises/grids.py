"""Draws which program of a Triton kernel touches which cell: `show_grid("row_sum", row_sum)`.

Nothing here knows the kernels. The function runs in Triton's interpreter, where all loads and stores go through two
methods of its builder; these are replaced during the call, and note the program and the addresses. An address outside
the arrays is neither read nor written (`watching`), and not drawn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ernie_m.kernels.checking.watching import watching
from ernie_m.kernels.runtime import interpreter
from ernie_m.reference.array import Array

SOLUTIONS = Path(__file__).resolve().parents[1] / "solutions" / "warm_up_solutions.py"
DPI = 80
PASTEL, UNTOUCHED = matplotlib.colormaps["Pastel1"], (0.95, 0.95, 0.95, 1.0)
Program = tuple[int, ...]
# Sizes that no block divides. The arguments of each exercise's call, by name.
CALLS: dict[str, dict[str, Any]] = {
    "add_constant": {"x": (20,), "c": 1.0},
    "add_bias": {"x": (6, 19), "bias": (19,)},
    "row_sum": {"x": (4, 11)},
    "masked_max": {"x": (4, 11), "lengths": torch.tensor([11, 3, 7, 1])},
    "matmul": {"a": (20, 40), "b": (40, 24)},
}


def show_grid(exercise: str, function: Callable[..., Any] | None = None) -> None:
    """Draw the programs of `function` on a call of the exercise; without it, those of the solution."""
    arguments = {name: torch.ones(x) if isinstance(x, tuple) else x for name, x in CALLS[exercise].items()}
    interpreter.install()
    with watching():
        programs, touched, lanes = watched(function or solution(exercise), arguments)
    if not any(cells.any() for cells in touched.values()):
        print(f"{exercise}: no program touches any cell yet")
        return
    draw_grid(programs, touched, lanes)
    plt.show()


def solution(exercise: str) -> Callable[..., Any]:
    """The solution, without running the exercise's notebook."""
    spec = importlib.util.spec_from_file_location(SOLUTIONS.stem, SOLUTIONS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, exercise)


def watched(
    function: Callable[..., Any], arguments: dict[str, Any]
) -> tuple[list[Program], dict[str, Array], tuple[int, int]]:
    """The programs that ran; for each array the cells that each touched, (..., programs); the lanes that stored, and
    those that were masked off."""
    builder = type(interpreter.upstream.interpreter_builder)
    programs: list[Program] = []
    accesses: list[tuple[str, Program, Array, int]] = []

    def noted(name: str, verb: str, mask_at: int) -> Callable[..., Any]:
        original = getattr(builder, name)

        def access(self: Any, pointers: Any, *rest: Any) -> Any:
            mask = np.broadcast_to(rest[mask_at].data, pointers.data.shape)
            accesses.append((verb, programs[-1], pointers.data[mask], int(np.count_nonzero(~mask))))
            return original(self, pointers, *rest)

        return access

    def start_program(self: Any, *index: int, original: Any = builder.set_grid_idx) -> Any:
        programs.append(index)
        return original(self, *index)

    methods = {
        "set_grid_idx": start_program,
        "create_masked_load": noted("create_masked_load", "read", 0),
        "create_masked_store": noted("create_masked_store", "written", 1),
    }
    with mock.patch.multiple(builder, **methods):
        result = function(*arguments.values())
    tensors = {name: x for name, x in {**arguments, "result": result}.items() if isinstance(x, torch.Tensor)}
    order = sorted(set(programs))
    cells = {}
    for name, tensor in tensors.items():
        verb = "written" if name == "result" else "read"
        found = np.zeros((tensor.numel(), len(order)), bool)
        for how, program, addresses, _ in accesses:
            places = (addresses.ravel().astype(np.int64) - tensor.data_ptr()) // tensor.element_size()
            own = places[(places >= 0) & (places < tensor.numel())]
            found[own, order.index(program)] |= how == verb
        cells[f"{name}, {verb}"] = found.reshape(*tensor.shape, len(order))
    stored = [(addresses.size, off) for how, _, addresses, off in accesses if how == "written"]
    return order, cells, (sum(n for n, _ in stored), sum(off for _, off in stored))


def label(programs: list[Program], touched: Array) -> str:  # (programs,)
    """The numbers of the programs that touch a region, on as many axes as the grid has."""
    axes = max([1, *(i + 1 for program in programs for i, n in enumerate(program) if n)])
    own = [program[:axes] for program, touches in zip(programs, touched, strict=True) if touches]
    if len(own) == len(programs) > 1:
        return "all"
    return " ".join(str(program[0]) if axes == 1 else f"({', '.join(map(str, program))})" for program in own)


def draw_grid(programs: list[Program], touched: dict[str, Array], lanes: tuple[int, int]) -> Figure:
    """One panel for each array. A region's label names the programs that touch it; they also choose its colour."""
    panels = {name: np.atleast_3d(x) if x.ndim == 3 else x[None] for name, x in touched.items()}
    heights = [0.55 + 0.2 * x.shape[0] * scale(x) for x in panels.values()]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 0.5 + sum(heights)), height_ratios=heights, dpi=DPI, layout="constrained"
    )
    count = "1 program" if len(programs) == 1 else f"{len(programs)} programs"
    off = f"{lanes[1]} of {sum(lanes)} lanes are masked off when they store"
    figure.suptitle(f"{count}; {off}. Each region names the programs that touch it.", fontsize=10)
    for ax, (name, cells) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        panel(ax, f"{name}  ({', '.join(map(str, touched[name].shape[:-1]))})", programs, cells)
    return figure


def scale(cells: Array) -> float:
    """How high to draw a row: large matrices get smaller cells."""
    return 1.0 if cells.shape[0] <= 8 else 0.35


def panel(ax: Axes, title: str, programs: list[Program], cells: Array) -> None:  # cells: (rows, columns, programs)
    rows, columns, _ = cells.shape
    sets, which = np.unique(cells.reshape(rows * columns, -1), axis=0, return_inverse=True)
    which = which.reshape(rows, columns)
    # Regions of one program have its colour; those of several, and untouched cells, have others.
    numbers = [(int(s.argmax()) + 3 * (np.count_nonzero(s) > 1)) % PASTEL.N for s in sets]
    colours = [PASTEL(number) if s.any() else UNTOUCHED for number, s in zip(numbers, sets, strict=True)]
    ax.imshow(np.array(colours)[which], aspect="auto")
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xticks(range(0, columns, max(1, columns // 10)))
    ax.set_yticks(range(0, rows, max(1, rows // 5)))
    ax.tick_params(labelsize=7)
    ax.vlines(np.arange(0.5, columns - 1), -0.5, rows - 0.5, color="white", linewidth=1)
    ax.hlines(np.arange(0.5, rows - 1), -0.5, columns - 0.5, color="white", linewidth=1)
    for i, touching in enumerate(sets):
        y, x = np.argwhere(which == i).mean(axis=0)
        if touching.any():
            ax.text(x, y, label(programs, touching), ha="center", va="center", fontsize=8)

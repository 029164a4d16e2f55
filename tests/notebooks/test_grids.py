"""The drawn grids of the Triton warm-ups: which program touches which cell, recorded from a run.

Seen red: blocks that overlap, a program that is left out, an axis of the grid that is not read.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

plt = pytest.importorskip("matplotlib.pyplot")
torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import wrong_warm_ups as wrong  # noqa: E402 (needs torch)

EXERCISES = Path(__file__).resolve().parents[2] / "notebooks" / "exercises"


@pytest.fixture
def grids(exercises: None) -> ModuleType:
    return importlib.import_module("grids")


def recorded(grids: ModuleType, exercise: str) -> tuple[list, dict[str, np.ndarray], tuple[int, int]]:
    arguments = {n: torch.ones(x) if isinstance(x, tuple) else x for n, x in grids.CALLS[exercise].items()}
    return grids.watched(grids.solution(exercise), arguments)


@pytest.mark.parametrize("exercise", ["add_constant", "add_bias", "row_sum", "masked_max", "matmul"])
def test_each_cell_of_a_result_is_written_by_one_program(grids: ModuleType, exercise: str) -> None:
    programs, cells, _ = recorded(grids, exercise)
    assert len(programs) > 1
    assert (cells["result, written"].sum(axis=-1) == 1).all()


def test_programs_read_the_cells_of_their_block(grids: ModuleType) -> None:
    programs, cells, lanes = recorded(grids, "add_bias")
    at = [programs.index(program) for program in ((0, 2, 0), (1, 2, 0))]
    assert np.flatnonzero(cells["bias, read"][17]).tolist() == at
    assert lanes == (6 * 19, 8 * 24 - 6 * 19)
    programs, cells, _ = recorded(grids, "masked_max")
    assert cells["x, read"].any(axis=-1).sum(axis=1).tolist() == [11, 3, 7, 1]
    programs, cells, _ = recorded(grids, "matmul")
    assert np.flatnonzero(cells["a, read"][19, 39]).tolist() == [programs.index(p) for p in ((1, 0, 0), (1, 1, 0))]


def test_show_grid_draws_what_a_wrong_kernel_does(grids: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """One that leaves its array neither ends the process nor changes the figure's other cells."""
    for function in (wrong.first_block, wrong.add_constant_without_mask):
        grids.show_grid("add_constant", function)
    regions = [[text.get_text() for text in plt.figure(n).axes[1].texts] for n in plt.get_fignums()]
    assert regions == [["all"], ["2", "1", "0"]]
    assert capsys.readouterr().out == ""
    grids.show_grid("row_sum", lambda x: None)
    assert "no program touches any cell yet" in capsys.readouterr().out

"""The copies of the course that `make notebooks` opens: no outputs, and nothing that a reader wrote is lost.

Seen red: outputs copied along; a copy that is written again; a changed notebook that is not reported; modules left out.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `notebooks/copies.py`, which is not part of a package."""
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    return importlib.import_module("copies")


def test_copies_hold_every_notebook_without_outputs_and_what_notebooks_import(copies: Any, tmp_path: Path) -> None:
    assert copies.copy_course(tmp_path / "course") == []
    committed = sorted(path.relative_to(NOTEBOOKS) for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_" not in str(path))
    found = sorted(path.relative_to(tmp_path / "course") for path in tmp_path.rglob("*.ipynb"))
    assert found == committed and len(found) > 10
    for name in found:
        copy, shown = (nbformat.read(folder / name, as_version=4) for folder in (tmp_path / "course", NOTEBOOKS))
        assert [(c.cell_type, c.source) for c in copy.cells] == [(c.cell_type, c.source) for c in shown.cells]
        code = [cell for cell in copy.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code)
        assert any(cell.get("outputs") for cell in shown.cells)
    for module in ("counting.py", "exercises/checking.py", "solutions/numpy_solutions.py", "README.md"):
        assert (tmp_path / "course" / module).read_bytes() == (NOTEBOOKS / module).read_bytes()
    assert not any((tmp_path / "course" / name).exists() for name in ("00_first_sentence.py", "build.py", "copies.py"))


def test_a_copy_that_the_reader_has_changed_is_kept(copies: Any, tmp_path: Path) -> None:
    copies.copy_course(tmp_path)
    mine = tmp_path / "00_first_sentence.ipynb"
    notebook = nbformat.read(mine, as_version=4)
    notebook.cells[1].source += "\nprint('mine')"
    nbformat.write(notebook, mine)
    before = mine.read_bytes()
    assert copies.copy_course(tmp_path) == []
    assert mine.read_bytes() == before


def test_a_notebook_that_has_changed_since_its_copy_is_reported(copies: Any, tmp_path: Path) -> None:
    copies.copy_course(tmp_path)
    old = tmp_path / "02_attention_by_hand.ipynb"
    notebook = nbformat.read(old, as_version=4)
    notebook.metadata[copies.MADE_FROM] = "an earlier one"
    nbformat.write(notebook, old)
    before = old.read_bytes()
    (line,) = copies.copy_course(tmp_path)
    assert line.startswith(f"{old}: kept, but this notebook has changed since")
    assert old.read_bytes() == before

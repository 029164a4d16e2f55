"""Every notebook runs from clean and prints what its committed `.ipynb` shows.

Cells tagged `varies` print what another machine prints differently, and are only run. Figures are compared by their
existence: another version of matplotlib draws other bytes.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
MOST_BYTES = 400_000
MOST_CODE_LINES = 150
LEAST_COMPARED = 0.8
FIGURE = re.compile(r"<Figure size .*>")


def load_build() -> Any:
    """`notebooks/build.py`, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("notebooks_build", NOTEBOOKS / "build.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()
SOURCES = build.sources()


def committed(source: Path) -> Any:
    """The `.ipynb` beside a source."""
    path = source.with_suffix(".ipynb")
    assert path.exists(), f"{path.name} is missing: python notebooks/build.py {source.stem}"
    return nbformat.read(path, as_version=4)


def printed(cell: Any) -> str:
    """What a cell prints: streams, shown values and errors, without the figures' placeholders."""
    if cell.cell_type != "code":
        return ""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts.append(f"{output.ename}: {output.evalue}\n")
        else:
            parts.append(output.data.get("text/plain", "") + "\n")
    return "".join(line + "\n" for line in "".join(parts).splitlines() if not FIGURE.fullmatch(line))


def figures(cell: Any) -> int:
    """How many figures a cell shows."""
    outputs = cell.outputs if cell.cell_type == "code" else []
    return sum("image/png" in output.get("data", {}) for output in outputs)


def varies(cell: Any) -> bool:
    return "varies" in cell.metadata.get("tags", [])


def code_lines(notebook: Any) -> int:
    """Lines of code, without empty ones and comments."""
    lines = [line.strip() for cell in notebook.cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def differences(fresh: Any, shown: Any) -> list[str]:
    """Where a fresh run prints other text than is shown, or another number of figures."""
    found = []
    for new, old in zip(fresh.cells, shown.cells, strict=True):
        if not varies(old) and printed(new) != printed(old):
            found.append(f"{old.id} prints\n{printed(new)}\nthe .ipynb shows\n{printed(old)}")
        if figures(new) != figures(old):
            found.append(f"{old.id} draws {figures(new)} figures, the .ipynb shows {figures(old)}")
    return found


def test_there_are_notebooks() -> None:
    assert any(source.stem == "00_first_sentence" for source in SOURCES)
    shown = {path.with_suffix(".py") for folder in build.FOLDERS for path in folder.glob("*.ipynb")}
    assert shown == set(SOURCES), "each .ipynb has a source, and each source an .ipynb"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs_and_prints_what_is_shown(source: Path) -> None:
    shown = committed(source)
    fresh = build.execute(source)
    errors = [
        f"{cell.id}: {output.text}"
        for cell in fresh.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    ]
    assert not errors, "a notebook warns of nothing:\n" + "\n".join(errors)
    assert not list(build.paths_in(build.written(fresh))), "an output names a folder of this machine"
    found = differences(fresh, shown)
    assert not found, "\n".join([*found, f"if this is right: python notebooks/build.py {source.stem}"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_is_its_source(source: Path) -> None:
    shown, wanted = committed(source), build.read_source(source)
    assert [(c.cell_type, c.id, c.source) for c in shown.cells] == [
        (c.cell_type, c.id, c.source) for c in wanted.cells
    ], f"the source has changed: python notebooks/build.py {source.stem}"
    assert [c.metadata for c in shown.cells] == [c.metadata for c in wanted.cells]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_keeps_to_the_rules(source: Path) -> None:
    shown = committed(source)
    printing = [cell for cell in shown.cells if printed(cell)]
    compared = [cell for cell in printing if not varies(cell)]
    assert printing, "prints nothing"
    assert len(compared) >= LEAST_COMPARED * len(printing), f"{len(compared)} of {len(printing)} cells are compared"
    assert source.with_suffix(".ipynb").stat().st_size <= MOST_BYTES
    assert code_lines(shown) <= MOST_CODE_LINES
    first = shown.cells[0]
    assert first.cell_type == "markdown"
    assert "pip install" in first.source, "the first cell says how to run the notebook elsewhere"


def test_differences_sees_other_text_and_missing_figures() -> None:
    def notebook(text: str, drawn: int, tags: tuple[str, ...] = ()) -> Any:
        cell = nbformat.v4.new_code_cell("f()", id="cell-00", metadata={"tags": list(tags)})
        figure = {"text/plain": "<Figure size 640x480 with 1 Axes>", "image/png": "aGk="}
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        cell.outputs += [nbformat.v4.new_output("display_data", data=figure) for _ in range(drawn)]
        return nbformat.v4.new_notebook(cells=[cell])

    assert not differences(notebook("1.2\n", 1), notebook("1.2\n", 1))
    assert differences(notebook("1.3\n", 1), notebook("1.2\n", 1))
    assert differences(notebook("1.2\n", 0), notebook("1.2\n", 1))
    assert not differences(notebook("1.3\n", 1, ("varies",)), notebook("1.2\n", 1, ("varies",)))
    assert differences(notebook("1.3\n", 0, ("varies",)), notebook("1.2\n", 1, ("varies",)))


def test_execute_uses_this_interpreter_in_the_sources_folder(tmp_path: Path) -> None:
    source = tmp_path / "probe.py"
    source.write_text("# %%\nimport os, sys\n\nprint(sys.executable, os.getcwd(), os.environ['OMP_NUM_THREADS'])\n")
    where = printed(build.execute(source).cells[0])
    assert where.split() == [sys.executable, str(tmp_path.resolve()), "1"]
    assert list(build.paths_in(where))

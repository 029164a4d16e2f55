"""Every notebook runs in a fresh kernel and prints what its committed `.ipynb` shows.

Numbers may differ by one unit in their last place, because rounding differs between processors. Cells tagged `varies`
have outputs that differ further: they are run but not compared. Figures are only counted, because their bytes depend on
the version of matplotlib.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from printed import same_output

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
MOST_BYTES = 400_000
MOST_CODE_LINES = 150
LEAST_COMPARED = 0.8
FIGURE = re.compile(r"<Figure size .*>")
LINK = re.compile(r"\]\(([^)#\s]+)")


def load_build() -> Any:
    """Import `notebooks/build.py`, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("notebooks_build", NOTEBOOKS / "build.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()
SOURCES = build.sources()


def committed(source: Path) -> Any:
    """Read the `.ipynb` beside a source."""
    path = source.with_suffix(".ipynb")
    assert path.exists(), f"{path.name} is missing: python notebooks/build.py {source.stem}"
    return nbformat.read(path, as_version=4)


def printed(cell: Any) -> str:
    """Return a cell's text output: streams, displayed values and errors, without the placeholders of figures."""
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
    """Return the number of figures in a cell's output."""
    outputs = cell.outputs if cell.cell_type == "code" else []
    return sum("image/png" in output.get("data", {}) for output in outputs)


def varies(cell: Any) -> bool:
    return "varies" in cell.metadata.get("tags", [])


def code_lines(notebook: Any) -> int:
    """Count lines of code, without blank lines and comments."""
    lines = [line.strip() for cell in notebook.cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def differences(fresh: Any, shown: Any) -> list[str]:
    """Describe the cells where a fresh run prints different text or draws a different number of figures."""
    found = []
    for new, old in zip(fresh.cells, shown.cells, strict=True):
        if not varies(old) and not same_output(printed(old), printed(new)):
            found.append(f"{old.id} prints\n{printed(new)}\nbut the .ipynb shows\n{printed(old)}")
        if figures(new) != figures(old):
            found.append(f"{old.id} draws {figures(new)} figures, but the .ipynb shows {figures(old)}")
    return found


def test_every_source_has_an_ipynb_and_vice_versa() -> None:
    assert any(source.stem == "00_first_sentence" for source in SOURCES)
    shown = {path.with_suffix(".py") for folder in build.FOLDERS for path in folder.glob("*.ipynb")}
    assert shown == set(SOURCES)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs_and_prints_what_the_ipynb_shows(source: Path) -> None:
    shown = committed(source)
    fresh = build.execute(source)
    errors = [
        f"{cell.id}: {output.text}"
        for cell in fresh.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    ]
    assert not errors, "a notebook must not write to stderr:\n" + "\n".join(errors)
    assert not list(build.paths_in(build.written(fresh))), "the notebook contains a path of this machine"
    found = differences(fresh, shown)
    assert not found, "\n".join([*found, f"if the new output is right: python notebooks/build.py {source.stem}"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(source: Path) -> None:
    """Seen red: an exercise that has another name now."""
    texts = [cell.source for cell in build.read_source(source).cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (source.parent / link).exists()] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_ipynb_has_the_cells_of_its_source(source: Path) -> None:
    shown, wanted = committed(source), build.read_source(source)
    assert [(c.cell_type, c.id, c.source) for c in shown.cells] == [
        (c.cell_type, c.id, c.source) for c in wanted.cells
    ], f"the .ipynb is out of date: python notebooks/build.py {source.stem}"
    assert [c.metadata for c in shown.cells] == [c.metadata for c in wanted.cells]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_ipynb_keeps_the_rules_of_the_readme(source: Path) -> None:
    shown = committed(source)
    printing = [cell for cell in shown.cells if printed(cell)]
    compared = [cell for cell in printing if not varies(cell)]
    assert printing, "no cell prints anything"
    assert len(compared) >= LEAST_COMPARED * len(printing), f"{len(compared)} of {len(printing)} outputs are compared"
    assert source.with_suffix(".ipynb").stat().st_size <= MOST_BYTES
    assert code_lines(shown) <= MOST_CODE_LINES
    first = shown.cells[0]
    assert first.cell_type == "markdown"
    assert "pip install" in first.source, "the first cell must say how to run the notebook"


def test_differences_finds_changed_text_and_missing_figures() -> None:
    def notebook(text: str, drawn: int, tags: tuple[str, ...] = ()) -> Any:
        cell = nbformat.v4.new_code_cell("f()", id="cell-00", metadata={"tags": list(tags)})
        figure = {"text/plain": "<Figure size 640x480 with 1 Axes>", "image/png": "aGk="}
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        cell.outputs += [nbformat.v4.new_output("display_data", data=figure) for _ in range(drawn)]
        return nbformat.v4.new_notebook(cells=[cell])

    assert not differences(notebook("1.2\n", 1), notebook("1.2\n", 1))
    assert not differences(notebook("1.3\n", 1), notebook("1.2\n", 1))
    assert differences(notebook("1.4\n", 1), notebook("1.2\n", 1))
    assert differences(notebook("1.2\n", 0), notebook("1.2\n", 1))
    assert not differences(notebook("1.4\n", 1, ("varies",)), notebook("1.2\n", 1, ("varies",)))
    assert differences(notebook("1.3\n", 0, ("varies",)), notebook("1.2\n", 1, ("varies",)))


def test_execute_uses_this_interpreter_in_the_directory_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "probe.py"
    source.write_text("# %%\nimport os, sys\n\nprint(sys.executable, os.getcwd(), os.environ['OMP_NUM_THREADS'])\n")
    where = printed(build.execute(source).cells[0])
    assert where.split() == [sys.executable, str(tmp_path.resolve()), "1"]
    assert list(build.paths_in(where))

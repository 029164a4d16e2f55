"""Build the `.ipynb` beside each notebook's source: `python notebooks/build.py [name ...]`.

A notebook's source is a Python file in jupytext's percent format, which can be diffed and linted as code. The `.ipynb`
built from it is committed with its outputs, so that it can be read on a code host. Names are file names without suffix,
from this directory, `exercises/` or `solutions/`; without names, all notebooks are built.

The result depends only on the source and the versions of the packages: cell ids are cell numbers, and neither time nor
place of the run is recorded. Cells tagged `varies` have outputs that differ between machines.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from ernie_m.tokenizer.new_files import replacing

FOLDER = Path(__file__).resolve().parent
FOLDERS = (FOLDER, FOLDER / "exercises", FOLDER / "solutions")
TIMEOUT = 300
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT_TYPES = ("text/plain", "text/html", "text/markdown", "image/png", "image/svg+xml")


class OwnInterpreter(KernelSpecManager):
    """Offers one kernel, the running Python, whatever kernels are installed for the user or the machine."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return `python -m ipykernel_launcher` with this interpreter."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def sources() -> list[Path]:
    """Return the sources of all notebooks: the Python files that begin with a cell marker."""
    found = (path for folder in FOLDERS for path in sorted(folder.glob("*.py")))
    return [path for path in found if path.read_text(encoding="utf-8").startswith("# %%")]


def read_source(path: Path) -> NotebookNode:
    """Return the notebook that a source file describes, without outputs."""
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {})
    return notebook


def execute(path: Path) -> NotebookNode:
    """Run a source's cells in a fresh kernel, in the source's directory, and return the notebook with its outputs.

    Raises nbclient's CellExecutionError, with the failing cell and its traceback.
    """
    notebook = read_source(path)
    with tempfile.TemporaryDirectory() as scratch:
        # Sockets in a directory of their own: with TCP, two kernels that start together could pick the same port.
        manager = KernelManager(
            kernel_spec_manager=OwnInterpreter(),
            transport="ipc" if os.name == "posix" else "tcp",
            connection_file=str(Path(scratch) / "kernel.json"),
        )
        client = NotebookClient(notebook, km=manager, timeout=TIMEOUT, resources={"metadata": {"path": path.parent}})
        try:
            client.execute(env=environment(scratch))
        finally:
            manager.shutdown_kernel(now=True)  # the client does not stop a kernel that it was given
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        normalise(cell)
    return notebook


def environment(scratch: str) -> dict[str, str]:
    """Return the kernel's environment: one thread, no user history or settings; a notebook sets TRITON_INTERPRET."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # With another matplotlib backend, figures would not be in the outputs.
    removed = ("TRITON_INTERPRET", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return {**kept, **threads, "IPYTHONDIR": scratch, "HF_HUB_OFFLINE": "1"}


def normalise(cell: NotebookNode) -> None:
    """Make a cell's outputs reproducible: no times, no tracebacks, consecutive texts of a stream merged into one."""
    if cell.cell_type != "code":
        return
    cell.metadata.pop("execution", None)
    merged: list[NotebookNode] = []
    for output in cell.outputs:
        if output.output_type == "error":
            output.traceback = [f"{output.ename}: {output.evalue}"]
        if "data" in output:
            output.data = {kind: output.data[kind] for kind in KEPT_TYPES if kind in output.data}
            output.metadata = {}
        joins = merged and output.output_type == merged[-1].output_type == "stream" and output.name == merged[-1].name
        if joins:
            merged[-1].text += output.text
        else:
            merged.append(output)
    cell.outputs = merged


def written(notebook: NotebookNode) -> str:
    """Return the text of the `.ipynb` file."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def paths_in(text: str) -> Iterator[str]:
    """Yield the directories of this machine that occur in a notebook's text."""
    folders = {str(FOLDER.parent), sys.prefix, str(Path.home()), tempfile.gettempdir()}
    return (folder for folder in sorted(folders) if len(folder) > 1 and folder + os.sep in text)


def main() -> int:
    """Build the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description="Run the sources of notebooks and write the .ipynb files beside them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="for example 00_first_sentence (default: all)")
    names = parser.parse_args().names
    known = {path.stem: path for path in sources()}
    if unknown := [name for name in names if name not in known]:
        parser.error(f"NAME: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    for name in names or known:
        start = time.perf_counter()
        text = written(execute(known[name]))
        if named := list(paths_in(text)):
            print(f"{name}: not written: it contains paths of this machine: {', '.join(named)}", file=sys.stderr)
            return 1
        with replacing(known[name].with_suffix(".ipynb")) as (file,):
            file.write(text.encode("utf-8"))
        print(f"{name}: {time.perf_counter() - start:.1f} s, {len(text.encode()) / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Copy the course without its outputs, to work in: `python notebooks/copies.py course`.

The notebooks here are committed with their outputs, so that they can be read on a code host. To work through them you
want the questions first: in the copies no cell has been run yet. A notebook that is already in the copy is the reader's
and is kept. The files that notebooks import are copied anew each time.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import nbformat
from build import FOLDER, FOLDERS, read_source, sources, written

from ernie_m.tokenizer.new_files import replacing

# A name in the metadata of a copy, which Jupyter keeps: the source that the copy was made from.
MADE_FROM = "ernie_m_source"
# What makes the notebooks; nothing in them imports it.
MAKERS = ("build.py", "copies.py")


def copy_course(to: Path) -> list[str]:
    """Copy what is not there yet, and return a line for every notebook that has changed since its copy was made."""
    changed = []
    notebooks = sources()
    for path in notebooks:
        copy = (to / path.relative_to(FOLDER)).with_suffix(".ipynb")
        made_from = hashlib.sha256(path.read_bytes()).hexdigest()
        if copy.exists():
            if nbformat.read(copy, as_version=4).metadata.get(MADE_FROM) != made_from:
                changed.append(f"{copy}: kept, but this notebook has changed since; delete your copy for the new one")
            continue
        notebook = read_source(path)
        notebook.metadata[MADE_FROM] = made_from
        write(copy, written(notebook).encode("utf-8"))
    for folder in FOLDERS:
        for path in [*folder.glob("*.py"), *folder.glob("*.md")]:
            if path not in notebooks and path.name not in MAKERS:
                write(to / path.relative_to(FOLDER), path.read_bytes())
    return changed


def write(path: Path, content: bytes) -> None:
    """Write a file and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as (file,):
        file.write(content)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python notebooks/copies.py FOLDER")
    for line in copy_course(Path(sys.argv[1])):
        print(line)

"""Output of `ernie-m encode`: a `.npy` or `.npz` file, or JSON lines, written as the vectors arrive.

    .npy    a header of fixed size, then the rows; at the end the number of rows is written into the header
    .npz    such a file, named "vectors", in an uncompressed zip
    -       {"index": 0, "vector": [...]} on standard output, one line per text

Files get their names when they are complete (`new_files.replacing`), so that none is half-written.

Source: numpy's documentation, `numpy.lib.format`, for the header.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ernie_m.tokenizer.new_files import replacing

from ..array import Array
from .output import writable

MEMBER = "vectors"
HEADER_BYTES = 128
SUFFIXES = (".npy", ".npz")

Write = Callable[[Array], None]


def vector_writer(output: str, overwrite: bool, first: int = 0) -> AbstractContextManager[Write]:
    """A context that yields a function to write (n, E) float32 vectors; a file appears only when the context ends.

    first: the index of the first vector in JSON lines.

    Raises ValueError if the name has no known format, OSError if it cannot be written; at the end, FileExistsError if
    another program has written the file, unless `overwrite`.
    """
    if output == "-":
        return _json_lines(first)
    # Not the suffix of the target: the name given may be a link.
    suffix = Path(output).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"--output: expected a name that ends in .npy or .npz, or -, got {output!r}")
    target = writable(output, overwrite)
    return _npy_file(target, overwrite) if suffix == ".npy" else _npz_file(target, overwrite)


@contextmanager
def _json_lines(first: int) -> Iterator[Write]:
    count = first

    def write(vectors: Array) -> None:
        nonlocal count
        for vector in vectors:
            # 9 significant digits round-trip every float32.
            values = [float(f"{value:.9g}") for value in vector]
            sys.stdout.write(json.dumps({"index": count, "vector": values}, allow_nan=False) + "\n")
            count += 1
        sys.stdout.flush()

    yield write


@contextmanager
def _npy_file(path: Path, overwrite: bool) -> Iterator[Write]:
    with replacing(path, overwrite=overwrite) as (file,), _npy_rows(file) as write:
        yield write


@contextmanager
def _npz_file(path: Path, overwrite: bool) -> Iterator[Write]:
    # A zip records each member's checksum, which rewriting the .npy header would change. So the member is completed
    # first, in an unnamed temporary file.
    with replacing(path, overwrite=overwrite) as (file,), tempfile.TemporaryFile(dir=path.parent) as rows:
        with _npy_rows(rows) as write:
            yield write
        rows.seek(0)
        with (
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
            archive.open(f"{MEMBER}.npy", "w", force_zip64=True) as member,
        ):
            shutil.copyfileobj(rows, member, 2**20)


@contextmanager
def _npy_rows(file: BinaryIO) -> Iterator[Write]:
    shape = (0, 0)

    def write(vectors: Array) -> None:
        nonlocal shape
        shape = (shape[0] + vectors.shape[0], vectors.shape[1])
        file.write(np.ascontiguousarray(vectors, "<f4").data)

    file.write(npy_header(shape))
    yield write
    file.seek(0)
    file.write(npy_header(shape))


def npy_header(shape: tuple[int, int]) -> bytes:
    """The header of a float32 `.npy` file, of the same size for every shape."""
    text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode("ascii")
    start = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return start + text.ljust(HEADER_BYTES - 11) + b"\n"

"""Vectors written as a stream: numpy reads any number of them; an incomplete file leaves nothing."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ernie_m.reference.cli.output import writable
from ernie_m.reference.cli.vectors import HEADER_BYTES, npy_header, vector_writer

blocks = st.lists(st.integers(0, 5), max_size=5).flatmap(
    lambda sizes: st.tuples(
        *(hnp.arrays(np.float32, (n, 3), elements=st.floats(width=32, allow_nan=False)) for n in sizes)
    )
)


@given(st.integers(0, 10**18), st.integers(0, 10**9))
def test_npy_header_has_a_fixed_size_and_numpy_reads_it(rows: int, columns: int) -> None:
    header = npy_header((rows, columns))
    assert len(header) == HEADER_BYTES
    stream = io.BytesIO(header)
    assert np.lib.format.read_magic(stream) == (1, 0)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    assert (shape, fortran, dtype) == ((rows, columns), False, np.dtype("<f4"))
    assert stream.tell() == HEADER_BYTES


@given(blocks)
def test_vector_writer_writes_what_numpy_reads(
    tmp_path_factory: pytest.TempPathFactory, blocks: tuple[np.ndarray, ...]
) -> None:
    folder = tmp_path_factory.mktemp("vectors")
    for name in ("x.npy", "x.npz"):
        with vector_writer(str(folder / name), overwrite=False) as write:
            for block in (np.empty((0, 3), np.float32), *blocks):
                write(block)
    expected = np.concatenate([np.empty((0, 3), np.float32), *blocks])
    with np.load(folder / "x.npz") as archive:
        assert archive.files == ["vectors"]
        np.testing.assert_array_equal(archive["vectors"], expected)
    np.testing.assert_array_equal(np.load(folder / "x.npy"), expected)
    np.testing.assert_array_equal(np.load(folder / "x.npy", mmap_mode="r"), expected)
    assert sorted(path.name for path in folder.iterdir()) == ["x.npy", "x.npz"]


def test_json_lines_round_trip_every_float32(capsys: pytest.CaptureFixture[str]) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32).view(np.float32)
    values = bits[np.isfinite(bits)][:3000].reshape(-1, 3)
    with vector_writer("-", overwrite=False) as write:
        write(values[:10])
        first = capsys.readouterr().out  # written at once, not at the end
        write(values[10:])
    lines = [json.loads(line) for line in (first + capsys.readouterr().out).splitlines()]
    assert first.count("\n") == 10
    assert [line["index"] for line in lines] == list(range(len(values)))
    np.testing.assert_array_equal(np.array([line["vector"] for line in lines], np.float32), values)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_vector_writer_leaves_nothing_behind_when_stopped(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    with pytest.raises(error), vector_writer(str(tmp_path / name), overwrite=False) as write:
        write(np.ones((2, 3), np.float32))
        raise error
    assert not list(tmp_path.iterdir())


def test_vector_writer_keeps_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"x\.npy: already exists; pass --overwrite"):
        vector_writer(str(path), overwrite=False)
    with pytest.raises(KeyboardInterrupt), vector_writer(str(path), overwrite=True) as write:
        write(np.ones((2, 3), np.float32))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    with vector_writer(str(path), overwrite=True) as write:
        write(np.ones((2, 3), np.float32))
        assert path.read_bytes() == b"old"
    assert np.load(path).shape == (2, 3)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_the_name_given_decides_what_is_written(name: str, tmp_path: Path) -> None:
    """Not the name that a link leads to. Seen red with `target.suffix`."""
    for other in ("real.txt", "real.npy", "real.npz"):
        (tmp_path / name).symlink_to(tmp_path / other)
        with vector_writer(str(tmp_path / name), overwrite=False) as write:
            write(np.ones((2, 3), np.float32))
        magic = (tmp_path / other).read_bytes()[:6]
        assert magic.startswith(b"\x93NUMPY" if name == "x.npy" else b"PK\x03\x04")
        assert (tmp_path / name).is_symlink()
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_of_two_writers_that_may_not_overwrite_one_fails(name: str, tmp_path: Path) -> None:
    """Both begin before the file exists. Seen red: the second replaced the first's."""
    path = str(tmp_path / name)
    with pytest.raises(FileExistsError, match=f"{name}: the file already exists"), vector_writer(path, False) as write:
        write(np.zeros((2, 3), np.float32))
        with vector_writer(path, overwrite=False) as first:
            first(np.ones((2, 3), np.float32))
    found = np.load(path)
    assert ((found if name == "x.npy" else found["vectors"]) == 1).all()
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_writable_follows_a_link_and_rejects_what_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link.npy").symlink_to(tmp_path / "real.npy")
    assert writable(str(tmp_path / "link.npy"), overwrite=False) == (tmp_path / "real.npy").resolve()
    (tmp_path / "folder.npy").mkdir()
    for path, message in {
        tmp_path / "folder.npy": "exists and is not a regular file",
        tmp_path / "none" / "x.npy": "none is not a directory",
    }.items():
        with pytest.raises(OSError, match=message):
            writable(str(path), overwrite=True)
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    for overwrite in (False, True):  # seen red: "the file already exists", and the link was replaced
        with pytest.raises(OSError, match=r"loop\.npy: expected .*, got a link that leads back to itself"):
            writable(str(tmp_path / "loop.npy"), overwrite)
    # Not by permissions, because the tests may run as root, who ignores them.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="no permission to write to"):
        writable(str(tmp_path / "x.npy"), overwrite=False)


@pytest.mark.parametrize("name", ["x", "x.txt", "npy", ""])
def test_vector_writer_rejects_a_name_without_a_known_format(name: str) -> None:
    with pytest.raises(ValueError, match=r"--output: expected a name that ends in \.npy or \.npz, or -"):
        vector_writer(name, overwrite=False)

"""Files written for the safetensors library, files written by it, and damaged files."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import load, save

from ernie_m.reference.array import round_to_bfloat16
from ernie_m.reference.checkpoint.safetensors_file import CODES, read_safetensors, write_safetensors

DTYPES = [name for name in CODES.values() if name != "bfloat16"]


def written(tensors: list[tuple[str, str, np.ndarray]]) -> bytes:
    file = io.BytesIO()
    write_safetensors(file, tensors)
    return file.getvalue()


def file_of(header: Any, data: bytes = bytes(16)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(start: int, end: int, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Arrays in various layouts and byte orders, some of them empty."""
    # At least one: version 0.4 of the library cannot read a file without tensors, not even its own.
    text = st.text(st.characters(codec="utf-8")).filter(lambda name: name != "__metadata__")
    names = draw(st.lists(text, min_size=1, max_size=4, unique=True))
    found = {}
    for name in names:
        dtype = np.dtype(draw(st.sampled_from(DTYPES))).newbyteorder(draw(st.sampled_from("<>")))
        shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        array = rng.integers(0, 2 if dtype.kind == "b" else 99, shape).astype(dtype)
        found[name] = draw(st.sampled_from([array, array.T, array[::2]]))
    return found


@given(given_tensors=tensors())
def test_write_safetensors_is_read_by_the_library(given_tensors: dict[str, np.ndarray]) -> None:
    data = written([(name, array.dtype.name, array) for name, array in given_tensors.items()])
    assert (8 + struct.unpack("<Q", data[:8])[0]) % 8 == 0
    found = load(data)
    assert found.keys() == given_tensors.keys()
    for name, array in given_tensors.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)


@given(given_tensors=tensors())
def test_read_safetensors_of_what_the_library_wrote(
    given_tensors: dict[str, np.ndarray], tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("library") / "x.safetensors"
    # The library's writer assumes C order.
    native = {name: np.array(array, array.dtype.newbyteorder("="), order="C") for name, array in given_tensors.items()}
    path.write_bytes(save(native, metadata={"format": "np"}))
    found = read_safetensors(path)
    assert found.keys() == native.keys()
    for name, array in native.items():
        assert found[name].dtype == array.dtype.name and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].bits, array)
        assert array.size == 0 or not found[name].bits.flags.writeable


def test_write_safetensors_bfloat16_is_read_back(tmp_path: Path) -> None:
    bits = round_to_bfloat16(np.random.default_rng(0).standard_normal((5, 3), np.float32))
    path = tmp_path / "x.safetensors"
    path.write_bytes(written([("w", "bfloat16", bits)]))
    found = read_safetensors(path)["w"]
    assert found.dtype == "bfloat16" and found.shape == (5, 3)
    np.testing.assert_array_equal(found.bits, bits)


GOOD = {"a": entry(0, 8), "b": entry(8, 16)}
BAD = {
    "overlap": file_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "the same bytes twice": file_of({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
    "out of range": file_of({"a": entry(0, 8), "b": entry(8, 24, (4,))}),
    "far out of range": file_of({"a": entry(2**62, 2**62 + 8)}),
    "wrapped": file_of({"a": entry(2**64 - 8, 2**64, (2,))}),
    "wrapped size": file_of({"a": entry(0, 16, (2**62, 2**4))}),
    "too large for 64 bits": file_of({"a": entry(2**64, 2**64 + 8)}),
    "negative": file_of({"a": entry(-8, 8, (4,))}),
    "backwards": file_of({"a": entry(8, 0)}),
    "a hole": file_of({"a": entry(0, 4, (1,)), "b": entry(8, 16)}),
    "trailing bytes": file_of(GOOD, bytes(17)),
    "too few bytes": file_of(GOOD, bytes(15)),
    "shape too small": file_of({"a": entry(0, 16, (3,))}),
    "negative shape": file_of({"a": entry(0, 16, (-4,))}),
    "fractional shape": file_of({"a": entry(0, 16, (4.0,))}),
    "unknown dtype": file_of({"a": entry(0, 16, (4,), "F33")}),
    "dtype is not a string": file_of({"a": entry(0, 16, (4,), 32)}),
    "no offsets": file_of({"a": {"dtype": "F32", "shape": [4]}}),
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "header longer than any file": struct.pack("<Q", 2**64 - 1) + b"{}" + bytes(100),
    "header of 2 GB": struct.pack("<Q", 2**31) + b"{}" + bytes(100),
    "not JSON": file_of(b"not JSON"),
    "not UTF-8": file_of(b'{"\xff": {}}'),
    "a list": file_of([]),
    "a number": file_of(3),
    "metadata is not a string": file_of({"__metadata__": {"format": 3}, **GOOD}),
    "nested": file_of(b"[" * 100_000),
    "empty header": file_of(b""),
    "seven bytes": bytes(7),
    "empty": b"",
    "8-bit floats": file_of({"a": entry(0, 16, (16,), "F8_E4M3")}),
}


@pytest.mark.parametrize("name", BAD)
def test_read_safetensors_refuses(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(GOOD))
    assert read_safetensors(path).keys() == GOOD.keys()
    path.write_bytes(BAD[name])
    with pytest.raises(ValueError, match=r"x\.safetensors: "):
        read_safetensors(path)


def test_read_safetensors_truncated_anywhere(tmp_path: Path) -> None:
    data, path = file_of(GOOD), tmp_path / "x.safetensors"
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(ValueError, match=r"x\.safetensors: "):
            read_safetensors(path)


@given(st.data())
def test_read_safetensors_of_damaged_bytes(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Returns tensors inside the file, or raises a ValueError that names it."""
    raw = bytearray(file_of({"__metadata__": {"format": "pt"}, **GOOD}))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    path.write_bytes(raw)
    try:
        found = read_safetensors(path)
    except ValueError as error:
        assert "x.safetensors: " in str(error)
    else:
        assert sum(tensor.bits.nbytes for tensor in found.values()) == 16

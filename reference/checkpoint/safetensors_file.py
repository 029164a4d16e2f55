"""Reading and writing safetensors files.

    8 bytes         length of the header, N, little endian
    N bytes         JSON: name -> dtype, shape, start and end offsets; padded with spaces to align the data
    the rest        the tensors' bytes, one after the other

The safetensors library validates a file (offsets that overlap or lie outside, holes, wrong sizes); its bytes are then
mapped, not read. Files are written without the library: its NumPy interfaces do not support bfloat16, and its
lower-level interface has changed between versions.

Source: the safetensors format, README of huggingface/safetensors.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..array import Array
from .stored_tensor import StoredTensor

CODES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}
ALIGNMENT = 8


def map_file(path: Path) -> memoryview:
    """A file's bytes, mapped into memory, read-only. Raises ValueError if the file is empty."""
    with open(path, "rb") as file:
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def check_file(path: Path) -> None:
    """Validate the file with the library. Raises ValueError with the path and the library's message."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged: {error}") from None


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a file, mapped into memory, not loaded. Raises ValueError if the file is damaged."""
    data = map_file(path)
    check_file(path)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + size]))
    found: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        code, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if code not in CODES:
            raise ValueError(f"{path}: {name}: expected one of {', '.join(CODES)}, got {code}")
        dtype = "uint16" if code == "BF16" else CODES[code]
        raw = data[8 + size + start : 8 + size + end]
        bits = np.frombuffer(raw, dtype).reshape(shape) if end > start else np.empty(shape, dtype)
        found[name] = StoredTensor(name, CODES[code], shape, bits)
    return found


def write_safetensors(file: BinaryIO, tensors: Iterable[tuple[str, str, Array]]) -> None:
    """Write tensors, given as name, dtype ("float32", or "bfloat16" with uint16 bits) and array, to an open file.

    At most one tensor is copied at a time. The metadata is `{"format": "pt"}`, which transformers requires.
    """
    items = list(tensors)
    codes = {name: code for code, name in CODES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, array in items:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": codes[dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, _, array in items:
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)

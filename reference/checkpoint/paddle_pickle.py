"""Reading Paddle's weights: a pickle, without running it.

A pickle is a program, and may call any function of any module. This one is read by a machine of our own
(`pickle_machine`); the names it may mention are those with which NumPy puts arrays together, and `_codecs.encode`, with
which protocol 2 spells bytes. They are marks here, never looked up, let alone called. Arrays come out as read-only
views of the file's own bytes.

Leaves out: object and structured dtypes, and whatever else holds no weights.

Source: NumPy's `ndarray.__reduce_ex__`, `dtype.__reduce__`; paddle 2.6.2, `framework/io.py`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Array
from ..config.checks import short_repr
from .pickle_machine import Machine

# Under this key Paddle stores its own names of the weights.
SKIPPED = "StructuredToParameterName@@"
SCALARS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

# NumPy 2 renamed `numpy.core`; protocol 5 has its own function.
NAMES = {
    "numpy.core.multiarray._reconstruct": "_reconstruct",
    "numpy._core.multiarray._reconstruct": "_reconstruct",
    "numpy.core.numeric._frombuffer": "_frombuffer",
    "numpy._core.numeric._frombuffer": "_frombuffer",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",
    # Protocol 2 has no other word for no bytes at all.
    "__builtin__.bytes": "bytes",
}


@dataclass(frozen=True)
class Mark:
    """A function or class that the file mentions."""

    name: str


@dataclass
class DType:
    """A dtype under construction: `code` such as "f4", and the byte order that comes after it."""

    code: str
    order: str = "<"


@dataclass
class Slot:
    """An array under construction."""

    array: Array | None = None


class Arrays:
    """Puts arrays together out of what the file says; see `pickle_machine.Builder`."""

    def __init__(self, most_encoded: int) -> None:
        # Text may be named again and again at no cost to the file, so the bytes made of it are counted.
        self.may_encode = most_encoded

    def mention(self, module: object, name: object) -> Mark:
        """A mark for one of `NAMES`. Raises ValueError that names anything else."""
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "something without a name"
        if full not in NAMES:
            raise ValueError(
                f"refused: it asks for {short_repr(full)[1:-1]}, which no weights need; nothing of it was run"
            )
        return Mark(NAMES[full])

    def call(self, function: object, arguments: Any) -> object:
        """What NumPy's function of that name would begin, or the bytes that `_codecs.encode` would give."""
        name = function.name if isinstance(function, Mark) and isinstance(arguments, tuple) else None
        if name == "encode":
            return self.encode(*arguments)
        if name == "bytes" and not arguments:
            return memoryview(b"")
        if name == "dtype":
            if not isinstance(arguments[0], str) or arguments[0] not in SCALARS:
                raise ValueError(f"refused: a dtype of {brief(arguments[0])}; expected one of {', '.join(SCALARS)}")
            return DType(arguments[0])
        if name == "_reconstruct" and arguments[0] == Mark("ndarray"):
            return Slot()
        if name == "_frombuffer":
            raw, dtype, shape, order, *axes = arguments
            return Slot(view(raw, dtype, shape, order == "F", axes[0] if axes else None))
        raise ValueError(f"refused: a call of {brief(function)}, which builds no array")

    def encode(self, text: object, coding: object) -> memoryview:
        """Text of characters below 256 as bytes."""
        if not isinstance(text, str) or coding != "latin1":
            raise ValueError(f"refused: {brief(text)} encoded as {brief(coding)}; expected text as 'latin1'")
        self.may_encode -= len(text)
        if self.may_encode < 0:
            raise ValueError("refused: it encodes the same text over and over")
        return memoryview(text.encode("latin1"))

    def build(self, target: object, state: Any) -> None:
        """Give a dtype its byte order, or an array its shape, dtype and bytes."""
        if isinstance(target, DType):
            # (version, byte order, sub-array, field names, fields, size, alignment, flags)
            if state[1] not in ("<", ">", "|", "=") or any(item is not None for item in state[2:5]):
                raise ValueError("refused: a dtype with fields; expected plain numbers")
            target.order = state[1]
        elif isinstance(target, Slot):
            _, shape, dtype, fortran, raw = state
            target.array = view(raw, dtype, shape, bool(fortran), None)
        else:
            raise ValueError(f"refused: a state for {brief(target)}")


def brief(value: object) -> str:
    """`value` for a message. Only a string is shown: tuples inside tuples can be far longer than the file."""
    return (
        short_repr(value.name if isinstance(value, Mark) else value)
        if isinstance(value, (Mark, str))
        else type(value).__name__
    )


def view(raw: Any, dtype: Any, shape: Any, fortran: bool, axes: Any) -> Array:
    """The array in `raw` bytes, not copied."""
    if not (isinstance(raw, memoryview) and isinstance(dtype, DType) and isinstance(shape, tuple)):
        raise ValueError("expected an array of numbers: bytes, a dtype, a shape")
    found = np.frombuffer(raw, dtype.order + dtype.code) if len(raw) else np.empty(0, dtype.order + dtype.code)
    found = found.reshape(shape, order="F" if fortran else "C")
    if found.shape != shape:
        raise ValueError(f"expected a full shape, got {short_repr(shape)}")
    found.flags.writeable = False
    return found if axes is None else found.transpose(axes)


def read_pickle(path: str, data: memoryview) -> dict[str, Array]:
    """The arrays in the bytes of a `.pdparams` file, by name, as read-only views; `path` is for messages.

    Runs nothing. Raises ValueError that names the file, and what it asks for if that is more than arrays.
    """
    try:
        found = Machine(data, Arrays(len(data))).run()
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        reason = str(error) if isinstance(error, ValueError) else f"damaged, {type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a file of Paddle weights: {reason}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a dictionary of arrays, got {type(found).__name__}")
    arrays: dict[str, Array] = {}
    for name, slot in found.items():
        if name == SKIPPED:
            continue
        if not isinstance(slot, Slot) or slot.array is None:
            kind = "half an array" if isinstance(slot, Slot) else type(slot).__name__
            raise ValueError(f"{path}: {short_repr(name)}: expected an array, got {kind}")
        arrays[name] = slot.array
    return arrays

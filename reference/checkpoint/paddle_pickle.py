"""Reading Paddle's weights from a pickle, without executing it.

A pickle is a program, and may call any function of any module. Here `pickle_machine` interprets it. It may reference
only the names that NumPy uses to rebuild arrays, and those that protocol 2 uses to write bytes. They become marks,
which are never looked up or called. Arrays are read-only; from protocol 3 on, they are views of the file's bytes.

Leaves out: object and structured dtypes, and anything else that is not a weight.

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
from .wrappers import weights_in

# Under this key, Paddle stores its internal names of the weights.
SKIPPED = "StructuredToParameterName@@"
SCALARS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

# NumPy 2 renamed `numpy.core` to `numpy._core`; protocol 5 uses `_frombuffer`.
NAMES = {
    "numpy.core.multiarray._reconstruct": "_reconstruct",
    "numpy._core.multiarray._reconstruct": "_reconstruct",
    "numpy.core.numeric._frombuffer": "_frombuffer",
    "numpy._core.numeric._frombuffer": "_frombuffer",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",
    # Protocol 2 writes empty bytes as `bytes()`.
    "__builtin__.bytes": "bytes",
}


@dataclass(frozen=True)
class Mark:
    """A function or class that the file references."""

    name: str


@dataclass
class DType:
    """A dtype under construction: `code`, such as "f4", and the byte order, which the file sets later."""

    code: str
    order: str = "<"


@dataclass
class Slot:
    """An array under construction."""

    array: Array | None = None


class Arrays:
    """Builds arrays as the file describes them; implements `pickle_machine.Builder`."""

    def __init__(self, encode_limit: int) -> None:
        # A few bytes of the file can encode the same text again and again, so the encoded bytes are counted.
        self.left_to_encode = encode_limit

    def mention(self, module: object, name: object) -> Mark:
        """A mark for one of `NAMES`. Raises ValueError for any other name."""
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "an object without a name"
        if full not in NAMES:
            raise ValueError(
                f"refused: it references {short_repr(full)[1:-1]}, which weight files never need; nothing was executed"
            )
        return Mark(NAMES[full])

    def call(self, function: object, arguments: Any) -> object:
        """The dtype or array that NumPy's function would begin, or the bytes that `_codecs.encode` would return."""
        name = function.name if isinstance(function, Mark) and isinstance(arguments, tuple) else None
        if name == "encode":
            return self.encode(*arguments)
        if name == "bytes" and not arguments:
            return memoryview(b"")
        if name == "dtype":
            if not isinstance(arguments[0], str) or arguments[0] not in SCALARS:
                raise ValueError(f"refused: dtype {brief(arguments[0])}; expected one of {', '.join(SCALARS)}")
            return DType(arguments[0])
        if name == "_reconstruct" and arguments[0] == Mark("ndarray"):
            return Slot()
        if name == "_frombuffer":
            raw, dtype, shape, order, *axes = arguments
            return Slot(view(raw, dtype, shape, order == "F", axes[0] if axes else None))
        raise ValueError(f"refused: a call to {brief(function)}, which does not build an array")

    def encode(self, text: object, coding: object) -> memoryview:
        """`text`, with all code points below 256, as bytes."""
        if not isinstance(text, str) or coding != "latin1":
            raise ValueError(f"refused: {brief(text)} encoded as {brief(coding)}; expected text as 'latin1'")
        self.left_to_encode -= len(text)
        if self.left_to_encode < 0:
            raise ValueError("refused: it encodes more text than the file contains")
        return memoryview(text.encode("latin1"))

    def build(self, target: object, state: Any) -> None:
        """Set the byte order of a dtype, or the shape, dtype and bytes of an array."""
        if isinstance(target, DType):
            # (version, byte order, sub-array, field names, fields, size, alignment, flags)
            if state[1] not in ("<", ">", "|", "=") or any(item is not None for item in state[2:5]):
                raise ValueError("refused: a dtype with fields; expected a plain number type")
            target.order = state[1]
        elif isinstance(target, Slot):
            _, shape, dtype, fortran, raw = state
            target.array = view(raw, dtype, shape, bool(fortran), None)
        else:
            raise ValueError(f"refused: a state for {brief(target)}; expected one for a dtype or an array")


def brief(value: object) -> str:
    """`value` for a message. Only text is shown: nested tuples can print far longer than the file."""
    return (
        short_repr(value.name if isinstance(value, Mark) else value)
        if isinstance(value, (Mark, str))
        else type(value).__name__
    )


def view(raw: Any, dtype: Any, shape: Any, fortran: bool, axes: Any) -> Array:
    """The array in the bytes `raw`, not copied."""
    if not (isinstance(raw, memoryview) and isinstance(dtype, DType) and isinstance(shape, tuple)):
        raise ValueError("expected the bytes, dtype and shape of an array")
    found = np.frombuffer(raw, dtype.order + dtype.code) if len(raw) else np.empty(0, dtype.order + dtype.code)
    found = found.reshape(shape, order="F" if fortran else "C")
    if found.shape != shape:
        raise ValueError(f"expected a shape without negative sizes, got {short_repr(shape)}")
    found.flags.writeable = False
    return found if axes is None else found.transpose(axes)


def read_pickle(path: str, data: memoryview) -> dict[str, Array]:
    """The arrays in the bytes of a `.pdparams` file, by name, read-only; `path` is for messages.

    Executes nothing. Raises ValueError, with the path and the reason, if the file holds anything but arrays.
    """
    try:
        found = weights_in(Machine(data, Arrays(len(data))).run())
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        reason = str(error) if isinstance(error, ValueError) else f"damaged, {type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a Paddle weight file: {reason}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a dictionary of arrays, got {type(found).__name__}")
    arrays: dict[str, Array] = {}
    for name, slot in found.items():
        if name == SKIPPED:
            continue
        if not isinstance(slot, Slot) or slot.array is None:
            other = "an incomplete one" if isinstance(slot, Slot) else type(slot).__name__
            raise ValueError(f"{path}: {short_repr(name)}: expected an array, got {other}")
        arrays[name] = slot.array
    return arrays

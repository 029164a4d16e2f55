"""The stack machine that interprets pickles, with only the instructions that a dictionary of arrays needs.

It builds numbers, text, bytes (views of the file), tuples and dictionaries. Everything else (referencing a function,
calling it, setting an object's state) is left to a `Builder`: the machine itself looks up no names and calls nothing.

Leaves out: Python 2's instructions, out-of-band buffers, persistent ids, sets, class instances.

Source: Python's `pickletools`.
"""

from __future__ import annotations

import struct
from typing import Any, Protocol

# A checkpoint of 100 layers needs a tenth of this. It bounds the memory that one-byte instructions can fill.
MOST_INSTRUCTIONS = 1_000_000


class Builder(Protocol):
    """Handles what the machine does not. The results of `mention` and `call` go on the stack."""

    def mention(self, module: object, name: object) -> object:
        """Handle a reference to a function or class."""

    def call(self, function: object, arguments: object) -> object:
        """Handle a call to what was mentioned."""

    def build(self, target: object, state: object) -> None:
        """Set the state of an object."""


class Machine:
    """Interprets the instructions of one file; `run` returns the result."""

    def __init__(self, data: memoryview, builder: Builder) -> None:
        self.data = data
        self.builder = builder
        self.at = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the file describes. Raises ValueError, IndexError or KeyError if the file is invalid."""
        if bytes(self.take(1)) != b"\x80" or not 2 <= self.number("<B") <= 5:
            raise ValueError("not a pickle of protocol 2 to 5")
        for _ in range(MOST_INSTRUCTIONS):
            code = bytes(self.take(1))
            if code == b".":
                return self.stack.pop()
            if code not in INSTRUCTIONS:
                raise ValueError(f"instruction {code!r} at byte {self.at - 1} is not one that weight files need")
            INSTRUCTIONS[code](self)
        raise ValueError(f"more than {MOST_INSTRUCTIONS} instructions")

    def take(self, n: int) -> memoryview:
        if n > len(self.data) - self.at:
            raise ValueError(f"truncated: expected {n} bytes at byte {self.at} of {len(self.data)}")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        for n in range(1, min(1000, len(self.data) - self.at) + 1):
            if self.data[self.at + n - 1] == 10:
                return str(self.take(n)[:-1], "utf-8")
        raise ValueError(f"unterminated name at byte {self.at}")

    def text(self, form: str) -> None:
        self.stack.append(str(self.take(self.number(form)), "utf-8"))

    def raw(self, form: str) -> None:
        self.stack.append(self.take(self.number(form)))

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def open_mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def close_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def make_tuple(self, n: int | None = None) -> None:
        items = self.close_mark() if n is None else [self.stack.pop() for _ in range(n)][::-1]
        self.stack.append(tuple(items))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError(f"expected pairs for a dictionary, got {len(items)} items for {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise ValueError(f"expected string keys, got {type(key).__name__} at byte {self.at}")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number("<B")), "little", signed=True))

    def mention_stacked(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(self.builder.mention(module, name))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.push(self.builder.call(function, arguments))

    def build(self) -> None:
        state = self.stack.pop()
        self.builder.build(self.stack[-1], state)


INSTRUCTIONS: dict[bytes, Any] = {
    b"\x95": lambda m: m.number("<Q"),  # FRAME: only a read-ahead hint
    b"(": Machine.open_mark,
    b"}": lambda m: m.push({}),
    b")": lambda m: m.push(()),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"\x8a": Machine.long,
    b"X": lambda m: m.text("<I"),
    b"\x8c": lambda m: m.text("<B"),
    b"\x8d": lambda m: m.text("<Q"),
    b"B": lambda m: m.raw("<I"),
    b"C": lambda m: m.raw("<B"),
    b"\x8e": lambda m: m.raw("<Q"),
    b"\x96": lambda m: m.raw("<Q"),
    b"t": Machine.make_tuple,
    b"\x85": lambda m: m.make_tuple(1),
    b"\x86": lambda m: m.make_tuple(2),
    b"\x87": lambda m: m.make_tuple(3),
    b"s": Machine.set_item,
    b"u": lambda m: m.set_items(m.close_mark()),
    b"q": lambda m: m.memo.__setitem__(m.number("<B"), m.stack[-1]),
    b"r": lambda m: m.memo.__setitem__(m.number("<I"), m.stack[-1]),
    b"\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    b"h": lambda m: m.push(m.memo[m.number("<B")]),
    b"j": lambda m: m.push(m.memo[m.number("<I")]),
    b"c": lambda m: m.push(m.builder.mention(m.line(), m.line())),
    b"\x93": Machine.mention_stacked,
    b"R": Machine.call,
    b"b": Machine.build,
}

"""Tracing a forward pass: every named intermediate value, as computed.

    with trace() as t:
        model(input_ids, attention_mask=mask)
    t["encoder.layers.0.self_attn.self_attn.probs"].padded()

The layers call `record(name, value)` on their results; it does nothing unless a trace is running. Names are those of
the checkpoint: `encoder.layers.3.self_attn.out_proj` is that module's output. Scores, probabilities and context are
not module outputs; their names are that of the module that computes them, plus `.scores`, `.probs` or `.context`.

`compare.py` finds the first entry where two traces differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .array import Array
from .padding import pad


@dataclass(frozen=True)
class Tokens:
    """The positions in the (B, S) rectangle of the tokens of a packed pass."""

    indices: Array  # (T,), flat positions b·S + s
    batch: int
    length: int

    @property
    def mask(self) -> Array:  # (B, S)
        """True at real tokens."""
        return pad(np.ones(self.indices.shape, bool), self.indices, self.batch, self.length)

    def pad_maps(self, maps: tuple[Array, ...]) -> Array:  # B x (H, n, n) -> (B, H, S, S)
        """Place each sequence's attention map at the rows and columns of its tokens."""
        padded = np.zeros((self.batch, maps[0].shape[0], self.length, self.length), maps[0].dtype)
        mask = self.mask
        for b, attention_map in zip(np.flatnonzero(mask.any(axis=1)), maps, strict=True):
            columns = np.flatnonzero(mask[b])
            padded[b][:, columns[:, None], columns] = attention_map
        return padded


@dataclass(frozen=True)
class Entry:
    """One recorded value.

    On the padded path, `value` is (B, S, ...), or (B, H, S, S) for scores and probabilities, and `tokens` is None. On
    the packed path, `tokens` holds the tokens' positions, and `value` is (T, ...), or a tuple of one (H, n, n) array
    for each non-empty sequence.
    """

    name: str
    value: Any
    tokens: Tokens | None = None

    @property
    def indices(self) -> Array | None:
        """Flat positions b·S + s of the tokens, (T,); None on the padded path."""
        return None if self.tokens is None else self.tokens.indices

    def padded(self) -> Array:
        """The value on the (B, S) rectangle, 0 at padding."""
        if self.tokens is None:
            return np.asarray(self.value)
        if isinstance(self.value, tuple):
            return self.tokens.pad_maps(self.value)
        return pad(self.value, self.tokens.indices, self.tokens.batch, self.tokens.length)


class Trace(Mapping[str, Entry]):
    """Entries by name, in order of computation; `skipped` lists names that could not be recorded."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.skipped: list[str] = []

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True)
class _Scope:
    trace: Trace
    prefix: str = ""
    tokens: Tokens | None = None
    per_sequence: bool = False


_scope: ContextVar[_Scope | None] = ContextVar("ernie_m_trace", default=None)


@contextmanager
def trace() -> Iterator[Trace]:
    """Record the named intermediates of calls inside the `with` block; later calls overwrite earlier entries."""
    found = Trace()
    token = _scope.set(_Scope(found))
    try:
        yield found
    finally:
        _scope.reset(token)


@contextmanager
def _within(**changes: Any) -> Iterator[None]:
    current = _scope.get()
    if current is None:
        yield
        return
    token = _scope.set(replace(current, **changes))
    try:
        yield
    finally:
        _scope.reset(token)


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Prefix names recorded inside with `name` and a dot."""
    current = _scope.get()
    with _within(prefix=f"{current.prefix}{name}." if current else ""):
        yield


def packed_tokens(tokens: Tokens | None) -> Any:
    """Values recorded inside belong to these packed tokens or, if None, to the padded rectangle."""
    return _within(tokens=tokens)


def per_sequence() -> Any:
    """Inside, each name is recorded once per sequence instead of once for all tokens."""
    return _within(per_sequence=True)


def record(name: str, value: Array) -> Array:
    """Return `value`, and keep it under `name` if a trace is running."""
    current = _scope.get()
    if current is None:
        return value
    name = current.prefix + name
    kept: Any = value
    if current.per_sequence:
        earlier = current.trace.entries.get(name)
        # The same Tokens object means an earlier sequence of this call, not an earlier call.
        same_call = earlier is not None and earlier.tokens is current.tokens and isinstance(earlier.value, tuple)
        kept = (*(earlier.value if earlier is not None and same_call else ()), value)
    current.trace.entries[name] = Entry(name, kept, current.tokens)
    return value


@contextmanager
def trace_torch(module: Any) -> Iterator[Trace]:
    """Record the outputs of a torch model's innermost modules while it runs inside the `with` block.

    Values become NumPy arrays (bfloat16 as float32). Dropout modules are left out. Scores, probabilities and context
    are not module outputs: their names are listed in `skipped`.
    """
    found = Trace()
    handles = []

    def hook(name: str) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            value = output.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
            found.entries[name] = Entry(name, value.numpy().copy())

        return keep

    for name, child in module.named_modules():
        if hasattr(child, "q_proj") and hasattr(child, "v_proj"):
            found.skipped += [f"{name}.{part}" for part in ("scores", "probs", "context")]
        if not list(child.children()) and type(child).__name__ != "Dropout":
            handles.append(child.register_forward_hook(hook(name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

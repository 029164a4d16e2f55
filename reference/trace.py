"""Tracing a forward pass: every named intermediate value, as computed.

    with trace() as t:
        model(input_ids, attention_mask=mask)
    t["encoder.layers.0.self_attn.self_attn.probs"].padded()

The layers call `record(name, value)` on their results; it does nothing unless a trace is running. Names are those of
the checkpoint: `encoder.layers.3.self_attn.out_proj` is that module's output. Scores, probabilities and context are
not module outputs; their names are that of the module that computes them, plus `.scores`, `.probs` or `.context`.
`value_and_gradients` also records each value's cotangent, as `grad:` and the name.

`trace(replace={name: function})` continues with `function(value)` instead of the value, for experiments in which part
of a computation is patched. `compare.py` finds the first entry where two traces differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .array import Array
from .padding import pad

# Before the name of a value, this names its cotangent: the gradient of the loss with respect to it.
GRADIENT = "grad:"


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
    for each non-empty sequence. `dtype` is the name of the dtype that it was computed in; NumPy has no bfloat16.
    """

    name: str
    value: Any
    tokens: Tokens | None = None
    dtype: str = ""

    def __post_init__(self) -> None:
        if not self.dtype:
            parts = self.value if isinstance(self.value, tuple) else (self.value,)
            object.__setattr__(self, "dtype", np.result_type(*parts).name)

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
    """Entries by name, in order of computation.

    `skipped` lists names that could not be recorded; `forced`, those whose value was then forced (`trace_torch`).
    """

    def __init__(self, replace: Mapping[str, Callable[[Any], Any]] | None = None) -> None:
        self.entries: dict[str, Entry] = {}
        self.skipped: list[str] = []
        self.forced: set[str] = set()
        self._replace, self._replaced = dict(replace or {}), set[str]()

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def replaced(self, name: str, value: Any) -> Any:
        """What the computation continues with: `value`, or an array or tensor like it. Otherwise raises ValueError."""
        if name not in self._replace:
            return value
        self._replaced.add(name)
        new = self._replace[name](value.clone() if hasattr(value, "clone") else value.copy())
        got, wanted = ([str(getattr(x, kind, None)) for kind in ("shape", "dtype", "device")] for x in (new, value))
        if not isinstance(new, type(value)) or got != wanted:
            kinds = " ".join(got) if got[0] != "None" else repr(new)
            raise ValueError(f"replace: {name}: expected {type(value).__name__} {' '.join(wanted)}, got {kinds}")
        return new

    def check_replaced(self) -> None:
        """Raise ValueError if a value that should have been replaced was not computed, or not on its own."""
        for name in sorted(self._replace.keys() - self._replaced):
            scopes = [f"{name.rsplit('.', i)[0]}." for i in range(1, name.count(".") + 1)]
            near = next(filter(None, ([x for x in self if x.startswith(scope)] for scope in scopes)), list(self))
            others = ", ".join(near) or "nothing"
            raise ValueError(f"replace: {name!r} was not computed, or was fused away; what was computed: {others}")


def serves_all_rows(name: str, whole: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether `shape` is (S, E) or (1, S, E), of position embeddings that were looked up once; `whole` is (B, S, E)."""
    once = whole[1:], (1, *whole[1:])
    return name.endswith("position_embeddings") and not name.startswith(GRADIENT) and shape in once


@dataclass(frozen=True)
class _Scope:
    trace: Trace
    prefix: str = ""
    tokens: Tokens | None = None
    per_sequence: bool = False
    quiet: bool = False


current_scope: ContextVar[_Scope | None] = ContextVar("ernie_m_trace", default=None)


@contextmanager
def trace(replace: Mapping[str, Callable[[Any], Any]] | None = None) -> Iterator[Trace]:
    """Record the named intermediates of calls inside the `with` block; later calls overwrite earlier entries.

    replace: functions by name. Each gets a copy of the value, an array (in `ernie_m.kernels` a tensor), packed if the
    pass is, scores and probabilities then once per sequence; the pass records what it returns, and continues with it.

    Raises ValueError if a replacement has another shape or dtype, or at the end if its name was not computed.
    """
    found = Trace(replace)
    with recording_in(found):
        yield found
    found.check_replaced()


@contextmanager
def recording_in(found: Trace) -> Iterator[None]:
    """Inside, `record` keeps values in `found`."""
    token = current_scope.set(_Scope(found))
    try:
        yield
    finally:
        current_scope.reset(token)


@contextmanager
def _within(**changes: Any) -> Iterator[None]:
    current = current_scope.get()
    if current is None:
        yield
        return
    token = current_scope.set(replace(current, **changes))
    try:
        yield
    finally:
        current_scope.reset(token)


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Prefix names recorded inside with `name` and a dot."""
    current = current_scope.get()
    with _within(prefix=f"{current.prefix}{name}." if current else ""):
        yield


def packed_tokens(tokens: Tokens | None) -> Any:
    """Values recorded inside belong to these packed tokens or, if None, to the padded rectangle."""
    return _within(tokens=tokens)


def per_sequence() -> Any:
    """Inside, each name is recorded once per sequence instead of once for all tokens."""
    return _within(per_sequence=True)


def record(name: str, value: Array) -> Array:
    """Return `value`, or what replaces it, and keep that under `name` if a trace is running."""
    current = current_scope.get()
    if current is None:
        return value
    name = current.prefix + name
    value = current.trace.replaced(name, value)
    if current.quiet:
        return value
    kept: Any = value
    if current.per_sequence:
        earlier = current.trace.entries.get(name)
        # The same Tokens object means an earlier sequence of this call, not an earlier call.
        same_call = earlier is not None and earlier.tokens is current.tokens and isinstance(earlier.value, tuple)
        kept = (*(earlier.value if earlier is not None and same_call else ()), value)
    current.trace.entries[name] = Entry(name, kept, current.tokens)
    return value


def record_gradient(name: str, value: Array) -> Array:
    """`record` the cotangent of the value called `name`, as `grad:` and its full name."""
    current = current_scope.get()
    if current is None:
        return value
    with _within(prefix=f"{GRADIENT}{current.prefix}", quiet=False):
        return record(name, value)


def recomputed() -> Any:
    """Inside, values that were recorded in the forward pass are replaced as they were then, and not recorded again."""
    return _within(quiet=True)

"""Looking inside a forward pass of the torch models: `reference.trace()` records them too, under the same names.

    with ernie_m.reference.trace() as t:
        torch_model(input_ids, attention_mask=mask)

Values become NumPy arrays (bfloat16 as float32). Values that fused operations never write to memory are missing: on the
fast path `word_embeddings`, `position_embeddings`, `scores`, `probs`, `out_proj`, `linear1` and `linear2`. The plain
path, used for gradients, records them all. Nothing is recorded while a graph is being compiled.

Twin: reference/trace.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ernie_m.reference.array import Array
from ernie_m.reference.trace import Entry, _scope


class Places(Protocol):
    """Knows the positions of a recorded value's rows."""

    def entry(self, name: str, value: Array) -> Entry:
        """The value as a trace entry."""


def tracing() -> bool:
    """Whether a trace is running and no graph is being compiled."""
    return not torch.compiler.is_compiling() and _scope.get() is not None


def record(name: str, value: Tensor, places: Places | None = None) -> Tensor:
    """Return `value`; record it under `name` if a trace is running. Without `places`, it has no token positions."""
    if tracing():
        current: Any = _scope.get()
        name = current.prefix + name
        array = to_numpy(value)
        current.trace.entries[name] = Entry(name, array) if places is None else places.entry(name, array)
    return value


def to_numpy(x: Tensor) -> Array:
    """A copy as a NumPy array; bfloat16, which NumPy lacks, as float32."""
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy().copy()

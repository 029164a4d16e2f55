"""Looking inside a forward pass of the torch models: `reference.trace()` records them too, under the same names.

    with ernie_m.reference.trace() as t:
        torch_model(input_ids, attention_mask=mask)

Values become NumPy arrays (bfloat16 as float32). What fused operations never write down is not there: on the fast path
`word_embeddings`, `position_embeddings`, `scores`, `probs`, `out_proj`, `linear1` and `linear2`. The plain path, where
gradients are wanted, has them all. While a graph is being compiled nothing is recorded.

Twin: reference/trace.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ernie_m.reference.array import Array
from ernie_m.reference.trace import Entry, _scope


class Places(Protocol):
    """What knows where the rows of a recorded value stand."""

    def entry(self, name: str, value: Array) -> Entry:
        """The value as an entry of a trace."""


def tracing() -> bool:
    """Whether a trace is running, and this is no graph that is being compiled."""
    return not torch.compiler.is_compiling() and _scope.get() is not None


def record(name: str, value: Tensor, places: Places | None = None) -> Tensor:
    """Give `value` back, and keep it under `name` if a trace is running; `places` None: it has no positions."""
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

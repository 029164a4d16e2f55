"""Looking inside a forward pass of the torch models: `reference.trace()` records them too, under the same names.

    with ernie_m.reference.trace() as t:
        torch_model(input_ids, attention_mask=mask)

Values become NumPy arrays (bfloat16 as float32). Values that fused operations never write to memory are missing, and
cannot be replaced: on the fast path `word_embeddings`, `position_embeddings`, `scores`, `probs`, `out_proj`, `linear1`
and `linear2`. The plain path, used for gradients and where there are no kernels, records them all; without gradients, a
last layer that computes only first tokens has no scores. While a graph is being compiled, nothing is recorded or
replaced.

Twin: reference/trace.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor

from ernie_m.reference.array import Array
from ernie_m.reference.trace import Entry, current_scope

from .runtime.dtypes import name_of

# Their three products are parts of one tensor, from which attention reads them.
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Places(Protocol):
    """Knows the positions of a recorded value's rows."""

    def entry(self, name: str, value: Array) -> Entry:
        """The value as a trace entry."""


def tracing() -> bool:
    """Whether a trace is running and no graph is being compiled."""
    return not torch.compiler.is_compiling() and current_scope.get() is not None


def record(name: str, value: Tensor, places: Places | None = None) -> Tensor:
    """Return `value`, or what replaces it, and record that under `name` if a trace is running.

    Without `places`, it has no token positions. What `trace_torch` forced has been recorded.
    """
    if tracing():
        current: Any = current_scope.get()
        name = current.prefix + name
        if name in current.trace.forced:
            return value
        value = replaced(name, value, current.trace.replaced(name, value), places)
        array = to_numpy(value)
        entry = Entry(name, array) if places is None else places.entry(name, array)
        dtype = name_of(value.dtype)
        current.trace.entries[name] = dataclasses.replace(entry, dtype=dtype)
    return value


def replaced(name: str, value: Tensor, new: Tensor, places: Places | None) -> Tensor:
    """`new` in the place of `value`. Raises ValueError where the model does not go on with what it recorded.

    Projections are written to the tensor that attention reads, which autograd could not follow. The logits of token
    classification are recorded from a copy, without padding.
    """
    kind = name.rpartition(".")[2]
    if new is value or (kind not in PROJECTIONS and (kind != "classifier" or places is None)):
        return new
    if kind == "classifier":
        raise ValueError(f"replace: {name}: expected a value inside the model, such as the last layer's norm2")
    if value.requires_grad or new.requires_grad:
        raise ValueError(f"replace: {name}: expected torch.no_grad(); with gradients, scores, probs or context can be")
    return value.copy_(new)


def to_numpy(x: Tensor) -> Array:
    """A copy as a NumPy array; bfloat16, which NumPy lacks, as float32."""
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy().copy()

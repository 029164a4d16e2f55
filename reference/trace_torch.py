"""Tracing a torch model: the outputs of its innermost modules, and their gradients, under the names of `trace`.

    with trace_torch(module) as t:
        module(...).loss.backward()

`compare.py` finds the first entry where such a trace differs from the reference's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from .array import Array
from .trace import GRADIENT, Entry, Tokens, Trace, recording_in, serves_all_rows


@contextmanager
def trace_torch(module: Any, force: Mapping[str, Entry] | None = None) -> Iterator[Trace]:
    """Record the outputs of a torch model's innermost modules while it runs inside the `with` block.

    Values become NumPy arrays (bfloat16 as float32). Dropout modules are left out. Scores, probabilities and context
    are not module outputs: they are `skipped`, unless the model records them, as those of `ernie_m.kernels` do.
    Where the block includes `loss.backward()`, the outputs' gradients are recorded too, as `grad:` and the name.

    force: the trace of a reference. Once a module's output is recorded, the model continues with the value of the same
    name in `force`. So every module gets the reference's own input. Position embeddings that the model looks up once
    for all rows stay its own. Raises ValueError if another value has another shape, or at the end if there was none.
    """
    found = Trace()
    handles = []

    def numbers(tensor: Any) -> tuple[Array, str]:
        value = tensor.detach().cpu()
        dtype = str(value.dtype).removeprefix("torch.")
        return (value.float() if dtype == "bfloat16" else value).numpy().copy(), dtype

    def keep_gradient(name: str, gradient: Any) -> None:
        value, dtype = numbers(gradient)
        found.entries[name] = Entry(name, value, None, dtype)

    def hook(name: str) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> Any:
            if not hasattr(output, "detach"):
                found.skipped.append(name)
                return None
            value, dtype = numbers(output)
            if output.requires_grad:
                output.register_hook(lambda gradient: keep_gradient(GRADIENT + name, gradient))
            if force is None or name not in force or serves_all_rows(name, force[name].padded().shape, value.shape):
                found.entries[name] = Entry(name, value, None, dtype)
                return None
            given, tokens, shape = _fitting(name, force[name], value.shape)
            found.entries[name] = Entry(name, value.reshape(shape), tokens, dtype)
            found.forced.add(name)
            return output.new_tensor(given.reshape(value.shape))

        return keep

    for name, child in module.named_modules():
        if hasattr(child, "q_proj") and hasattr(child, "v_proj"):
            found.skipped += [f"{name}.{part}" for part in ("scores", "probs", "context")]
        if not list(child.children()) and type(child).__name__ != "Dropout":
            handles.append(child.register_forward_hook(hook(name)))
    try:
        with recording_in(found):
            yield found
    finally:
        for handle in handles:
            handle.remove()
        found.skipped = [name for name in found.skipped if name not in found]
    if force is not None and found and not found.forced:
        raise ValueError(f"force: expected names such as {next(iter(found))!r}, got {list(force)[:3]}...")


def _fitting(name: str, entry: Entry, shape: tuple[int, ...]) -> tuple[Array, Tokens | None, tuple[int, ...]]:
    """The entry's value, as packed as `shape`; the positions of its tokens; and its shape in a trace."""
    if entry.tokens is not None and np.shape(entry.value) == shape:
        return entry.value, entry.tokens, shape
    padded = entry.padded()
    if padded.shape == shape or (padded.ndim > 2 and padded.reshape(-1, *padded.shape[2:]).shape == shape):
        return padded, None, padded.shape
    raise ValueError(f"force: {name}: expected the shape {shape} of the module's output, got {padded.shape}")

"""Two programs that compute the same vectors: the reference in NumPy, and the torch models of `ernie_m.kernels`.

`Encoder` calls either through a `Backend`, which turns rows of token ids into one vector each. Torch is imported only
if its backend is chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from os import PathLike
from typing import Any, Protocol

import numpy as np

from ..array import Array
from ..config import ErnieMConfig
from ..model import ErnieMModel
from ..padding import pad_ids

NUMPY, TORCH = BACKENDS = ("numpy", "torch")


class Backend(Protocol):
    """A model as `Encoder` sees it."""

    config: ErnieMConfig
    has_pooler: bool
    # Of the vectors: the model's, but at least float32, as half precision is too coarse for sums over tokens.
    dtype: np.dtype[Any]

    def pooled(self, rows: Sequence[Sequence[int]], pooling: str) -> Array:  # B rows of ids -> (B, E)
        """One vector for each row. No row may be empty."""


class NumPyBackend:
    """A model of `ernie_m.reference`."""

    def __init__(self, model: ErnieMModel) -> None:
        self.model, self.config = model, model.config
        self.has_pooler = model.parameters.pooler is not None
        self.dtype = np.result_type(model.dtype, np.float32)

    def pooled(self, rows: Sequence[Sequence[int]], pooling: str) -> Array:  # B rows of ids -> (B, E)
        """One vector for each row."""
        input_ids, mask = pad_ids(rows, self.config.pad_token_id)
        out = self.model(input_ids, attention_mask=mask)
        if pooling == "pooler":
            assert out.pooler_output is not None
            return out.pooler_output.astype(self.dtype, copy=False)
        if pooling == "cls":
            return out.last_hidden_state[:, 0].astype(self.dtype, copy=False)
        # Hidden states are 0 at padding.
        return out.last_hidden_state.sum(axis=1, dtype=self.dtype) / mask.sum(axis=1, dtype=self.dtype)[:, None]


class TorchBackend:
    """A model of `ernie_m.kernels`, in `eval()` mode, on any device and in any dtype."""

    def __init__(self, model: Any) -> None:
        import torch

        self.model, self.config = model, model.config
        self.has_pooler = model.pooler is not None
        self.wide = torch.promote_types(model.like().dtype, torch.float32)
        self.dtype = torch.empty(0, dtype=self.wide).numpy().dtype

    def pooled(self, rows: Sequence[Sequence[int]], pooling: str) -> Array:  # B rows of ids -> (B, E)
        """One vector for each row. Raises ValueError in `train()` mode, where dropout would make vectors random."""
        import torch

        if self.model.training:
            raise ValueError("model: expected one in eval() mode, got one in train() mode")
        device = self.model.like().device
        lengths = [len(row) for row in rows]
        ids = torch.tensor(list(chain.from_iterable(rows)), device=device)
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        with torch.inference_mode():
            out = self.model.packed(ids, ends, max(lengths))
            if pooling == "pooler":
                vectors = out.pooler_output
            elif pooling == "cls":
                vectors = out.last_hidden_state[ends[:-1].long()]
            else:
                parts = out.last_hidden_state.split(lengths)
                vectors = torch.stack([part.mean(0, dtype=self.wide) for part in parts])
            found: Array = vectors.to("cpu", self.wide).numpy()
            return found


def backend_of(model: Any) -> Backend:
    """The backend for a model. Raises TypeError if it is not an ErnieMModel of `reference` or `kernels`."""
    if isinstance(model, ErnieMModel):
        return NumPyBackend(model)
    if hasattr(model, "packed") and hasattr(model, "pooler"):
        return TorchBackend(model)
    expected = "an ErnieMModel of ernie_m.reference or ernie_m.kernels"
    raise TypeError(f"model: expected {expected}, got {type(model).__module__}.{type(model).__name__}")


def load(directory: str | PathLike[str], backend: str, device: str | None) -> Any:
    """Load the checkpoint's ErnieMModel, in float32, for inference only. `device`: for torch; by default the CPU.

    On a CPU, either backend computes with the weights where the file is mapped into memory, which is read-only: torch's
    own `from_pretrained` copies them, and needs twice the memory.
    """
    model = ErnieMModel.from_pretrained(directory, dtype=np.float32)
    if backend == NUMPY:
        return model
    from ernie_m.kernels import ErnieMModel as TorchModel

    twin = TorchModel(model.config, device="meta")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        weights = {name: _torch().from_numpy(array) for name, array in model.state_dict().items()}
    twin.load_state_dict(weights, assign=True)
    return twin.to(device or "cpu").eval().requires_grad_(False)


def check_backend(backend: str, device: str | None) -> None:
    """Raise ValueError for an unknown backend or a device that it cannot use, ImportError if torch is not installed."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == NUMPY:
        if device is not None:
            raise ValueError(f"device: expected none, as the NumPy backend computes on the CPU, got {device!r}")
        return
    try:
        _torch().empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an AssertionError from a torch built without CUDA
        raise ValueError(f"device: expected one that torch can use, got {device!r}: {error}") from None


def _torch() -> Any:
    """Torch. Raises ImportError, with how to install it, if it is missing."""
    import ernie_m.kernels  # noqa: F401  # isort: skip  # its error says how
    import torch

    return torch


@contextmanager
def limited_threads(backend: str, threads: int | None) -> Iterator[None]:
    """In this context, compute on so many threads; None: as many as NumPy's BLAS or torch would use anyway.

    The number is that of the whole process, and is restored at the end. Raises ImportError if torch is missing, or
    threadpoolctl, which NumPy needs for this.
    """
    if threads is None:
        yield
    elif backend == NUMPY:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            raise ImportError("threads need threadpoolctl: pip install 'ernie-m[threads]'") from None
        with threadpool_limits(threads, user_api="blas"):
            yield
    else:
        torch = _torch()
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

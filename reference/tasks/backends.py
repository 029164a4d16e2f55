"""Two programs that compute the same vectors: the reference in NumPy, and the torch models of `ernie_m.kernels`.

`Encoder` calls either through a `Backend`, which turns rows of token ids into one vector each, or one for each token.
Torch is imported only if its backend is chosen.

Hidden states are those after `layer`, 0 for the embeddings, or of the last layer if that is None; for the pooling
"first-last", the average of those after the first and the last layer. Masks follow the checkpoint
(`training.rows.visible`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from os import PathLike
from typing import Any, Protocol

import numpy as np

from ..array import Array
from ..config import ErnieMConfig
from ..model import ErnieMModel
from ..outputs import ModelOutput
from ..padding import pad_ids
from ..training.rows import visible

NUMPY, TORCH = BACKENDS = ("numpy", "torch")
CLS, MEAN, POOLER, FIRST_LAST = POOLINGS = ("cls", "mean", "pooler", "first-last")


class Backend(Protocol):
    """A model as `Encoder` sees it."""

    config: ErnieMConfig
    has_pooler: bool
    # Of the vectors: the model's, but at least float32, as half precision is too coarse for sums over tokens.
    dtype: np.dtype[Any]

    def pooled(
        self, rows: Sequence[Sequence[int]], pooling: str, layer: int | None = None
    ) -> Array:  # B rows of ids -> (B, E)
        """One vector for each row. No row may be empty."""

    def tokens(
        self, rows: Sequence[Sequence[int]], pooling: str, layer: int | None = None
    ) -> list[Array]:  # B rows of ids -> B x (S, E)
        """The hidden states of each row's tokens, special tokens included. No row may be empty."""


def chosen_states(out: Any, pooling: str, layer: int | None, widen: Callable[[Any], Any]) -> Any:
    """The hidden states of a model's output that a pooling reads; an average is computed after `widen`."""
    if pooling == FIRST_LAST:
        return (widen(out.hidden_states[1]) + widen(out.hidden_states[-1])) / 2
    return out.last_hidden_state if layer is None else out.hidden_states[layer]


class NumPyBackend:
    """A model of `ernie_m.reference`."""

    def __init__(self, model: ErnieMModel) -> None:
        self.model, self.config = model, model.config
        self.has_pooler = model.parameters.pooler is not None
        self.dtype = np.result_type(model.dtype, np.float32)

    def pooled(
        self, rows: Sequence[Sequence[int]], pooling: str, layer: int | None = None
    ) -> Array:  # B rows of ids -> (B, E)
        """One vector for each row."""
        out, hidden, mask = self._run(rows, pooling, layer)
        if pooling == POOLER:
            assert out.pooler_output is not None
            return out.pooler_output.astype(self.dtype, copy=False)
        if pooling == CLS:
            return hidden[:, 0].astype(self.dtype, copy=False)
        # Hidden states are 0 at padding.
        return hidden.sum(axis=1, dtype=self.dtype) / mask.sum(axis=1, dtype=self.dtype)[:, None]

    def tokens(
        self, rows: Sequence[Sequence[int]], pooling: str, layer: int | None = None
    ) -> list[Array]:  # B rows of ids -> B x (S, E)
        """The hidden states of each row's tokens."""
        hidden = self._run(rows, pooling, layer)[1].astype(self.dtype, copy=False)
        return [x[: len(row)] for x, row in zip(hidden, rows, strict=True)]

    def _run(
        self, rows: Sequence[Sequence[int]], pooling: str, layer: int | None
    ) -> tuple[ModelOutput[Array], Array, Array]:  # -> ..., (B, S, E), (B, S)
        input_ids, mask = pad_ids(rows, self.config.pad_token_id)
        inner = layer is not None or pooling == FIRST_LAST
        seen = visible(self.config, input_ids, mask)
        out = self.model(input_ids, attention_mask=seen, output_hidden_states=inner)
        return out, chosen_states(out, pooling, layer, lambda x: x.astype(self.dtype, copy=False)), mask


class TorchBackend:
    """A model of `ernie_m.kernels`, in `eval()` mode, on any device and in any dtype."""

    def __init__(self, model: Any) -> None:
        import torch

        self.model, self.config = model, model.config
        self.has_pooler = model.pooler is not None
        self.wide = torch.promote_types(model.like().dtype, torch.float32)
        self.dtype = torch.empty(0, dtype=self.wide).numpy().dtype

    def pooled(
        self, rows: Sequence[Sequence[int]], pooling: str, layer: int | None = None
    ) -> Array:  # B rows of ids -> (B, E)
        """One vector for each row. Raises ValueError in `train()` mode, where dropout would make vectors random."""
        import torch

        with torch.inference_mode():
            out, parts = self._run(rows, pooling, layer)
            if pooling == POOLER:
                vectors = out.pooler_output
            elif pooling == CLS:
                vectors = torch.stack([part[0] for part in parts])
            else:
                vectors = torch.stack([part.mean(0, dtype=self.wide) for part in parts])
            return self._array(vectors)

    def tokens(
        self, rows: Sequence[Sequence[int]], pooling: str, layer: int | None = None
    ) -> list[Array]:  # B rows of ids -> B x (S, E)
        """The hidden states of each row's tokens. Raises ValueError as `pooled` does."""
        import torch

        with torch.inference_mode():
            return [self._array(part) for part in self._run(rows, pooling, layer)[1]]

    def _run(self, rows: Sequence[Sequence[int]], pooling: str, layer: int | None) -> tuple[Any, list[Any]]:
        """The model's output, and the hidden states of each row's tokens, B x (S, E)."""
        import torch

        if self.model.training:
            raise ValueError("model: expected one in eval() mode, got one in train() mode")
        device = self.model.like().device
        lengths = [len(row) for row in rows]
        inner = layer is not None or pooling == FIRST_LAST
        if not inner and self.config.default_mask == "pad_token":
            ids = torch.tensor(list(chain.from_iterable(rows)), device=device)
            ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
            out = self.model.packed(ids, ends, max(lengths))
            return out, list(out.last_hidden_state.split(lengths))
        input_ids, mask = pad_ids(rows, self.config.pad_token_id)
        given = (torch.from_numpy(x).to(device) for x in (input_ids, visible(self.config, input_ids, mask)))
        out = self.model(*given, output_hidden_states=inner)
        hidden = chosen_states(out, pooling, layer, lambda x: x.to(self.wide))
        return out, [x[:n] for x, n in zip(hidden, lengths, strict=True)]

    def _array(self, x: Any) -> Array:
        found: Array = x.to("cpu", self.wide).numpy()
        return found


def backend_of(model: Any) -> Backend:
    """The backend for a model. Raises TypeError if it is not an ErnieMModel of `reference` or `kernels`."""
    if isinstance(model, ErnieMModel):
        return NumPyBackend(model)
    if hasattr(model, "packed") and hasattr(model, "pooler"):
        return TorchBackend(model)
    expected = "an ErnieMModel of ernie_m.reference or ernie_m.kernels"
    raise TypeError(f"model: expected {expected}, got {type(model).__module__}.{type(model).__name__}")


def load(
    directory: str | PathLike[str], backend: str, device: str | None, cls: Any = ErnieMModel, **changes: Any
) -> Any:
    """Load the checkpoint's model of this class, in float32, for inference only.

    device: for torch; by default the CPU. cls: a class of `ernie_m.reference`; torch's is its twin of the same name.
    changes: fields of the configuration to override.

    On a CPU, either backend computes with the weights where the file is mapped into memory, which is read-only: torch's
    own `from_pretrained` copies them, and needs twice the memory.
    """
    model = cls.from_pretrained(directory, dtype=np.float32, **changes)
    if backend == NUMPY:
        return model
    from ernie_m import kernels

    twin = getattr(kernels, cls.__name__)(model.config, device="meta")
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
    torch = _torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # To the CPU too, as vectors are: a device such as "meta" holds no numbers.
            torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # of a torch that is built without this device
        kind = torch.accelerator.current_accelerator(check_available=True)
        usable = ["cpu", *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]
        expected = f"expected one that torch can use here ({', '.join(usable)})"
        if device in (None, str(kind), *usable):  # the device is in trouble, such as out of memory
            raise RuntimeError(f"device: {device}: {str(error).splitlines()[0]}") from None
        raise ValueError(f"device: {expected}, got {device!r}") from None


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

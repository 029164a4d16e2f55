"""Cases for functions of users that compute an operation for which this package has no kernel of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .measured import EPS, Maker, Measured, compiled, plugged, rotating, sets
from .work import Batch, Size, Work


def _rows(
    plain: Callable[..., Tensor], rows: int, columns: int, vectors: int, extra: tuple[Any, ...]
) -> Callable[[torch.dtype, str], Measured]:
    """An operation on (rows, columns) that reads its argument and `vectors` of (columns,), and writes as much."""

    def case(dtype: torch.dtype, device: str) -> Measured:
        def make() -> tuple[Tensor, ...]:
            shapes = [(rows, columns), *[(columns,)] * vectors]
            return tuple(torch.randn(*shape, device=device, dtype=dtype) for shape in shapes)

        written = rows * columns * dtype.itemsize
        work = Work(0.0, 2 * written + vectors * columns * dtype.itemsize)
        inputs = sets(make, work, written)
        calls = rotating(inputs, {"eager": plain, "compile": compiled(plain)})
        return Measured(calls, work.floor, plug=plugged(inputs, lambda *x: (*x, *extra)))

    return case


def gelu_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """GELU of a batch's tokens, next to plain torch and torch.compile."""

    def plain(x: Tensor) -> Tensor:
        return F.gelu(x)

    return _rows(plain, batch.tokens, size.intermediate, 0, ())(dtype, device)


def layer_norm_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """LayerNorm of a batch's tokens, next to plain torch and torch.compile."""

    def plain(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.layer_norm(x, (size.hidden,), gamma, beta, EPS)

    return _rows(plain, batch.tokens, size.hidden, 2, (EPS,))(dtype, device)


def softmax_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """Softmax of one head's scores, each token with its padded row, next to plain torch and torch.compile."""

    def plain(scores: Tensor) -> Tensor:
        return torch.softmax(scores, -1)

    return _rows(plain, batch.tokens, batch.padded, 0, ())(dtype, device)


WORKLOADS_OF_YOURS: dict[str, Maker] = {"gelu": gelu_case, "layer_norm": layer_norm_case, "softmax": softmax_case}

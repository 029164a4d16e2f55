"""Cases for functions of users that compute an operation for which this package has no kernel of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .measured import EPS, Maker, Measured, case, compiled
from .work import Batch, Size, Work


def _rows(
    plain: Callable[..., Tensor],
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    device: str,
    extra: tuple[Any, ...] = (),
) -> Measured:
    """An operation on arguments of these shapes, and `extra` ones; its result has the shape of the first."""

    def make() -> tuple[Tensor, ...]:
        return tuple(torch.randn(*shape, device=device, dtype=dtype) for shape in shapes)

    read, written = (dtype.itemsize * sum(map(math.prod, some)) for some in (shapes, shapes[:1]))
    functions = {"eager": plain, "compile": compiled(plain)}
    return case(make, functions, Work(0.0, read + written), written, lambda *x: (*x, *extra))


def gelu_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """GELU of a batch's tokens, next to plain torch and torch.compile."""

    def plain(x: Tensor) -> Tensor:
        return F.gelu(x)

    return _rows(plain, [(batch.tokens, size.intermediate)], dtype, device)


def layer_norm_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """LayerNorm of a batch's tokens, next to plain torch and torch.compile."""
    E = size.hidden

    def plain(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.layer_norm(x, (E,), gamma, beta, EPS)

    return _rows(plain, [(batch.tokens, E), (E,), (E,)], dtype, device, (EPS,))


def softmax_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """Softmax of one head's scores, each token with its padded row, next to plain torch and torch.compile."""

    def plain(scores: Tensor) -> Tensor:
        return torch.softmax(scores, -1)

    return _rows(plain, [(batch.tokens, batch.padded)], dtype, device)


WORKLOADS_OF_YOURS: dict[str, Maker] = {"gelu": gelu_case, "layer_norm": layer_norm_case, "softmax": softmax_case}

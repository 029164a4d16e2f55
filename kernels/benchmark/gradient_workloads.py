"""The competitors for gradients of single operations: our kernels, torch's own backward functions, torch.compile.

All start from the cotangent and the forward's inputs, as `..._vjp` does, and so compute again what a forward could have
kept: statistics, or the sum that is normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..dropout import dropout, dropout_vjp
from ..dropped_layer_norm import dropped_layer_norm_vjp
from ..embedding import embed_vjp
from ..gelu import bias_gelu_vjp
from ..layer_norm import add_layer_norm_vjp
from . import work as work_of
from .attention_gradient_workloads import ATTENTION_GRADIENTS
from .measured import EPS, OURS, Maker, Measured, case, compiled, joined
from .work import POSITIONS, VOCABULARY, Batch, Size

aten = torch.ops.aten
# Of dropout.
P, SEED = 0.1, 5


def norm_gradients(dy: Tensor, v: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Those of LayerNorm by torch's own functions; v, gamma, beta."""
    _, mean, rstd = aten.native_layer_norm(v, v.shape[-1:], gamma, gamma, eps)
    dv, dgamma, dbeta = aten.native_layer_norm_backward(dy, v, v.shape[-1:], mean, rstd, gamma, gamma, [True] * 3)
    return dv, dgamma, dbeta


def gelu_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """bias_gelu_vjp on a batch's tokens."""
    T, columns = batch.tokens, size.intermediate

    def plain(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        dx = aten.gelu_backward(dy, x + bias)
        return dx, dx.sum(0)

    def make() -> tuple[Tensor, ...]:
        shapes = ((T, columns), (T, columns), (columns,))
        return tuple(torch.randn(*shape, device=device, dtype=dtype) for shape in shapes)

    functions = {OURS: bias_gelu_vjp, "eager": plain, "compile": compiled(plain)}
    work = work_of.bias_gelu_vjp(size, T, dtype.itemsize)
    return case(make, functions, work, T * columns * dtype.itemsize, packed=joined)


def dropping(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """The seed as a tensor, a batch's tokens, and the mask of what is kept."""
    seed, tokens = torch.tensor(SEED, device=device), torch.arange(batch.tokens, device=device)
    ones = torch.ones(batch.tokens, size.hidden, device=device, dtype=dtype)
    return seed, tokens, dropout(ones, P, seed, tokens) != 0


def dropout_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """dropout_vjp on a batch's tokens, next to torch's own, which reads a mask that its forward has kept."""
    T, E = batch.tokens, size.hidden
    seed, tokens, mask = dropping(size, batch, dtype, device)
    functions = {
        OURS: lambda dy: dropout_vjp(dy, P, seed, tokens),
        "eager, mask kept": lambda dy: aten.native_dropout_backward(dy, mask, 1.0 / (1.0 - P)),
    }

    def make() -> tuple[Tensor]:
        return (torch.randn(T, E, device=device, dtype=dtype),)

    work = work_of.dropout_vjp(size, T, dtype.itemsize)
    return case(make, functions, work, T * E * dtype.itemsize, lambda dy: (dy, P, SEED, tokens))


def dropped_layer_norm_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """dropped_layer_norm_vjp on a batch's tokens, next to torch's own, which read a mask that the forward has kept."""
    T, E = batch.tokens, size.hidden
    seed, tokens, mask = dropping(size, batch, dtype, device)

    def plain(dy: Tensor, x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, ...]:
        v = aten.native_dropout_backward(x + bias, mask, 1.0 / (1.0 - P)) + residual
        dv, dgamma, dbeta = norm_gradients(dy, v, gamma, eps)
        dx = aten.native_dropout_backward(dv, mask, 1.0 / (1.0 - P))
        return dx, dx.sum(0), dv, dgamma, dbeta

    work = work_of.dropped_layer_norm_vjp(size, T, dtype.itemsize)
    ours = partial(dropped_layer_norm_vjp, p=P, seed=seed, tokens=tokens)
    functions = {OURS: ours, "eager, mask kept": plain, "compile, mask kept": compiled(plain)}
    make, written = _norm_inputs(T, E, dtype, device), 2 * T * E * dtype.itemsize
    return case(make, functions, work, written, lambda *x: (*x, P, SEED, tokens), joined)


def _norm_inputs(T: int, E: int, dtype: torch.dtype, device: str) -> Callable[[], tuple[Any, ...]]:
    """Makes dy, x, the bias, the residual, γ and ε."""
    shapes = ((T, E), (T, E), (E,), (T, E), (E,))
    return lambda: (*(torch.randn(*shape, device=device, dtype=dtype) for shape in shapes), EPS)


def layer_norm_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """add_layer_norm_vjp on a batch's tokens."""
    T, E = batch.tokens, size.hidden

    def plain(dy: Tensor, x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, ...]:
        dv, dgamma, dbeta = norm_gradients(dy, x + bias + residual, gamma, eps)
        return dv, dv.sum(0), dv.clone(), dgamma, dbeta

    functions = {OURS: add_layer_norm_vjp, "eager": plain, "compile": compiled(plain)}
    make, work = _norm_inputs(T, E, dtype, device), work_of.add_layer_norm_vjp(size, T, dtype.itemsize)
    return case(make, functions, work, 2 * T * E * dtype.itemsize, packed=joined)


def embed_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """embed_vjp of a batch's tokens with the whole vocabulary, whose gradient is dense."""
    T, E = batch.tokens, size.hidden
    word, position, gamma = (
        torch.randn(*shape, device=device, dtype=dtype) for shape in ((VOCABULARY, E), (POSITIONS, E), (E,))
    )
    places = torch.cat([torch.arange(n, device=device) for n in batch.lengths])

    def plain(
        dy: Tensor, ids: Tensor, places: Tensor, word: Tensor, position: Tensor, gamma: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        rows = places + 2
        d, dgamma, dbeta = norm_gradients(dy, word[ids] + position[rows], gamma, eps)
        tables = (aten.embedding_dense_backward(d, i, len(x), -1, False) for i, x in ((ids, word), (rows, position)))
        return *tables, dgamma, dbeta

    def make() -> tuple[Any, ...]:
        dy = torch.randn(T, E, device=device, dtype=dtype)
        return dy, torch.randint(len(word), (T,), device=device), places, word, position, gamma, EPS

    functions = {OURS: embed_vjp, "eager": plain, "compile": compiled(plain)}
    work = work_of.embed_vjp(size, batch, dtype.itemsize)
    return case(make, functions, work, (VOCABULARY + POSITIONS) * E * dtype.itemsize, packed=joined)


GRADIENTS: dict[str, Maker] = {
    **ATTENTION_GRADIENTS,
    "bias_gelu_vjp": gelu_case,
    "dropout_vjp": dropout_case,
    "add_layer_norm_vjp": layer_norm_case,
    "dropped_layer_norm_vjp": dropped_layer_norm_case,
    "embed_vjp": embed_case,
}

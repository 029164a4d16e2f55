"""The competitors for gradients of single operations: our kernels, torch's own backward functions, torch.compile.

All start from the cotangent and the forward's inputs, as `..._vjp` does, and so compute again what a forward could have
kept: statistics, or the sum that is normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ernie_m.reference.objectives import dense

from ..attention_groups_vjp import group_attention_vjp
from ..attention_vjp import packed_attention_vjp
from ..checking.drawing import pair_groups
from ..dropout import dropout, dropout_vjp
from ..dropped_layer_norm import dropped_layer_norm_vjp
from ..embedding import embed_vjp
from ..first_token import first_token_attention_vjp
from ..gelu import bias_gelu_vjp
from ..layer_norm import add_layer_norm_vjp
from . import work as work_of
from .measured import EPS, HEAD, OURS, Maker, Measured, compiled, cumulative, plugged, rotating, sets
from .work import POSITIONS, VOCABULARY, Batch, Size, Work

aten = torch.ops.aten
# Of dropout.
P, SEED = 0.1, 5


def joined(name: str, results: Any) -> Tensor:
    """All gradients in one tensor, for comparison."""
    return torch.cat([x.reshape(-1).float() for x in results])


def case(
    make: Callable[[], tuple[Any, ...]], ours: Callable[..., Any], plain: Callable[..., Any], work: Work, written: int
) -> Measured:
    """A case whose competitors have the arguments of `ours`."""
    inputs = sets(make, work, written)
    calls = rotating(inputs, {OURS: ours, "eager": plain, "compile": compiled(plain)})
    return Measured(calls, work.floor, plug=plugged(inputs, lambda *x: x), packed=joined)


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

    width = dtype.itemsize
    return case(make, bias_gelu_vjp, plain, work_of.bias_gelu_vjp(size, T, width), T * columns * width)


def dropping(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """The seed as a tensor, a batch's tokens, and the mask of what is kept."""
    seed, tokens = torch.tensor(SEED, device=device), torch.arange(batch.tokens, device=device)
    ones = torch.ones(batch.tokens, size.hidden, device=device, dtype=dtype)
    return seed, tokens, dropout(ones, P, seed, tokens) != 0


def dropout_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """dropout_vjp on a batch's tokens, next to torch's own, which reads a mask that its forward has kept."""
    T, E = batch.tokens, size.hidden
    seed, tokens, mask = dropping(size, batch, dtype, device)
    others = {"eager, mask kept": lambda dy: aten.native_dropout_backward(dy, mask, 1.0 / (1.0 - P))}
    work = work_of.dropout_vjp(size, T, dtype.itemsize)
    inputs = sets(lambda: (torch.randn(T, E, device=device, dtype=dtype),), work, T * E * dtype.itemsize)
    calls = rotating(inputs, {OURS: lambda dy: dropout_vjp(dy, P, seed, tokens), **others})
    return Measured(calls, work.floor, plug=plugged(inputs, lambda dy: (dy, P, SEED, tokens)))


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
    inputs = sets(_norm_inputs(T, E, dtype, device), work, 2 * T * E * dtype.itemsize)
    ours = partial(dropped_layer_norm_vjp, p=P, seed=seed, tokens=tokens)
    calls = rotating(inputs, {OURS: ours, "eager, mask kept": plain, "compile, mask kept": compiled(plain)})
    return Measured(calls, work.floor, plug=plugged(inputs, lambda *x: (*x, P, SEED, tokens)), packed=joined)


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

    make, work = _norm_inputs(T, E, dtype, device), work_of.add_layer_norm_vjp(size, T, dtype.itemsize)
    return case(make, add_layer_norm_vjp, plain, work, 2 * T * E * dtype.itemsize)


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

    work = work_of.embed_vjp(size, batch, dtype.itemsize)
    return case(make, embed_vjp, plain, work, (VOCABULARY + POSITIONS) * E * dtype.itemsize)


def attention_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """packed_attention_vjp, next to autograd through torch's own attention on padded rows (masked if ragged)."""
    cu, longest = cumulative(batch.lengths, device), max(batch.lengths)
    mask = _valid(batch, device)[:, None, None, :] if batch.ragged else None
    work = work_of.packed_attention_vjp(size, batch, dtype.itemsize)

    def ours(dy: Tensor, qkv: Tensor) -> Tensor:
        return packed_attention_vjp(dy, qkv, cu, longest)

    return _attention_case(size, batch, dtype, device, ours, cu, mask, work)


def group_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """group_attention_vjp on pairs, next to autograd through torch's own attention on padded rows under their mask."""
    (groups, mask), longest = pairs(batch, device), max(batch.lengths)
    work = work_of.group_attention_vjp(size, batch, dtype.itemsize)

    def ours(dy: Tensor, qkv: Tensor) -> Tensor:
        return group_attention_vjp(dy, qkv, groups, longest)

    return _attention_case(size, batch, dtype, device, ours, groups, mask, work)


def _attention_case(
    size: Size,
    batch: Batch,
    dtype: torch.dtype,
    device: str,
    ours: Callable[[Tensor, Tensor], Tensor],
    ends: Tensor,
    mask: Tensor | None,
    work: Work,
) -> Measured:
    """`ours` next to torch's own attention on padded rows under `mask`; `ends`: the operation's last argument."""
    T, H, S, valid = batch.tokens, size.heads, batch.padded, _valid(batch, device)

    def make() -> tuple[Tensor, ...]:
        qkv = torch.randn(T, 3, H, HEAD, device=device, dtype=dtype)
        dy = torch.randn(T, H, HEAD, device=device, dtype=dtype)
        rectangles = (torch.zeros(len(valid), S, *x.shape[1:], device=device, dtype=dtype) for x in (dy, qkv))
        padded_dy, padded = (
            rectangle.index_put((valid,), x) for rectangle, x in zip(rectangles, (dy, qkv), strict=True)
        )
        return dy, qkv, padded_dy.transpose(1, 2), padded.permute(2, 0, 3, 1, 4)

    def sdpa(dy: Tensor, qkv: Tensor, padded_dy: Tensor, padded: Tensor) -> Tensor:
        x = padded.detach().requires_grad_()
        context = F.scaled_dot_product_attention(x[0], x[1], x[2], attn_mask=mask)
        (gradient,) = torch.autograd.grad(context, x, padded_dy)
        return gradient.permute(1, 3, 0, 2, 4)[valid]

    inputs = sets(make, work, 3 * T * size.hidden * dtype.itemsize)
    functions = {OURS: lambda dy, qkv, *_: ours(dy, qkv), "SDPA, padded": sdpa}
    calls, plug = rotating(inputs, functions), plugged(inputs, lambda dy, qkv, *_: (dy, qkv, ends))
    return Measured(calls, work.floor, plug=plug)


def first_token_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """first_token_attention_vjp, next to autograd through torch's own attention with one query per padded row."""
    T, H, B, S = batch.tokens, size.heads, len(batch.lengths), batch.padded
    cu, valid = cumulative(batch.lengths, device), _valid(batch, device)
    mask = valid[:, None, None, :] if batch.ragged else None

    def make() -> tuple[Tensor, ...]:
        shapes = ((B,), (B,), (T, 2))
        dy, q, kv = (torch.randn(*shape, H, HEAD, device=device, dtype=dtype) for shape in shapes)
        padded = torch.zeros(B, S, 2, H, HEAD, device=device, dtype=dtype).index_put((valid,), kv)
        return dy, q, kv, padded.permute(2, 0, 3, 1, 4)

    def sdpa(dy: Tensor, q: Tensor, kv: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        x, y = q.detach().requires_grad_(), padded.detach().requires_grad_()
        context = F.scaled_dot_product_attention(x[:, :, None], y[0], y[1], attn_mask=mask)[:, :, 0]
        dq, d_padded = torch.autograd.grad(context, (x, y), dy)
        return dq, d_padded.permute(1, 3, 0, 2, 4)[valid]

    work = work_of.first_token_attention_vjp(size, batch, dtype.itemsize)
    inputs = sets(make, work, 2 * T * size.hidden * dtype.itemsize)
    functions = {OURS: lambda dy, q, kv, _: first_token_attention_vjp(dy, q, kv, cu), "SDPA, padded": sdpa}
    calls, plug = rotating(inputs, functions), plugged(inputs, lambda dy, q, kv, _: (dy, q, kv, cu))
    return Measured(calls, work.floor, plug=plug, packed=joined)


def pairs(batch: Batch, device: str) -> tuple[Tensor, Tensor]:  # -> (G, 5), (B, 1, S, S)
    """The rows of a batch as pairs of which CAMLM masks 15 %: their groups, and the mask of the padded batch.

    Padding sees itself, so that no row of scores is empty.
    """
    lengths = [work_of.pair_of(n) for n in batch.lengths]
    mask = torch.eye(batch.padded, dtype=torch.bool, device=device).repeat(len(lengths), 1, 1, 1)
    for row, pair in zip(mask[:, 0], lengths, strict=True):
        row[: sum(pair), : sum(pair)] = torch.from_numpy(dense(pair_groups([pair]), sum(pair)))
    return torch.from_numpy(pair_groups(lengths)).to(device), mask


def _valid(batch: Batch, device: str) -> Tensor:  # -> (B, S)
    """Where the padded batch has tokens."""
    return torch.arange(batch.padded, device=device) < torch.tensor(batch.lengths, device=device)[:, None]


GRADIENTS: dict[str, Maker] = {
    "packed_attention_vjp": attention_case,
    "group_attention_vjp": group_case,
    "first_token_attention_vjp": first_token_case,
    "bias_gelu_vjp": gelu_case,
    "dropout_vjp": dropout_case,
    "add_layer_norm_vjp": layer_norm_case,
    "dropped_layer_norm_vjp": dropped_layer_norm_case,
    "embed_vjp": embed_case,
}

"""From ids to vectors in one pass: gather the word and position rows, add, normalise.

    y = LayerNorm(word[id] + position[position_id + 2])

Grid: one program per token; BLOCK covers all E columns. Tokens are packed and each has its own position id, so nothing
here knows about rows or padding. Where values are not validated, the row of a token whose id or position is outside its
table is nan, and the tables get no gradient from it; the id is clamped, so it never becomes a stray address.

Twin: reference/embedding.py. Source: transformers 4.40.2, `ErnieMEmbeddings`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ernie_m.reference.embedding import POSITION_OFFSET

from .embedding_backward import embed_backward
from .embedding_backward import variants_backward as variants_backward
from .layer_norm import configuration, grid, normalise_row, plain_layer_norm, plain_layer_norm_vjp
from .runtime.arguments import check_device, check_eps, check_floats, check_integers, check_range, check_shape
from .runtime.derivative import refuse_second_derivatives
from .runtime.dispatch import runs_triton, should_validate, wants_plain
from .runtime.dtypes import TRITON_TYPES, name_of, widen
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Variant


@triton.jit
def table_row(ids, i_token, rows, OFFSET: tl.constexpr):
    """The table row that a token's id selects, clamped to the table's `rows` rows, and whether it had to be."""
    row = tl.load(ids + i_token).to(tl.int64) + OFFSET
    clamped = tl.minimum(tl.maximum(row, OFFSET), rows - 1)
    return clamped, clamped != row


@triton.jit
def embed_kernel(
    input_ids, position_ids, word, position, gamma, beta, y, V, P, eps,
    E: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # (T,), (T,), (V, E), (P, E), (E,), (E,) -> (T, E)  # fmt: skip
    """One token's row; the tables have V and P rows."""
    i_token = tl.program_id(0).to(tl.int64)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    i_word, no_word = table_row(input_ids, i_token, V, 0)
    i_position, no_position = table_row(position_ids, i_token, P, OFFSET)
    v = tl.load(word + i_word * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    v += tl.load(position + i_position * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    # One nan on the way reaches the whole row.
    eps = tl.where(no_word | no_position, float("nan"), eps)
    b_y, _, _ = normalise_row(v, m_e, gamma, beta, o_e, eps, E)
    tl.store(y + i_token * E + o_e, b_y.to(y.dtype.element_ty), mask=m_e)


def variants(target: str) -> Iterator[Variant]:
    """The kernel at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for E in (768, 1024):
            chosen = configuration(E)
            tables = dict.fromkeys(("word", "position", "gamma", "beta", "y"), f"*{kind}")
            signature = {"input_ids": "*i64", "position_ids": "*i64", **tables, "V": "i32", "P": "i32", "eps": "fp32"}
            constants = {"E": E, "OFFSET": POSITION_OFFSET, **chosen.blocks}
            name = name_of(dtype)
            yield Variant("embed", name, f"E={E}", embed_kernel, signature, constants, chosen, tile=1)


@torch.library.custom_op("ernie_m::embed", mutates_args=())
def _embed(
    input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> Tensor:
    if not runs_triton(word):
        return plain_embed(input_ids, position_ids, word, position, gamma, beta, eps)
    (V, E), P = word.shape, position.shape[0]
    y = torch.empty(*input_ids.shape, E, dtype=word.dtype, device=word.device)
    if y.numel():
        chosen = configuration(E)
        arrays = (input_ids, position_ids, word, position, gamma, beta)
        launch(
            embed_kernel,
            grid(input_ids.numel()),
            word,
            *(x.contiguous() for x in arrays),
            *(y, V, P, eps),
            E=E,
            OFFSET=POSITION_OFFSET,
            **chosen.blocks,
            **chosen.options,
        )
    return y


@_embed.register_fake
def _(
    input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> Tensor:
    return word.new_empty((*input_ids.shape, word.shape[1]))


def clamped(ids: Tensor, rows: int) -> tuple[Tensor, Tensor]:  # (...,) -> (...,) x 2
    """`ids` clamped to [0, rows), and which had to be."""
    inside = ids.clamp(0, rows - 1)
    return inside, inside != ids


def plain_embed(
    input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> Tensor:
    """The same in plain torch, differentiable; half precision is added and normalised in float32."""
    ids, unknown = clamped(input_ids, word.shape[0])
    positions, beyond = clamped(position_ids, position.shape[0] - POSITION_OFFSET)
    rows = torch.nn.functional.embedding(positions + POSITION_OFFSET, position)
    v = widen(torch.nn.functional.embedding(ids, word)) + widen(rows)
    y = plain_layer_norm(v, widen(gamma), widen(beta), eps)[0].to(word.dtype)
    # The nan is a constant: no gradient passes it, so it poisons no table.
    return y.masked_fill((unknown | beyond)[..., None], math.nan)


def plain_embed_vjp(
    dy: Tensor, input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor, gamma: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in plain torch, differentiable once more."""
    ids, unknown = clamped(input_ids, word.shape[0])
    places, beyond = clamped(position_ids, position.shape[0] - POSITION_OFFSET)
    ids, places, E = ids.flatten(), places.flatten() + POSITION_OFFSET, word.shape[1]
    outside = (unknown | beyond).flatten()[:, None]
    v = (widen(word[ids]) + widen(position[places])).masked_fill(outside, 0)
    wide = widen(dy).reshape(-1, E).masked_fill(outside, 0)
    variance, means = torch.var_mean(v, -1, correction=0)
    variance = variance.masked_fill(outside[:, 0], 1)
    d, dgamma, dbeta = plain_layer_norm_vjp(wide, v, widen(gamma), means, (variance + eps).rsqrt())
    d = d.masked_fill(outside, 0)
    d_word, d_position = (
        torch.zeros_like(widen(table)).index_add(0, rows, d) for table, rows in ((word, ids), (position, places))
    )
    return d_word.to(word.dtype), d_position.to(position.dtype), dgamma.to(gamma.dtype), dbeta.to(gamma.dtype)


@torch.library.custom_op("ernie_m::embed_vjp", mutates_args=())
def _embed_vjp(
    dy: Tensor, input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor, gamma: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dy, input_ids, position_ids = dy.contiguous(), input_ids.contiguous(), position_ids.contiguous()
    word, position, gamma = word.contiguous(), position.contiguous(), gamma.contiguous()
    function = embed_backward if runs_triton(word) else plain_embed_vjp
    return function(dy, input_ids, position_ids, word, position, gamma, eps)


@_embed_vjp.register_fake
def _(
    dy: Tensor, input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor, gamma: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_word, d_position, dgamma, dbeta = (x.new_empty(x.shape) for x in (word, position, gamma, gamma))
    return d_word, d_position, dgamma, dbeta


refuse_second_derivatives(_embed_vjp)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    d_word, d_position, dgamma, dbeta = _embed_vjp(dy, *ctx.saved_tensors, ctx.eps)
    return None, None, d_word, d_position, dgamma, dbeta, None


_embed.register_autograd(_backward, setup_context=_keep)


def embed_unchecked(
    input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> Tensor:  # (...,), (...,), (V, E), (P, E), (E,), (E,) -> (..., E)
    """`embed` for callers that have checked the arguments."""
    plain = wants_plain(word, position, gamma, beta, differentiable=True)
    y: Tensor = (plain_embed if plain else _embed)(input_ids, position_ids, word, position, gamma, beta, eps)
    return y


def embed(
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    validate: bool = False,
) -> Tensor:  # (...,), (...,), (V, E), (P, E), (E,), (E,) -> (..., E)
    """Embed ids at positions; both are int32 or int64, of the same shape, packed (T,) or padded (B, S).

    Raises TypeError or ValueError, naming the argument. Ids outside [0, V) and positions outside [0, P - 2) raise on a
    CPU; on a GPU only with `validate=True`, because it synchronises. Elsewhere, such a token's row is nan.
    """
    check_floats(word=word, position=position, gamma=gamma, beta=beta)
    _check(input_ids, position_ids, word, position, gamma=gamma, beta=beta)
    if should_validate(word, validate):
        _check_values(input_ids, position_ids, word, position)
    return embed_unchecked(input_ids, position_ids, word, position, gamma, beta, check_eps(eps))


def embed_vjp(
    dy: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    gamma: Tensor,
    eps: float,
    validate: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # (..., E), (...,) x 2, (V, E), (P, E), (E,) -> (V, E), (P, E), (E,) x 2
    """The gradients of the tables, γ and β, if `dy` is that of `embed`: a table's row gets the sum over the tokens that
    read it, added in float32 in an order that only depends on the ids.

    Errors and ids are as in `embed`; a token outside a table takes no part.
    """
    check_floats(dy=dy, word=word, position=position, gamma=gamma)
    eps = check_eps(eps)
    _check(input_ids, position_ids, word, position, gamma=gamma)
    check_shape("dy", dy, (*input_ids.shape, word.shape[1]), "(..., E)")
    if should_validate(word, validate):
        _check_values(input_ids, position_ids, word, position)
    plain = wants_plain(dy, word, position, gamma, differentiable=True)
    gradients = (plain_embed_vjp if plain else _embed_vjp)(dy, input_ids, position_ids, word, position, gamma, eps)
    d_word, d_position, dgamma, dbeta = gradients
    return d_word, d_position, dgamma, dbeta


def _check(input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor, **vectors: Tensor) -> None:
    """Shapes, dtypes of ids and devices."""
    check_shape("word", word, (None, None), "(V, E)")
    E = word.shape[1]
    check_shape("position", position, (None, E), "(P, E)")
    if min(word.shape[0], position.shape[0] - POSITION_OFFSET) < 1:
        raise ValueError(f"word, position: expected at least 1 and 3 rows, got {word.shape[0]}, {position.shape[0]}")
    for name, vector in vectors.items():
        check_shape(name, vector, (E,), "(E,)")
    for name, ids in (("input_ids", input_ids), ("position_ids", position_ids)):
        check_integers(name, ids)
        check_device(name, ids, "word", word)
    check_shape("position_ids", position_ids, tuple(input_ids.shape), "the shape of input_ids")


def _check_values(input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor) -> None:
    check_range("input_ids", input_ids, word.shape[0], "a vocabulary of {} rows")
    check_range("position_ids", position_ids, position.shape[0] - POSITION_OFFSET, "a position table for {} tokens")

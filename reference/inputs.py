"""What a call may be given, and what it means: ids or vectors, masks, positions.

Everything a caller passes is checked here, at the edge, before any work: one error that names the argument, what was
expected and what came. Behind this file nothing is checked again, and nothing that the caller passed is changed.

A position is *padding* if the (B, S) mask says 0, or if its row of a (B, S, S) mask allows nothing. Padding is zero
in every hidden state, takes part in nothing, and its contents are not looked at beyond these checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import ErnieMConfig
from .embedding import POSITION_OFFSET, check_range
from .parameters import Array

CLS_TOKEN_ID = 0
CLS_KEY_PENALTY = -1e4


@dataclass(frozen=True)
class Inputs:
    """A call's inputs, checked.

    Either `input_ids` (B, S) or `inputs_embeds` (B, S, E). `valid` (B, S): True where a token stands; None if all of
    the rectangle is tokens. `mask`: beyond `valid`, what attends to what, broadcast to (B, H, S, S), boolean or added
    to the scores; None if every token attends to every token of its row.
    """

    input_ids: Array | None
    inputs_embeds: Array | None
    position_ids: Array
    valid: Array | None
    mask: Array | None


def check_inputs(
    config: ErnieMConfig, dtype: Any, input_ids: Any, attention_mask: Any, position_ids: Any, inputs_embeds: Any
) -> Inputs:
    """Check what a call was given, and fill in what it left out: the mask, and positions that count columns.

    Raises TypeError or ValueError, naming the argument.
    """
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"input_ids, inputs_embeds: expected exactly one of the two, got {given}")
    ids, vectors = None, None
    if input_ids is not None:
        ids = integers("input_ids", input_ids)
        if ids.ndim != 2 or ids.size == 0:
            raise ValueError(f"input_ids: expected shape (B, S) with at least one row and column, got {ids.shape}")
        check_range("input_ids", ids, config.vocab_size, "a vocabulary of {} rows")
        B, S = ids.shape
    else:
        vectors = np.asarray(inputs_embeds)
        if vectors.dtype.kind != "f":
            raise TypeError(f"inputs_embeds: expected floating point numbers, got {vectors.dtype}")
        if vectors.ndim != 3 or vectors.size == 0 or vectors.shape[2] != config.hidden_size:
            raise ValueError(f"inputs_embeds: expected shape (B, S, {config.hidden_size}), got {vectors.shape}")
        vectors = vectors.astype(dtype, copy=False)
        B, S, _ = vectors.shape

    valid, mask = _masks(config, dtype, ids, attention_mask, (B, S))
    if valid is not None and valid.all():
        valid = None
    positions = _positions(config, position_ids, valid, (B, S))
    return Inputs(ids, vectors, positions, valid, mask)


def _masks(
    config: ErnieMConfig, dtype: Any, ids: Array | None, attention_mask: Any, shape: tuple[int, int]
) -> tuple[Array | None, Array | None]:
    """`valid` and `mask` of `Inputs`, from the caller's mask or, without one, from `config.default_mask`."""
    B, S = shape
    if attention_mask is None:
        if ids is None:
            return None, None
        if config.default_mask == "pad_token":
            return ids != config.pad_token_id, None
        penalty = np.where(ids == CLS_TOKEN_ID, CLS_KEY_PENALTY, 0.0).astype(dtype)
        return None, penalty[:, None, None, :]

    given = np.asarray(attention_mask)
    if given.shape not in ((B, S), (B, S, S)):
        expected = f"expected shape (B, S) = {(B, S)} or (B, S, S) = {(B, S, S)}"
        raise ValueError(f"attention_mask: {expected}, got {given.shape}")
    allowed = zeros_and_ones("attention_mask", given)
    if given.ndim == 2:
        return allowed, None
    # A token that may attend to nothing is padding, and so nobody attends to it; that may leave another with nothing.
    while True:
        valid: Array = np.any(allowed, axis=2)
        settled = allowed & valid[:, None, :]
        if np.array_equal(settled, allowed):
            return valid, allowed[:, None, :, :]
        allowed = settled


def _positions(config: ErnieMConfig, position_ids: Any, valid: Array | None, shape: tuple[int, int]) -> Array:
    """Position of each place of the rectangle, (B, S); padding may stand beyond the table, and gets 0."""
    limit = config.max_position_embeddings - POSITION_OFFSET
    if position_ids is None:
        positions = np.broadcast_to(np.arange(shape[1]), shape)
        used = positions if valid is None else positions[valid]
        if used.size and used.max() >= limit:
            raise ValueError(
                f"input_ids: expected sequences of at most {limit} tokens, the length of the position table, "
                f"got {int(used.max()) + 1}"
            )
    else:
        positions = integers("position_ids", position_ids)
        if positions.shape not in (shape, (1, shape[1])):
            raise ValueError(f"position_ids: expected shape (B, S) = {shape}, got {positions.shape}")
        positions = np.broadcast_to(positions, shape)
    if valid is not None:
        positions = np.where(valid, positions, 0)
    check_range("position_ids", positions, limit, "a position table for {} tokens")
    return positions


def check_head_mask(config: ErnieMConfig, dtype: Any, head_mask: Any) -> list[Array | None]:
    """One (H,) array for each layer, or None; of a layer that was pruned, only the heads that it still has.

    Raises ValueError unless the mask is (H,), for all layers, or (L, H), with the heads of the unpruned model.
    """
    L, H = config.num_hidden_layers, config.num_attention_heads
    if head_mask is None:
        return [None] * L
    mask = np.asarray(head_mask)
    if mask.dtype.kind not in "biuf":
        raise TypeError(f"head_mask: expected numbers, got {mask.dtype}")
    if mask.shape not in ((H,), (L, H)):
        raise ValueError(f"head_mask: expected shape (H,) = ({H},) or (L, H) = {(L, H)}, got {mask.shape}")
    rows = np.broadcast_to(mask, (L, H)).astype(dtype)
    return [np.delete(rows[i], list(config.pruned_heads.get(i, ()))) for i in range(L)]


def integers(name: str, values: Any) -> Array:
    """`values` as an array of integers; TypeError, naming the argument, if they are anything else (bool too)."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name}: expected rows of one length, got a ragged list") from None
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    return array


def zeros_and_ones(name: str, values: Array) -> Array:
    """`values` as booleans; an error, naming the argument, unless they are booleans, or numbers that are all 0 or 1."""
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected booleans, or numbers that are 0 or 1, got {values.dtype}")
    if values.dtype != bool and not ((values == 0) | (values == 1)).all():
        wrong = values[(values != 0) & (values != 1)][0]
        raise ValueError(f"{name}: expected booleans, or numbers that are 0 or 1, got {wrong}")
    return values.astype(bool)

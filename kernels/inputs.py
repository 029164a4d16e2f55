"""What a call may be given, and what it means: ids or vectors, masks, positions.

Type, shape and device are checked always; values where the model is on a CPU, or with `model.validate = True`, as
looking means waiting for a GPU, and never in a graph that is being compiled. Nothing that the caller passed is changed.

Nothing here branches on a value: whether there is padding, or how much, is not known until the GPU has counted it.

Twin: reference/inputs.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.embedding import POSITION_OFFSET
from ernie_m.reference.inputs import CLS_KEY_PENALTY, CLS_TOKEN_ID

from .operation import check_device, check_range


@dataclass(frozen=True)
class Inputs:
    """A call's inputs, checked.

    Either `input_ids` (B, S) or `inputs_embeds` (B, S, E). `valid` (B, S): True where a token stands; None if all of
    the rectangle is tokens. `mask`: beyond `valid`, what attends to what, broadcast to (B, H, S, S), boolean or added
    to the scores; None if every token attends to every token of its row.
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    position_ids: Tensor
    valid: Tensor | None
    mask: Tensor | None


def check_inputs(
    config: ErnieMConfig,
    like: Tensor,
    input_ids: Any,
    attention_mask: Any,
    position_ids: Any,
    inputs_embeds: Any,
    look: bool,
) -> Inputs:
    """Check what a call was given, and fill in what it left out: the mask, and positions that count columns.

    `like` has the model's dtype and device; `look`: whether to check values too. Raises TypeError or ValueError, naming
    the argument.
    """
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"input_ids, inputs_embeds: expected exactly one of the two, got {given}")
    ids, vectors = None, None
    if input_ids is not None:
        ids = integers("input_ids", input_ids, like)
        if ids.dim() != 2 or ids.numel() == 0:
            shape = tuple(ids.shape)
            raise ValueError(f"input_ids: expected shape (B, S) with at least one row and column, got {shape}")
        if look:
            check_range("input_ids", ids, config.vocab_size, "a vocabulary of {} rows")
        B, S = ids.shape
    else:
        vectors = on_device("inputs_embeds", inputs_embeds, like)
        if not vectors.dtype.is_floating_point:
            raise TypeError(f"inputs_embeds: expected floating point numbers, got {vectors.dtype}")
        if vectors.dim() != 3 or vectors.numel() == 0 or vectors.shape[2] != config.hidden_size:
            shape = tuple(vectors.shape)
            raise ValueError(f"inputs_embeds: expected shape (B, S, {config.hidden_size}), got {shape}")
        vectors = vectors.to(like.dtype)
        B, S, _ = vectors.shape
    valid, mask = _masks(config, like, ids, attention_mask, (B, S), look)
    positions = _positions(config, like, position_ids, valid, (B, S), look)
    return Inputs(ids, vectors, positions, valid, mask)


def _masks(
    config: ErnieMConfig, like: Tensor, ids: Tensor | None, attention_mask: Any, shape: tuple[int, int], look: bool
) -> tuple[Tensor | None, Tensor | None]:
    """`valid` and `mask` of `Inputs`, from the caller's mask or, without one, from `config.default_mask`."""
    B, S = shape
    if attention_mask is None:
        if ids is None:
            return None, None
        if config.default_mask == "pad_token":
            return ids != config.pad_token_id, None
        penalty = torch.zeros(B, S, dtype=like.dtype, device=like.device)
        return None, penalty.masked_fill(ids == CLS_TOKEN_ID, CLS_KEY_PENALTY)[:, None, None, :]
    given = on_device("attention_mask", attention_mask, like)
    if given.shape not in ((B, S), (B, S, S)):
        expected = f"expected shape (B, S) = {(B, S)} or (B, S, S) = {(B, S, S)}"
        raise ValueError(f"attention_mask: {expected}, got {tuple(given.shape)}")
    allowed = zeros_and_ones("attention_mask", given, look)
    if given.dim() == 2:
        return allowed, None
    valid = settled(allowed)
    return valid, (allowed & valid[:, None, :])[:, None, :, :]


def settled(allowed: Tensor) -> Tensor:  # (B, S, S) -> (B, S)
    """Which tokens are none of padding, under a mask that says what each may attend to.

    A token that may attend to nothing is padding, and so nobody attends to it; that may leave another with nothing, and
    so on. What remains are the tokens from which a walk of S steps leads on: squaring the matrix of one step doubles
    the steps, so ⌈log2 S⌉ products find them, without asking after each whether anything has changed.
    """
    steps, walks = 1, allowed.to(torch.float32)
    while steps < allowed.shape[1]:
        walks = (walks @ walks > 0).to(torch.float32)
        steps *= 2
    return walks.any(dim=2)


def _positions(
    config: ErnieMConfig, like: Tensor, position_ids: Any, valid: Tensor | None, shape: tuple[int, int], look: bool
) -> Tensor:
    """Position of each place of the rectangle, (B, S); padding may stand beyond the table."""
    B, S = shape
    limit = config.max_position_embeddings - POSITION_OFFSET
    if position_ids is None:
        positions = torch.arange(S, device=like.device).expand(B, S)
    else:
        positions = integers("position_ids", position_ids, like)
        if positions.shape not in ((B, S), (1, S)):
            raise ValueError(f"position_ids: expected shape (B, S) = {(B, S)}, got {tuple(positions.shape)}")
        positions = positions.expand(B, S)
    used = positions.masked_fill(~valid, 0) if look and valid is not None else positions
    # Without padding the shape alone tells.
    longest = int(used.max()) + 1 if look else S if valid is None else 0
    if position_ids is None and longest > limit:
        wanted = f"sequences of at most {limit} tokens, the length of the position table"
        raise ValueError(f"input_ids: expected {wanted}, got {longest}")
    if look:
        check_range("position_ids", used, limit, "a position table for {} tokens")
    return positions


def check_head_mask(config: ErnieMConfig, like: Tensor, head_mask: Any) -> list[Tensor | None]:
    """One (H,) tensor for each layer, or None; of a layer that was pruned, only the heads that it still has.

    Raises ValueError unless the mask is (H,), for all layers, or (L, H), with the heads of the unpruned model.
    """
    L, H = config.num_hidden_layers, config.num_attention_heads
    if head_mask is None:
        return [None] * L
    on_device("head_mask", head_mask, like)
    if not is_number(head_mask):
        raise TypeError(f"head_mask: expected numbers, got {head_mask.dtype}")
    if head_mask.shape not in ((H,), (L, H)):
        got = tuple(head_mask.shape)
        raise ValueError(f"head_mask: expected shape (H,) = ({H},) or (L, H) = {(L, H)}, got {got}")
    rows = head_mask.to(like.dtype).expand(L, H)
    kept = [[h for h in range(H) if h not in config.pruned_heads.get(i, ())] for i in range(L)]
    return [rows[i, heads] for i, heads in enumerate(kept)]


def is_number(values: Tensor) -> bool:
    """Whether a tensor holds booleans, integers or floating point numbers: no complex ones."""
    return not values.dtype.is_complex


def on_device(name: str, values: Any, like: Tensor) -> Tensor:
    """`values`, or an error that names the argument unless it is a tensor on the device of `like`, the model's."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(values).__name__}")
    check_device(name, values, "the model", like)
    return values


def integers(name: str, values: Any, like: Tensor) -> Tensor:
    """`values` as int32 or int64; TypeError, naming the argument, if they are no integers (booleans are none)."""
    on_device(name, values, like)
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {values.dtype}")
    return values if values.dtype in (torch.int32, torch.int64) else values.to(torch.int64)


def zeros_and_ones(name: str, values: Tensor, look: bool) -> Tensor:
    """`values` as booleans; an error, naming the argument, unless they are booleans, or numbers that are all 0 or 1."""
    if not is_number(values):
        raise TypeError(f"{name}: expected booleans, or numbers that are 0 or 1, got {values.dtype}")
    if look and values.dtype != torch.bool:
        wrong = values[(values != 0) & (values != 1)]
        if wrong.numel():
            raise ValueError(f"{name}: expected booleans, or numbers that are 0 or 1, got {wrong[0].item()}")
    return values != 0

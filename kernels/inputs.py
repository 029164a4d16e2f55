"""The inputs of a call, validated: ids or vectors, masks, positions.

Types, shapes and devices are always checked. Values are checked if the model is on a CPU; on a GPU only with
`model.validate = True`, because it synchronises; never in a graph that is being compiled. The caller's arguments are
not changed.

Nothing here branches on a value: whether there is padding, and how much, is unknown until the GPU has counted it.

Twin: reference/inputs.py, which holds the shape checks and all messages.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ernie_m.reference import inputs as shared
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.embedding import POSITION_OFFSET
from ernie_m.reference.inputs import CLS_KEY_PENALTY, CLS_TOKEN_ID, POSITIONS, VOCABULARY, Inputs

from .runtime.arguments import check_device, check_range
from .runtime.dispatch import transformed, without_values
from .runtime.dtypes import widen


def check_inputs(
    config: ErnieMConfig,
    like: Tensor,
    input_ids: Any,
    attention_mask: Any,
    position_ids: Any,
    inputs_embeds: Any,
    validate: bool,
) -> Inputs[Tensor]:
    """Validate a call's arguments and fill in those it left out: the mask, and positions that count columns.

    `like` has the model's dtype and device; `validate`: whether to check values too. Raises TypeError or ValueError,
    naming the argument.
    """
    shared.check_one_given(input_ids, inputs_embeds)
    ids, vectors = None, None
    if input_ids is not None:
        ids = integers("input_ids", input_ids, like)
        batch = shared.check_ids_shape(ids.shape)
        if validate:
            check_range("input_ids", ids, config.vocab_size, VOCABULARY)
    else:
        vectors = on_device("inputs_embeds", inputs_embeds, like)
        if not vectors.dtype.is_floating_point:
            raise TypeError(f"inputs_embeds: expected floating-point numbers, got {vectors.dtype}")
        batch = shared.check_embeds_shape(vectors.shape, config.hidden_size)
        vectors = vectors.to(like.dtype)
    valid, mask = _masks(config, like, ids, attention_mask, batch, validate)
    name = "inputs_embeds" if ids is None else "input_ids"
    positions = _positions(config, name, like, position_ids, valid, batch, validate)
    return Inputs(ids, vectors, positions, valid, mask)


def _masks(
    config: ErnieMConfig, like: Tensor, ids: Tensor | None, attention_mask: Any, batch: tuple[int, int], validate: bool
) -> tuple[Tensor | None, Tensor | None]:
    """`valid` and `mask` of `Inputs`, from the caller's mask or, without one, from `config.default_mask`."""
    if attention_mask is None:
        if ids is None:
            return None, None
        if config.default_mask == "pad_token":
            return ids != config.pad_token_id, None
        penalty = torch.zeros(batch, dtype=like.dtype, device=like.device)
        return None, penalty.masked_fill(ids == CLS_TOKEN_ID, CLS_KEY_PENALTY)[:, None, None, :]
    given = on_device("attention_mask", attention_mask, like)
    shared.check_mask_shape(given.shape, batch, given.dtype)
    if given.dim() == 4:
        given = given[:, 0, 0] if given.shape[2] == 1 < batch[1] else given[:, 0]
    allowed = zeros_and_ones("attention_mask", given, validate)
    if given.dim() == 2:
        return allowed, None
    valid = settled(allowed)
    return valid, (allowed & valid[:, None, :])[:, None, :, :]


def settled(allowed: Tensor) -> Tensor:  # (B, S, S) -> (B, S)
    """Which positions hold real tokens, under a mask that says what each may attend to.

    A token that may attend to nothing is padding, so no token attends to it; that may leave another with nothing, and
    so on. The real tokens are those from which a walk of S steps exists. Squaring the one-step matrix doubles the
    number of steps, so ⌈log2 S⌉ products find them, with no test after each for whether anything changed.
    """
    steps, walks = 1, allowed.to(torch.float32)
    while steps < allowed.shape[1]:
        walks = (walks @ walks > 0).to(torch.float32)
        steps *= 2
    return walks.any(dim=2)


def _positions(
    config: ErnieMConfig,
    name: str,
    like: Tensor,
    position_ids: Any,
    valid: Tensor | None,
    batch: tuple[int, int],
    validate: bool,
) -> Tensor:
    """The position id of each token, (B, S); padding may have one beyond the table."""
    B, S = batch
    limit = config.max_position_embeddings - POSITION_OFFSET
    if position_ids is None:
        positions = torch.arange(S, device=like.device).expand(B, S)
    else:
        positions = integers("position_ids", position_ids, like)
        shared.check_positions_shape(positions.shape, batch)
        positions = positions.expand(B, S)
    used = positions.masked_fill(~valid, 0) if validate and valid is not None else positions
    if position_ids is None:
        shared.check_length(name, int(used.max()) + 1 if validate else S, limit, padded=not validate)
    if validate:
        check_range("position_ids", used, limit, POSITIONS)
    return positions


def check_token_types(token_type_ids: Any, like: Tensor, validate: bool) -> None:
    """Raise ValueError unless `token_type_ids`, which ERNIE-M does not have, are absent or all 0."""
    if token_type_ids is not None:
        values = integers("token_type_ids", token_type_ids, like)
        if validate and bool(values.any()):
            raise ValueError(shared.TOKEN_TYPES)


def warn_of_mask(model: Any, ids: Tensor | None, attention_mask: Tensor | None) -> None:
    """Warn, once for each model, if its default mask hides [CLS] and the caller's (B, S) mask does not.

    Not in a graph that is being compiled or captured. On a GPU only the first mask is looked at, which synchronises.
    """
    if torch.compiler.is_compiling() or model.config.default_mask != "cls_token" or model.warned_of_mask:
        return
    if ids is None or attention_mask is None or attention_mask.dim() != 2:
        return
    if transformed() or torch.jit.is_tracing() or without_values(ids, attention_mask):
        return
    if ids.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    shown = bool(((attention_mask != 0) & (ids == CLS_TOKEN_ID)).any())
    model.warned_of_mask = shown or ids.device.type != "cpu"
    if shown:
        warnings.warn(shared.UNEXPECTED_MASK, stacklevel=4)


def check_head_mask(config: ErnieMConfig, like: Tensor, head_mask: Any) -> list[Tensor | None]:
    """One (H,) tensor for each layer, or None; for a pruned layer, only its remaining heads.

    Raises ValueError unless the mask is (H,), for all layers, or (L, H), with the heads of the unpruned model.
    """
    L, H = config.num_hidden_layers, config.num_attention_heads
    if head_mask is None:
        return [None] * L
    on_device("head_mask", head_mask, like)
    if not is_number(head_mask):
        raise TypeError(f"head_mask: expected numbers, got {head_mask.dtype}")
    shared.check_head_mask_shape(head_mask.shape, (L, H))
    rows = head_mask.to(like.dtype).expand(L, H)
    kept = [[h for h in range(H) if h not in config.pruned_heads.get(i, ())] for i in range(L)]
    return [rows[i, heads] for i, heads in enumerate(kept)]


def is_number(values: Tensor) -> bool:
    """Whether a tensor holds booleans, integers or floating-point numbers; complex ones do not count."""
    return not values.dtype.is_complex


def on_device(name: str, values: Any, like: Tensor) -> Tensor:
    """Return `values`. Raises an error, naming the argument, unless it is a tensor on the device of `like`."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(values).__name__}")
    check_device(name, values, "the model", like)
    return values


def integers(name: str, values: Any, like: Tensor) -> Tensor:
    """`values` as int32 or int64. Raises TypeError, naming the argument, for any other type, even booleans."""
    on_device(name, values, like)
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {values.dtype}")
    return values if values.dtype in (torch.int32, torch.int64) else values.to(torch.int64)


def zeros_and_ones(name: str, values: Tensor, validate: bool) -> Tensor:
    """`values` as booleans. Raises an error unless they are booleans, or numbers that are all 0 or 1."""
    if not is_number(values):
        raise TypeError(f"{name}: expected booleans or numbers that are 0 or 1, got {values.dtype}")
    if validate and values.dtype != torch.bool:
        numbers = widen(values) if values.dtype.is_floating_point else values
        shared.check_zeros_and_ones(name, numbers.numpy(force=True))
    return values != 0

"""The inputs of a call, validated: ids or vectors, masks, positions.

All arguments are validated here, before any computation. An error names the argument, what was expected and what was
passed. Nothing is validated again later, and the caller's arrays are never modified.

A position is *padding* if the (B, S) mask is 0 there, or if its row of a (B, S, S) mask is all 0. Padding is zero in
every hidden state and affects no other position, whatever values it holds.

The shape checks take shapes, not arrays, and are shared with `ernie_m.kernels`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from .array import Array, check_range, true_or_false
from .config import ErnieMConfig
from .config.files import CALL_DEFAULTS
from .embedding import POSITION_OFFSET

CLS_TOKEN_ID = 0
CLS_KEY_PENALTY = -1e4
UNEXPECTED_MASK = (
    "attention_mask: this model learnt with [CLS] masked (default_mask='cls_token'), so with a mask that is 1 at [CLS] "
    "its results differ: pass none for texts of one length, else attention_mask * (input_ids != 0)"
)
TOKEN_TYPES = "token_type_ids: ERNIE-M has no token types: expected none, or all 0"
VOCABULARY, POSITIONS = "a vocabulary of {} rows", "a position table for {} tokens"

A = TypeVar("A")  # the type of array
Shape = tuple[int, ...]

# The arguments of a call, by position, and its options, by name.
ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "head_mask", "inputs_embeds")
OPTIONS = (*CALL_DEFAULTS, "token_type_ids")


@dataclass(frozen=True)
class Inputs(Generic[A]):
    """The validated inputs of a call.

    Either `input_ids` (B, S) or `inputs_embeds` (B, S, E). `valid` (B, S): True at real tokens; None means no padding.
    `mask`: any further limit on attention, broadcast to (B, H, S, S), boolean or added to the scores; None if every
    token attends to every token of its row.
    """

    input_ids: A | None
    inputs_embeds: A | None
    position_ids: A
    valid: A | None
    mask: A | None


def check_inputs(
    config: ErnieMConfig, dtype: Any, input_ids: Any, attention_mask: Any, position_ids: Any, inputs_embeds: Any
) -> Inputs[Array]:
    """Validate the arguments of a call and fill in defaults: the mask, and column numbers as positions.

    Raises TypeError or ValueError, naming the argument.
    """
    check_one_given(input_ids, inputs_embeds)
    ids, vectors = None, None
    if input_ids is not None:
        ids = integers("input_ids", input_ids)
        B, S = check_ids_shape(ids.shape)
        check_range("input_ids", ids, config.vocab_size, VOCABULARY)
    else:
        vectors = np.asarray(inputs_embeds)
        if vectors.dtype.kind != "f":
            raise TypeError(f"inputs_embeds: expected floating-point numbers, got {vectors.dtype}")
        B, S = check_embeds_shape(vectors.shape, config.hidden_size)
        vectors = vectors.astype(dtype, copy=False)

    valid, mask = _masks(config, dtype, ids, attention_mask, (B, S))
    if valid is not None and valid.all():
        valid = None
    name = "inputs_embeds" if ids is None else "input_ids"
    positions = _positions(config, name, position_ids, valid, (B, S))
    return Inputs(ids, vectors, positions, valid, mask)


def _masks(
    config: ErnieMConfig, dtype: Any, ids: Array | None, attention_mask: Any, shape: tuple[int, int]
) -> tuple[Array | None, Array | None]:
    """`valid` and `mask` of `Inputs`, from the caller's mask or, if there is none, from `config.default_mask`."""
    if attention_mask is None:
        if ids is None:
            return None, None
        if config.default_mask == "pad_token":
            return ids != config.pad_token_id, None
        penalty = np.where(ids == CLS_TOKEN_ID, CLS_KEY_PENALTY, 0.0).astype(dtype)
        return None, penalty[:, None, None, :]

    given = np.asarray(attention_mask)
    check_mask_shape(given.shape, shape, given.dtype)
    if given.ndim == 4:
        given = given[:, 0, 0] if given.shape[2] == 1 < shape[1] else given[:, 0]
    allowed = zeros_and_ones("attention_mask", given)
    if given.ndim == 2:
        return allowed, None
    # A token that may attend to nothing is padding, so no token may attend to it. That can make others padding too.
    while True:
        valid: Array = np.any(allowed, axis=2)
        settled = allowed & valid[:, None, :]
        if np.array_equal(settled, allowed):
            return valid, allowed[:, None, :, :]
        allowed = settled


def _positions(
    config: ErnieMConfig, name: str, position_ids: Any, valid: Array | None, shape: tuple[int, int]
) -> Array:
    """Position ids (B, S). Padding may lie beyond the position table, and gets 0."""
    limit = config.max_position_embeddings - POSITION_OFFSET
    if position_ids is None:
        positions = np.broadcast_to(np.arange(shape[1]), shape)
        used = positions if valid is None else positions[valid]
        check_length(name, int(used.max(initial=-1)) + 1, limit)
    else:
        positions = integers("position_ids", position_ids)
        check_positions_shape(positions.shape, shape)
        positions = np.broadcast_to(positions, shape)
    if valid is not None:
        positions = np.where(valid, positions, 0)
    check_range("position_ids", positions, limit, POSITIONS)
    return positions


def warn_of_mask(model: Any, ids: Array | None, attention_mask: Any) -> None:
    """Warn, once for each model, if its default mask hides [CLS] and the caller's (B, S) mask does not."""
    if model.config.default_mask != "cls_token" or model.warned_of_mask or ids is None or attention_mask is None:
        return
    given = np.asarray(attention_mask)
    if given.ndim == 2 and np.any((given != 0) & (ids == CLS_TOKEN_ID)):
        model.warned_of_mask = True
        warnings.warn(UNEXPECTED_MASK, stacklevel=4)


def check_head_mask(config: ErnieMConfig, dtype: Any, head_mask: Any) -> list[Array | None]:
    """The head mask (H,) of each layer, or None if no mask is passed; a pruned layer's has only its remaining heads.

    Raises ValueError unless the mask is (H,), for all layers, or (L, H), where H counts the heads before pruning.
    """
    L, H = config.num_hidden_layers, config.num_attention_heads
    if head_mask is None:
        return [None] * L
    mask = np.asarray(head_mask)
    if mask.dtype.kind not in "biuf":
        raise TypeError(f"head_mask: expected numbers, got {mask.dtype}")
    check_head_mask_shape(mask.shape, (L, H))
    rows = np.broadcast_to(mask, (L, H)).astype(dtype)
    return [np.delete(rows[i], list(config.pruned_heads.get(i, ()))) for i in range(L)]


def check_token_types(token_type_ids: Any) -> None:
    """Raise ValueError unless `token_type_ids`, which ERNIE-M does not have, are absent or all 0."""
    if token_type_ids is not None and np.any(integers("token_type_ids", token_type_ids)):
        raise ValueError(TOKEN_TYPES)


def integers(name: str, values: Any) -> Array:
    """`values` as an array of integers. Raises TypeError for other dtypes (even bool), ValueError for ragged lists."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name}: expected rows of equal length, got a ragged list") from None
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    return array


def zeros_and_ones(name: str, values: Array) -> Array:
    """`values` as booleans. Raises TypeError or ValueError unless they are booleans, or numbers that are all 0 or 1."""
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected booleans or numbers that are 0 or 1, got {values.dtype}")
    if values.dtype != bool:
        check_zeros_and_ones(name, values)
    return values.astype(bool)


# Everything below is shared with `ernie_m.kernels.inputs`.


def check_zeros_and_ones(name: str, values: Array) -> None:
    """Raise ValueError, with the first offending value, unless all are 0 or 1."""
    wrong = values[(values != 0) & (values != 1)]
    if wrong.size:
        raise ValueError(f"{name}: expected booleans or numbers that are 0 or 1, got {wrong[0]}")


def check_options(owner: str, options: dict[str, Any], allowed: tuple[str, ...] = OPTIONS) -> None:
    """Raise TypeError for an option of a call to `owner` that does not exist, or a flag that is not True or False."""
    for name in options:
        if name not in allowed:
            raise TypeError(f"{owner}: unexpected argument {name!r}; expected some of {', '.join(ARGUMENTS + allowed)}")
    true_or_false(**{name: options[name] for name in CALL_DEFAULTS if options.get(name) is not None})


def check_one_given(input_ids: Any, inputs_embeds: Any) -> None:
    """Raise ValueError unless exactly one of the two is given."""
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"input_ids, inputs_embeds: expected exactly one of the two, got {given}")


def check_ids_shape(shape: Shape) -> tuple[int, int]:
    """(B, S) of `input_ids`. Raises ValueError for another number of axes or an empty one."""
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"input_ids: expected shape (B, S) with at least one row and column, got {tuple(shape)}")
    return shape[0], shape[1]


def check_embeds_shape(shape: Shape, hidden_size: int) -> tuple[int, int]:
    """(B, S) of `inputs_embeds`. Raises ValueError for another number of axes, an empty one or another width."""
    if len(shape) != 3 or 0 in shape or shape[2] != hidden_size:
        raise ValueError(f"inputs_embeds: expected shape (B, S, {hidden_size}), got {tuple(shape)}")
    return shape[0], shape[1]


def check_mask_shape(shape: Shape, batch: tuple[int, int], dtype: Any) -> None:
    """Raise an error unless an `attention_mask` is (B, S); (B, S, S), but not of floats, which may be meant to be added
    to the scores, where 0 lets a token attend; or (B, 1, 1, S) or (B, 1, S, S) of booleans."""
    B, S = batch
    shapes: dict[str, Shape] = {"(B, 1, 1, S)": (B, 1, 1, S), "(B, 1, S, S)": (B, 1, S, S)}
    if len(shape) != 4:
        shapes = {"(B, S)": (B, S), "(B, S, S)": (B, S, S)}
    if shape not in shapes.values():
        expected = " or ".join(f"{letters} = {one}" for letters, one in shapes.items())
        raise ValueError(f"attention_mask: expected shape {expected}, got {tuple(shape)}")
    kind = str(dtype).removeprefix("torch.")
    if kind != "bool" and (len(shape) == 4 or (len(shape) == 3 and "int" not in kind)):
        raise TypeError(
            f"attention_mask: expected a {len(shape)}-D mask to be boolean, True = may attend, got {kind}; "
            "pass `mask == 0` for one that is added to the scores, `mask == 1` for one of 0 and 1"
        )


def check_positions_shape(shape: Shape, batch: tuple[int, int]) -> None:
    """Raise ValueError unless `position_ids` are (B, S) or (1, S)."""
    if shape not in (batch, (1, batch[1])):
        raise ValueError(f"position_ids: expected shape (B, S) = {tuple(batch)}, got {tuple(shape)}")


def check_length(name: str, length: int, limit: int, padded: bool = False) -> None:
    """Raise ValueError if a sequence is longer than the position table; `padded`: padding may be counted too."""
    if length > limit:
        hint = " (values are not read here, so padding counts too: trim it)" if padded else ""
        expected = f"expected sequences of at most {limit} tokens, the length of the position table"
        raise ValueError(f"{name}: {expected}, got {length}{hint}")


def check_head_mask_shape(shape: Shape, sizes: tuple[int, int]) -> None:
    """Raise ValueError unless a `head_mask` is (H,) or (L, H)."""
    L, H = sizes
    if shape not in ((H,), (L, H)):
        raise ValueError(f"head_mask: expected shape (H,) = ({H},) or (L, H) = {(L, H)}, got {tuple(shape)}")

"""Removing and restoring padding: a batch of ragged rows as one run of tokens, and back.

    mask        indices (flat, b·S + s)    cu_seqlens (where each row starts, and the end)
    1 1 1 0     0 1 2                      0 3 5
    1 1 0 0     4 5

All of this is index arithmetic, a few microseconds on entry and on exit, so it is torch, not Triton. Only the size of
`token_indices` depends on values: on a GPU, the host waits for it. All raise TypeError or ValueError, naming the
argument; indices are checked against the rectangle on a CPU.

Twin: reference/padding.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .runtime.arguments import check_count, check_device, check_integers, check_range, check_tensor
from .runtime.dispatch import should_validate


def check_mask(mask: Tensor) -> None:
    """Raise unless `mask` is a tensor with two axes."""
    check_tensor("mask", mask)
    if mask.dim() != 2:
        raise ValueError(f"mask: expected shape (B, S), got {tuple(mask.shape)}")


def check_indices(indices: Tensor, name: str, other: Tensor, places: int) -> None:
    """Raise unless `indices` is (T,), on the device of the argument `other`, and on a CPU, each below `places`."""
    check_integers("indices", indices)
    check_device("indices", indices, name, other)
    if indices.dim() != 1:
        raise ValueError(f"indices: expected shape (T,), got {tuple(indices.shape)}")
    if should_validate(indices, False):
        check_range("indices", indices, places, "a rectangle of {} places")


def token_indices_unchecked(mask: Tensor) -> Tensor:  # (B, S) -> (T,)
    """`token_indices` for callers that have checked the mask."""
    return mask.reshape(-1).nonzero().squeeze(1)


def token_indices(mask: Tensor) -> Tensor:  # (B, S) -> (T,)
    """The flat position b·S + s of every token, in order: where the (B, S) mask is true. int64."""
    check_mask(mask)
    return token_indices_unchecked(mask)


def cu_seqlens_unchecked(mask: Tensor) -> Tensor:  # (B, S) -> (B + 1,)
    """`cu_seqlens` for callers that have checked the mask."""
    lengths = mask.ne(0).sum(dim=1)
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def cu_seqlens(mask: Tensor) -> Tensor:  # (B, S) -> (B + 1,)
    """Cumulative sequence lengths, int32: row b's tokens are rows cu_seqlens[b] to cu_seqlens[b+1] when packed."""
    check_mask(mask)
    return cu_seqlens_unchecked(mask)


def unpad_unchecked(x: Tensor, indices: Tensor) -> Tensor:  # (B, S, ...), (T,) -> (T, ...)
    """`unpad` for callers that have checked the arguments."""
    return x.flatten(0, 1)[indices]


def unpad(x: Tensor, indices: Tensor) -> Tensor:  # (B, S, ...), (T,) -> (T, ...)
    """Keep the tokens at `indices`, in that order."""
    check_tensor("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: expected shape (B, S, ...), got {tuple(x.shape)}")
    check_indices(indices, "x", x, x.shape[0] * x.shape[1])
    return unpad_unchecked(x, indices)


def pad_unchecked(packed: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:
    """`pad` for callers that have checked the arguments."""
    padded = packed.new_zeros((batch * length, *packed.shape[1:]))
    return padded.index_copy(0, indices, packed).unflatten(0, (batch, length))


def pad(packed: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:  # (T, ...), (T,) -> (B, S, ...)
    """Put the tokens back at `indices` of a (B, S) = (`batch`, `length`) rectangle of zeros."""
    check_tensor("packed", packed)
    batch, length = check_count("batch", batch), check_count("length", length)
    check_indices(indices, "packed", packed, batch * length)
    if packed.dim() < 1 or packed.shape[0] != indices.shape[0]:
        raise ValueError(f"packed: expected shape (T, ...) with T = {indices.shape[0]}, got {tuple(packed.shape)}")
    return pad_unchecked(packed, indices.to(torch.int64), batch, length)


def sequence_of_tokens(cu_seqlens: Tensor, tokens: int) -> Tensor:  # (B + 1,) -> (T,)
    """The sequence that each of T = `tokens` packed tokens belongs to, int64; reads no values on the host.

    Tokens that wrong `cu_seqlens` assign to no sequence go to the last one.
    """
    places = torch.arange(tokens, device=cu_seqlens.device)
    owners = torch.searchsorted(cu_seqlens[1:].contiguous(), places, right=True)
    return owners.clamp(0, max(cu_seqlens.shape[0] - 2, 0))


def check_max_seqlen(cu_seqlens: Tensor, max_seqlen: int) -> None:
    """Raise ValueError if a sequence is longer than `max_seqlen`. Reads values."""
    longest = int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0
    if longest > max_seqlen:
        raise ValueError(f"max_seqlen: expected at least {longest}, the longest sequence's length, got {max_seqlen}")


def check_cu_seqlens(cu_seqlens: Tensor, tokens: int, values: bool) -> None:
    """Raise unless `cu_seqlens` is a 1-D int32 tensor that, if `values` are checked, rises from 0 to `tokens`."""
    check_integers("cu_seqlens", cu_seqlens, (torch.int32,))
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens: expected shape (B + 1,), got {tuple(cu_seqlens.shape)}")
    if values:
        found = cu_seqlens.tolist()
        if found[0] != 0 or found[-1] != tokens or any(b < a for a, b in pairwise(found)):
            raise ValueError(f"cu_seqlens: expected non-decreasing values from 0 to T = {tokens}, got {found}")

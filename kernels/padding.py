"""Removing and restoring padding: a batch of ragged rows as one run of tokens, and back.

    mask        indices (flat, b·S + s)    cu_seqlens (where each row starts, and the end)
    1 1 1 0     0 1 2                      0 3 5
    1 1 0 0     4 5

All of this is index arithmetic, a few microseconds on entry and on exit, so it is torch, not Triton. Only the size of
`token_indices` depends on values: on a GPU, the host waits for it.

Twin: reference/padding.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .runtime.arguments import check_integers


def token_indices(mask: Tensor) -> Tensor:  # (B, S) -> (T,)
    """The flat position b·S + s of every token, in order: where the (B, S) mask is true. int64."""
    return mask.reshape(-1).nonzero().squeeze(1)


def cu_seqlens(mask: Tensor) -> Tensor:  # (B, S) -> (B + 1,)
    """Cumulative sequence lengths, int32: row b's tokens are rows cu_seqlens[b] to cu_seqlens[b+1] when packed."""
    lengths = mask.ne(0).sum(dim=1)
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def unpad(x: Tensor, indices: Tensor) -> Tensor:  # (B, S, ...), (T,) -> (T, ...)
    """Keep the tokens at `indices`, in that order."""
    return x.flatten(0, 1)[indices]


def pad(packed: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:  # (T, ...), (T,) -> (B, S, ...)
    """Put the tokens back at `indices` of a (B, S) = (`batch`, `length`) rectangle of zeros."""
    padded = packed.new_zeros((batch * length, *packed.shape[1:]))
    return padded.index_copy(0, indices, packed).unflatten(0, (batch, length))


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
            raise ValueError(f"cu_seqlens: expected values rising from 0 to T = {tokens}, got {found}")

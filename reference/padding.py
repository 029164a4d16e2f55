"""Packing: a batch of rows of different lengths, stored without padding.

Rows of different lengths fill a (B, S) rectangle only with padding. Packing keeps the real tokens, row after row:

    mask        indices (flat, b·S + s)    cu_seqlens (where each row starts, and the end)
    1 1 1 0     0 1 2                      0 3 5
    1 1 0 0     4 5

Everything but attention treats tokens independently, so it works on (T, E) as on (B, S, E); attention reads
`cu_seqlens`. Tokens are packed once, on entry, and padded once, on exit.

Source: the idea of "unpadding" in NVIDIA's and Hazy Research's BERT (flash-attention, `bert_padding.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .array import Array


def token_indices(mask: Array) -> Array:  # (B, S) -> (T,)
    """The flat positions b·S + s of all real tokens (where the mask is true), in order."""
    return np.flatnonzero(mask)


def cu_seqlens(mask: Array) -> Array:  # (B, S) -> (B + 1,)
    """Cumulative sequence lengths, int32: sequence b is rows cu_seqlens[b] to cu_seqlens[b+1] of a packed array."""
    lengths = np.count_nonzero(mask, axis=1)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def unpad(x: Array, indices: Array) -> Array:  # (B, S, ...), (T,) -> (T, ...)
    """Keep the tokens at `indices`, in that order."""
    return x.reshape(-1, *x.shape[2:])[indices]


def pad(packed: Array, indices: Array, batch: int, length: int) -> Array:  # (T, ...), (T,) -> (B, S, ...)
    """Put the tokens back at `indices` in a (B, S) = (`batch`, `length`) rectangle of zeros."""
    padded = np.zeros((batch * length, *packed.shape[1:]), packed.dtype)
    padded[indices] = packed
    return padded.reshape(batch, length, *packed.shape[1:])


def pad_ids(rows: Sequence[Sequence[int] | Array], pad_token_id: int) -> tuple[Array, Array]:  # -> (B, S), (B, S)
    """Pad rows of token ids on the right; returns `input_ids` and a boolean `attention_mask`."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.full(mask.shape, pad_token_id, np.int64)
    input_ids[mask] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    return input_ids, mask


def check_cu_seqlens(cu_seqlens: Array, tokens: int) -> None:
    """Raise ValueError unless `cu_seqlens` is a non-decreasing 1-D array of integers from 0 to `tokens`."""
    if cu_seqlens.ndim != 1 or cu_seqlens.size < 1 or cu_seqlens.dtype.kind not in "iu":
        raise ValueError(
            f"cu_seqlens: expected integers of shape (B + 1,), got {cu_seqlens.dtype} of shape {cu_seqlens.shape}"
        )
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens or (cu_seqlens[1:] < cu_seqlens[:-1]).any():
        values = cu_seqlens.tolist()
        raise ValueError(f"cu_seqlens: expected non-decreasing values from 0 to T = {tokens}, got {values}")

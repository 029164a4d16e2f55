"""How a batch's tokens are laid out in a tensor, and how they attend to each other there.

    Packed   (T, ...)      one row after the other, without padding
    Padded   (B, S, ...)   a rectangle, with a mask

Packed is fast. The rectangle is for attention maps, (B, S, S) masks and gradients. The rest of a layer works on the
last axis and does not depend on the layout.

Twin: reference/layouts.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ernie_m.reference.array import Array
from ernie_m.reference.trace import Entry, Tokens

from .attention import packed_attention_unchecked
from .dropping import Drops, real_tokens, sequence_positions
from .padding import check_cu_seqlens, check_max_seqlen, pad_unchecked, sequence_of_tokens, unpad_unchecked
from .rectangles import Grouping, attention_by_length, grouping, padded_attention, plain_packed_attention
from .runtime.arguments import check_count
from .runtime.dispatch import eager_on_cpu
from .trace import to_numpy, tracing


@dataclass(frozen=True)
class Padded:
    """A rectangle (B, S). `mask` broadcasts to (B, H, S, S), boolean or added to the scores; None: no mask.

    plain: compute in plain torch, without kernels. drops: what to drop, in training. maps: whether attention maps are
    wanted.
    """

    valid: Tensor | None  # (B, S)
    mask: Tensor | None
    plain: bool
    drops: Drops | None = None
    maps: bool = True

    def with_drops(self, seeds: Tensor, first_token: int, like: Tensor) -> Padded:
        """The layout of a call that drops; `like`: (B, S), `first_token`: the index of the first real token."""
        if self.valid is None:
            tokens = torch.arange(like.numel(), device=like.device).view(like.shape) + first_token
            return replace(self, drops=Drops(seeds, tokens))
        tokens, positions = real_tokens(self.valid, first_token), sequence_positions(self.valid)
        return replace(self, drops=Drops(seeds, tokens, positions))

    def keep(self, x: Tensor) -> Tensor:  # (B, S, ...) -> (B, S, ...)
        """The part of a rectangle to compute: all of it, with padding (even nan) set to 0."""
        return self.zero_padding(x)

    def on_rectangle(self, x: Tensor) -> Tensor:  # (B, S, ...) -> (B, S, ...)
        """The inverse of `keep`."""
        return x

    def zero_padding(self, x: Tensor) -> Tensor:  # (B, S, ...) -> (B, S, ...)
        """Set padded positions to 0."""
        return x if self.valid is None else x.masked_fill(~self.valid.view(*x.shape[:2], *[1] * (x.dim() - 2)), 0)

    @property
    def groups(self) -> None:
        """The sequences are not grouped."""
        return None

    def attend(
        self, qkv: Projected, head_mask: Tensor | None, p: float, name: str
    ) -> tuple[Tensor, Tensor | None]:  # (B, S, 3, H, D) -> (B, S, H, D), (B, H, S, S)
        """Attention on the rectangle, under the mask; `p`: the dropout rate of the probabilities."""
        assert isinstance(qkv, Tensor)
        drops = None if self.drops is None else self.drops.probabilities(p)
        if drops is None and head_mask is None and not self.maps and self._fuses(qkv):
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, S, D)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2), None
        drop = None if drops is None else drops.of(drops.tokens, drops.positions)
        return padded_attention(qkv, self.mask, head_mask, drop, name)

    def _fuses(self, qkv: Tensor) -> bool:
        """Whether torch's attention computes the same, without keeping scores: on a CPU in float32 and float64. There
        a row that may attend to nothing is 0 too."""
        boolean = self.mask is None or self.mask.dtype == torch.bool
        wide = qkv.dtype in (torch.float32, torch.float64)
        return boolean and wide and eager_on_cpu(qkv) and not tracing() and not torch.is_autocast_enabled("cpu")

    def entry(self, name: str, value: Array) -> Entry:
        """A recorded value, (B, S, ...), with padding set to 0."""
        if self.valid is not None:
            valid = to_numpy(self.valid)
            value = value * valid.reshape(*valid.shape, *[1] * (value.ndim - 2))
        return Entry(name, value)


@dataclass(frozen=True)
class Packed:
    """T tokens without padding; sequence b is rows cu_seqlens[b] to cu_seqlens[b+1], at most `length` of them.

    indices: (T,), the tokens' flat positions b·S + s in a rectangle with S = `length`; None if they fill it.
    groups: the sequences by length, if plain torch is to compute them so. drops: as in `Padded`.
    """

    indices: Tensor | None
    cu_seqlens: Tensor  # (B + 1,)
    length: int
    plain: bool
    groups: Grouping | None = None
    drops: Drops | None = None

    def with_drops(self, seeds: Tensor, first_token: int, like: Tensor) -> Packed:
        """The layout of a call that drops; `like`: (T,), `first_token`: the index of the first token."""
        tokens = torch.arange(like.shape[0], device=like.device) + first_token
        return replace(self, drops=Drops(seeds, tokens))

    @property
    def batch(self) -> int:
        """B."""
        return self.cu_seqlens.shape[0] - 1

    def keep(self, x: Tensor) -> Tensor:  # (B, S, ...) -> (T, ...)
        """The part of a rectangle to compute: the tokens."""
        return x.flatten(0, 1) if self.indices is None else unpad_unchecked(x, self.indices)

    def on_rectangle(self, x: Tensor) -> Tensor:  # (T, ...) -> (B, S, ...)
        """The inverse of `keep`; padding is 0."""
        shape = (self.batch, self.length)
        return x.unflatten(0, shape) if self.indices is None else pad_unchecked(x, self.indices, *shape)

    def zero_padding(self, x: Tensor) -> Tensor:  # (T, E) -> (T, E)
        """Return `x`: there is no padding."""
        return x

    def attend(
        self, qkv: Projected, head_mask: Tensor | None, p: float, name: str
    ) -> tuple[Tensor, None]:  # (T, 3, H, D) -> (T, H, D)
        """Attention within each sequence; in plain torch if `plain`, and if it is traced, on one rectangle."""
        drops = None if self.drops is None else self.drops.probabilities(p)
        if not isinstance(qkv, Tensor):
            assert self.groups is not None
            context, _ = attention_by_length(qkv, self.groups, drops)
        elif self.plain and tracing():
            valid = self.on_rectangle(torch.ones(qkv.shape[0], dtype=torch.bool, device=qkv.device))
            mask = valid[:, None, :, None] & valid[:, None, None, :]
            drop = None if drops is None else drops.of(self.on_rectangle(drops.tokens), sequence_positions(valid))
            return self.keep(padded_attention(self.on_rectangle(qkv), mask, head_mask, drop, name)[0]), None
        elif self.plain and drops is not None:
            context, _ = plain_packed_attention(qkv, self.cu_seqlens, self.length, drops)
        else:
            context, _ = packed_attention_unchecked(qkv, self.cu_seqlens, self.length, drops)
        return context if head_mask is None else context * head_mask[:, None], None

    @property
    def tokens(self) -> Tokens | None:
        """The tokens' positions, for a trace. Reads the indices on the host."""
        return None if self.indices is None else Tokens(to_numpy(self.indices), self.batch, self.length)

    def entry(self, name: str, value: Array) -> Entry:
        """A recorded value, (T, ...)."""
        if self.indices is None:
            return Entry(name, value.reshape(self.batch, self.length, *value.shape[1:]))
        return Entry(name, value, self.tokens)


@dataclass(frozen=True)
class FirstTokens:
    """The first token of each sequence of a packed layout, (B, ...), without dropout; empty sequences get a row too."""

    packed: Packed
    drops: None = None

    @property
    def plain(self) -> bool:
        """As of the packed layout."""
        return self.packed.plain

    def zero_padding(self, x: Tensor) -> Tensor:  # (B, E) -> (B, E)
        """Set the rows of empty sequences to 0."""
        return x.masked_fill((self.packed.cu_seqlens.diff() == 0)[:, None], 0.0)

    def entry(self, name: str, value: Array) -> Entry:
        """A recorded value, (B, ...), without empty sequences, at the tokens' positions in the rectangle."""
        starts = to_numpy(self.packed.cu_seqlens)
        present = np.diff(starts) > 0
        tokens = self.packed.tokens
        indices = np.arange(self.packed.batch) * self.packed.length
        indices = indices[present] if tokens is None else tokens.indices[starts[:-1][present]]
        return Entry(name, value[present], Tokens(indices, self.packed.batch, self.packed.length))


Layout = Packed | Padded
# Queries, keys and values, (..., 3, H, D) in one tensor or (..., H, D) in three.
Projected = Tensor | tuple[Tensor, ...]


def of_layer(layout: Layout, i: int) -> Layout:
    """The layout for layer i, with its seeds."""
    return layout if layout.drops is None else replace(layout, drops=layout.drops.layer(i))


def rows_of_first_tokens(x: Tensor, cu_seqlens: Tensor) -> Tensor:  # (T, E), (B + 1,) -> (B, E)
    """Each sequence's first row; 0 for an empty sequence."""
    if x.shape[0] == 0:
        return x.new_zeros(cu_seqlens.shape[0] - 1, x.shape[1])
    rows = x[cu_seqlens[:-1].to(torch.int64).clamp(0, x.shape[0] - 1)]
    return rows.masked_fill((cu_seqlens.diff() == 0)[:, None], 0.0)


@torch.library.custom_op("ernie_m::first_tokens", mutates_args=())
def _first_tokens(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """`rows_of_first_tokens` as one step of a compiled graph, where T, and even whether it is 0, is unknown."""
    return rows_of_first_tokens(x, cu_seqlens)


@_first_tokens.register_fake
def _(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    return x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1])


def first_tokens(x: Tensor, cu_seqlens: Tensor) -> Tensor:  # (T, E), (B + 1,) -> (B, E)
    """`rows_of_first_tokens`, also in a graph."""
    return rows_of_first_tokens(x, cu_seqlens) if eager_on_cpu(x) else _first_tokens(x, cu_seqlens)


def packed(indices: Tensor | None, cu_seqlens: Tensor, T: int, length: int, plain: bool) -> Packed:
    """A layout of T tokens, grouped by length where plain torch can read the lengths, and nothing is traced."""
    grouped = plain and eager_on_cpu(cu_seqlens) and not tracing()
    return Packed(indices, cu_seqlens, length, plain, grouping(cu_seqlens, T, length) if grouped else None)


def pack(cu: Tensor, T: int, max_seqlen: int, plain: bool, validate: bool) -> tuple[Packed, Tensor]:  # -> ..., (T,)
    """The layout of T packed tokens, and each token's column in its sequence; reads values only to validate."""
    check_cu_seqlens(cu, T, validate)
    max_seqlen = check_count("max_seqlen", max_seqlen)
    if validate:
        check_max_seqlen(cu, max_seqlen)
    own = sequence_of_tokens(cu, T)
    column = (torch.arange(T, device=cu.device) - cu[own]).clamp(0, max(max_seqlen - 1, 0))
    return packed(own * max_seqlen + column, cu, T, max_seqlen, plain), column

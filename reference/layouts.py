"""How the tokens of a batch are arranged: in a padded rectangle, or packed. Attention needs to know; nothing else does.

    Padded    (B, S, ...)    B rows of S positions, some of them padding, which a mask hides
    Packed    (T, ...)       only the real tokens, one sequence after another

Both compute the same, and drop the same elements: dropout counts real tokens, and keys within their sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .array import Array
from .attention import attention, attention_by_sequence, attention_by_sequence_vjp, attention_vjp
from .dropout import masked, random_bits
from .trace import Tokens


class Layout(Protocol):
    """How tokens are arranged in an array: `Padded` (B, S, ...) or `Packed` (T, ...)."""

    @property
    def valid(self) -> Array | None:
        """(B, S), True at real tokens; None if the array holds no padding."""

    @property
    def index(self) -> Array | None:
        """(B, S) or (T,), the index of each token among the real tokens of the batch; None: they are in order."""

    def attend(
        self, q: Array, k: Array, v: Array, head_mask: Array | None, p: float, seed: Any
    ) -> tuple[Array, Array | None]:  # (..., H, D) x 3 -> (..., H, D), the probabilities if they are kept
        """Attention in this layout, with dropout of probabilities if there is a seed."""

    def attend_vjp(
        self, d_context: Array, q: Array, k: Array, v: Array, head_mask: Array | None, p: float, seed: Any
    ) -> tuple[Array, Array, Array]:  # (..., H, D) x 4 -> (..., H, D) x 3
        """The gradients of q, k and v."""


@dataclass(frozen=True)
class Padded:
    """A (B, S) rectangle. `mask` broadcasts to (B, H, S, S), boolean or added to the scores; None: no mask."""

    valid: Array | None  # (B, S)
    mask: Array | None

    @property
    def index(self) -> Array | None:  # (B, S)
        """Padding has the index of an earlier token, which does not matter: it takes no part."""
        return None if self.valid is None else np.maximum(np.cumsum(self.valid) - 1, 0).reshape(self.valid.shape)

    def attend(
        self, q: Array, k: Array, v: Array, head_mask: Array | None, p: float, seed: Any
    ) -> tuple[Array, Array | None]:  # (B, S, H, D) x 3 -> (B, S, H, D), (B, H, S, S)
        """Attention on the rectangle, with the mask."""
        q, k, v = q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)  # (B, H, S, D)
        context, probs = attention(q, k, v, self.mask, head_mask, self._drop(p, seed))
        return context.swapaxes(1, 2), probs

    def attend_vjp(
        self, d_context: Array, q: Array, k: Array, v: Array, head_mask: Array | None, p: float, seed: Any
    ) -> tuple[Array, Array, Array]:  # (B, S, H, D) x 4 -> (B, S, H, D) x 3
        """The gradients of q, k and v on the rectangle."""
        d_context, q, k, v = (x.swapaxes(1, 2) for x in (d_context, q, k, v))
        dq, dk, dv = attention_vjp(d_context, q, k, v, self.mask, head_mask, self._drop(p, seed))
        return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2)

    def _drop(self, p: float, seed: Any) -> Callable[[Array], Array] | None:
        if seed is None or p == 0.0:
            return None

        def drop(probs: Array) -> Array:  # (B, H, S, S) -> (B, H, S, S)
            B, H, S, _ = probs.shape
            index = np.arange(B * S).reshape(B, S) if self.index is None else self.index
            bits = random_bits(seed, index[:, None], S, np.arange(H)[:, None])
            if self.valid is not None:
                position = np.maximum(np.cumsum(self.valid, axis=1) - 1, 0)  # of each key among its row's real tokens
                bits = np.take_along_axis(bits, position[:, None, None], axis=-1)
            return masked(probs, bits, p)

        return drop


@dataclass(frozen=True)
class Packed:
    """T real tokens; sequence b is rows cu_seqlens[b] to cu_seqlens[b+1].

    `tokens` holds their original positions, for traces and to pad them again; None for a group of sequences, whose
    `index` says which of the batch's tokens they are.
    """

    tokens: Tokens | None
    cu_seqlens: Array  # (B + 1,)
    index: Array | None = None  # (T,)
    valid: None = None

    def attend(
        self, q: Array, k: Array, v: Array, head_mask: Array | None, p: float, seed: Any
    ) -> tuple[Array, None]:  # (T, H, D) x 3 -> (T, H, D)
        """Attention within each sequence."""
        return attention_by_sequence(q, k, v, self.cu_seqlens, head_mask, self._drop(p, seed)), None

    def attend_vjp(
        self, d_context: Array, q: Array, k: Array, v: Array, head_mask: Array | None, p: float, seed: Any
    ) -> tuple[Array, Array, Array]:  # (T, H, D) x 4 -> (T, H, D) x 3
        """The gradients of q, k and v, within each sequence."""
        return attention_by_sequence_vjp(d_context, q, k, v, self.cu_seqlens, head_mask, self._drop(p, seed))

    def _drop(self, p: float, seed: Any) -> Callable[[Array, slice, slice], Array] | None:
        if seed is None or p == 0.0:
            return None

        def drop(probs: Array, rows: slice, heads: slice) -> Array:  # (h, n, n) -> (h, n, n)
            h, n, _ = probs.shape
            index = np.arange(rows.start, rows.stop) if self.index is None else self.index[rows]
            return masked(probs, random_bits(seed, index, n, heads.start + np.arange(h)[:, None]), p)

        return drop


def zero_padding(x: Array, valid: Array | None) -> Array:  # (B, S, E), (B, S) -> (B, S, E)
    """Set padded positions to 0, even if they hold nan. Without padding, return `x`."""
    return x if valid is None else np.where(valid[..., None], x, 0.0).astype(x.dtype, copy=False)

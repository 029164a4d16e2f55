"""Self-attention as modules: the projections to queries, keys and values, the attention, and the mix of the heads.

`q_proj`, `k_proj` and `v_proj` are modules of their own, with transformers' names, so that optimisers, adapters and
checkpoints see three ordinary linear maps.

Twin: reference/encoder.py, `self_attention`.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module

from ernie_m.reference.config import ErnieMConfig

from .first_token import first_token_attention_unchecked
from .layouts import FirstTokens, Layout, Packed, first_tokens
from .runtime.modules import untouched
from .trace import record, tracing

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class SelfAttention(Module):
    """The projections to queries, keys and values, and attention with them; the heads are not mixed yet."""

    def __init__(self, heads: int, config: ErnieMConfig, name: str, device: Any, dtype: Any) -> None:
        super().__init__()
        self.name, self.head_size, self.p = name, config.head_dim, config.attention_probs_dropout_prob
        sizes, factory = (config.hidden_size, heads * self.head_size), {"device": device, "dtype": dtype}
        self.q_proj, self.k_proj, self.v_proj = (Linear(*sizes, **factory) for _ in PROJECTIONS)

    def project(
        self, x: Tensor, layout: Layout | FirstTokens, first: int = 0, last: int = 3
    ) -> Tensor:  # (..., E) -> (..., n, H, D)
        """Project to the n = `last` - `first` chosen from queries (0), keys (1) and values (2).

        On a GPU this is one product with the weights concatenated at each call: a copy of the weights kept from an
        earlier call could be out of date, and no cheap test finds out (a write through `.data` leaves no trace). On a
        CPU three products are as fast as one, and attention in plain torch reads three tensors (see `_each`).
        """
        names = PROJECTIONS[first:last]
        parts: list[Linear] = [getattr(self, name) for name in names]
        if x.is_cuda and all(untouched(part, Linear, x) for part in parts):
            weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
            projected = F.linear(x, weight, bias).unflatten(-1, (len(parts), -1, self.head_size))
        else:
            projected = torch.stack([part(x) for part in parts], dim=-2).unflatten(-1, (-1, self.head_size))
        if tracing():
            for name, values in zip(names, projected.unbind(-3), strict=True):
                record(f"{self.name}.{name}", values.flatten(-2), layout)
        return projected

    def _each(self, x: Tensor) -> tuple[Tensor, ...]:  # (T, E) -> (T, H, D) x 3
        """The three projections without the copy into one tensor, of one dtype."""
        parts = [getattr(self, name)(x) for name in PROJECTIONS]
        dtype = reduce(torch.promote_types, [part.dtype for part in parts])
        return tuple(part.to(dtype).unflatten(-1, (-1, self.head_size)) for part in parts)

    def forward(
        self, x: Tensor, layout: Layout, head_mask: Tensor | None = None, first_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:  # (..., E) -> (..., H·D), the probabilities if the layout keeps them
        """Attention from every token or, with `first_only` and a packed layout, from the first of each sequence."""
        probs = None
        places: Layout | FirstTokens = layout
        if first_only:
            assert isinstance(layout, Packed)
            places = FirstTokens(layout)
            kv, q = self.project(x, layout, 1, 3), self.project(first_tokens(x, layout.cu_seqlens), places, 0, 1)
            context = first_token_attention_unchecked(q.squeeze(-3), kv, layout.cu_seqlens)
            context = context if head_mask is None else context * head_mask[:, None]
        else:
            p = self.p if self.training else 0.0
            qkv = self.project(x, layout) if layout.groups is None else self._each(x)
            context, probs = layout.attend(qkv, head_mask, p, self.name)
        return record(f"{self.name}.context", context.flatten(-2), places), probs


class Attention(Module):
    """`self_attn`, the heads, and `out_proj`, which mixes them."""

    def __init__(self, heads: int, config: ErnieMConfig, name: str, device: Any, dtype: Any) -> None:
        super().__init__()
        self.self_attn = SelfAttention(heads, config, f"{name}.self_attn", device, dtype)
        self.out_proj = Linear(heads * config.head_dim, config.hidden_size, device=device, dtype=dtype)
        self.name = name

    def forward(
        self, x: Tensor, layout: Layout, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:  # (..., E) -> (..., E), the probabilities if the layout keeps them
        """Attention, not fused with what follows."""
        context, probs = self.self_attn(x, layout, head_mask)
        return record(f"{self.name}.out_proj", self.out_proj(context), layout), probs

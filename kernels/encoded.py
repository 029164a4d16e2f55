"""What goes into the encoder and what comes out of it: the layout of a batch, and the result for a head.

Twin: reference/model.py, `choose_layout` and `Encoded`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_m.reference.inputs import Inputs

from .layouts import Layout, Padded, packed
from .padding import cu_seqlens_unchecked, token_indices_unchecked


def choose_layout(inputs: Inputs[Tensor], plain: bool, rectangle: bool, maps: bool) -> Layout:
    """Packed, unless a (B, S, S) mask or the caller, for attention maps or gradients, needs the rectangle."""
    valid, mask = inputs.valid, inputs.mask
    B, S = inputs.position_ids.shape
    if mask is not None or rectangle:
        if mask is None and valid is not None:
            mask = valid[:, None, :, None] & valid[:, None, None, :]
        return Padded(valid, mask, plain, maps=maps)
    if valid is None:
        ends = torch.arange(0, (B + 1) * S, S, dtype=torch.int32, device=inputs.position_ids.device)
        return packed(None, ends, B * S, S, plain)
    indices = token_indices_unchecked(valid)
    return packed(indices, cu_seqlens_unchecked(valid), indices.shape[0], S, plain)


@dataclass(frozen=True)
class Encoded:
    """What the encoder returns to a head.

    `hidden`: (T, E) or (B, S, E), depending on `layout`; or, if that is enough, `first`: only the first tokens, (B, E).
    `valid` (B, S): which positions hold real tokens. `hidden_states`, `attentions`: on the rectangle, if requested.
    `seeds`: (4 L + 2,), or only the head's, if anything drops; `offset`: the index of the first real token.
    """

    layout: Layout
    valid: Tensor
    hidden: Tensor | None = None
    first: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    pooled: Tensor | None = None
    seeds: Tensor | None = None
    offset: int = 0

    @property
    def on_rectangle(self) -> Tensor:
        """`hidden` as (B, S, E)."""
        assert self.hidden is not None
        return self.layout.on_rectangle(self.hidden)

    def first_token(self, rectangle: Tensor | None = None) -> Tensor:  # (B, S, E) -> (B, E)
        """Each row's first token: column 0, or the first valid column if that is masked; 0 in a row without tokens."""
        if self.first is not None:
            return self.first
        hidden = self.on_rectangle if rectangle is None else rectangle
        columns = self.valid.to(torch.uint8).argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), columns]

"""One pass through the encoder: how a batch is arranged and grouped, and what the backward pass needs of it.

A batch with padding is packed, unless attention maps or a (B, S, S) mask require the rectangle. Packed sequences go
through the layers in groups (`groups.py`), each on a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .array import Array
from .dropout import PLACES_PER_LAYER
from .groups import join, split
from .inputs import Inputs
from .layouts import Layout, Packed, Padded
from .padding import cu_seqlens, pad, token_indices, unpad
from .trace import Tokens, current_scope


@dataclass(frozen=True)
class Group:
    """Sequences that go through the layers together: their rows of the packed batch (None: all), and their layout."""

    rows: Array | None
    layout: Layout

    def take(self, x: Array) -> Array:
        """The group's tokens."""
        return x if self.rows is None else x.reshape(-1, x.shape[-1])[self.rows]


@dataclass(frozen=True)
class Pass:
    """A pass through the encoder: what it computed with, and what its backward pass needs."""

    inputs: Inputs[Array]
    layout: Layout
    groups: list[Group]
    head_masks: list[Array | None]
    seeds: Array | None  # (4 L + 2,), one for each dropout: embeddings, the places of each layer, head
    states: list[list[Array]]  # of each group: before, between and after the layers, or only the last

    def layer_seeds(self, i: int) -> Any:
        """The seeds of layer i; None without dropout."""
        first = 1 + PLACES_PER_LAYER * i
        return None if self.seeds is None else self.seeds[first : first + PLACES_PER_LAYER]

    def seed(self, place: int) -> Any:
        """The seed of the embeddings (0) or of the head (-1); None without dropout."""
        return None if self.seeds is None else self.seeds[place]

    def keep(self, x: Array) -> Array:  # (B, S, ...) -> as the layout
        """A (B, S, ...) array in the layout of the pass."""
        tokens = self.tokens
        return x if tokens is None else unpad(x, tokens.indices)

    def on_rectangle(self, x: Array) -> Array:  # as the layout -> (B, S, ...)
        """The inverse of `keep`, with 0 at padding."""
        tokens = self.tokens
        return x if tokens is None else pad(x, tokens.indices, tokens.batch, tokens.length)

    def join(self, parts: list[Array]) -> Array:
        """One array of all groups' tokens, in the layout."""
        rows = [group.rows for group in self.groups if group.rows is not None]
        shape = (*self.keep(self.inputs.position_ids).shape, parts[0].shape[-1])
        return (join(parts, rows) if rows else parts[0]).reshape(shape)

    @property
    def tokens(self) -> Tokens | None:
        """The positions of packed tokens."""
        return self.layout.tokens if isinstance(self.layout, Packed) else None


@dataclass(frozen=True)
class Encoded:
    """What the encoder passes to a head: `hidden` (B, S, E), `valid` (B, S), True at real tokens, optional outputs.

    `choices` is C where the rows are B·C choices. `steps` is what the backward pass needs.
    """

    hidden: Array
    valid: Array
    hidden_states: tuple[Array, ...] | None
    attentions: tuple[Array, ...] | None
    steps: Pass
    choices: int = 1


def choose_layout(inputs: Inputs[Array], output_attentions: bool) -> Layout:
    """Packed if there is padding and nothing requires the rectangle."""
    valid, mask = inputs.valid, inputs.mask
    if valid is None or mask is not None:
        return Padded(valid, mask)
    if output_attentions:
        return Padded(valid, valid[:, None, :, None] & valid[:, None, None, :])
    tokens = Tokens(token_indices(valid), *valid.shape)
    return Packed(tokens, cu_seqlens(valid))


def choose_groups(inputs: Inputs[Array], layout: Layout, output_attentions: bool) -> list[Group]:
    """Groups of sequences; one for all where a mask, attention maps or a trace are about the whole batch."""
    if inputs.mask is not None or output_attentions or current_scope.get():
        return [Group(None, layout)]
    B, S = inputs.position_ids.shape
    ends = layout.cu_seqlens if isinstance(layout, Packed) else np.arange(B + 1) * S
    return [Group(rows, Packed(None, own_ends, rows)) for rows, own_ends in split(ends)]

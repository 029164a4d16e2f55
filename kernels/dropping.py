"""What a call in training drops: the seeds of its places, and the indices of its tokens.

    seeds     (4 L + 2,)     embeddings, each layer's places, head
    tokens    (T,), (B, S)   counted over the real tokens of the batch, whether it is packed or padded

A layout brings both to every module, so a layer that is computed again in the backward pass drops the same elements.

Twin: reference/model.py, `Pass`, and reference/layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.dropout import PLACES_PER_LAYER

from .dropout import draw_seeds, drop_probabilities, dropout_unchecked, threshold_of
from .runtime.arguments import check_count, check_device, check_integers, check_shape

# The places of a layer, in the order of their seeds, and of the seeds of a call.
PROBABILITIES, ATTENTION, ACTIVATION, OUTPUT = range(PLACES_PER_LAYER)
EMBEDDINGS, HEAD = 0, -1


@dataclass(frozen=True)
class ProbabilityDrops:
    """What a layer drops of its attention probabilities: their rate and seed; tokens and positions as in `Drops`."""

    p: float
    seed: Tensor  # ()
    tokens: Tensor
    positions: Tensor | None = None

    def of(self, tokens: Tensor, positions: Tensor | None = None) -> Callable[[Tensor], Tensor]:  # (B, S) x 2
        """Dropout of (B, H, S, S) probabilities of queries `tokens` and keys at `positions`; None: their columns."""
        return lambda probs: drop_probabilities(probs, self.p, self.seed, tokens, positions)


@dataclass(frozen=True)
class Drops:
    """What a call drops in training.

    seeds: (4 L + 2,), of the embeddings, each layer's places and the head; or the four of one layer: attention
        probabilities, attention output, activation, feed-forward output.
    tokens: (B, S) or (T,), the index of each token among the real tokens of the batch.
    positions: (B, S), each token's position in its sequence; None: its column.
    """

    seeds: Tensor
    tokens: Tensor
    positions: Tensor | None = None

    def layer(self, i: int) -> Drops:
        """The part for layer i."""
        first = 1 + PLACES_PER_LAYER * i
        return Drops(self.seeds[first : first + PLACES_PER_LAYER], self.tokens, self.positions)

    def probabilities(self, p: float) -> ProbabilityDrops | None:
        """Those of a layer's attention probabilities, at rate p."""
        return None if p == 0.0 else ProbabilityDrops(p, self.seeds[PROBABILITIES], self.tokens, self.positions)


def drop(x: Tensor, p: float, drops: Drops | None, place: int) -> Tensor:  # (..., E) -> (..., E)
    """Dropout at one of the places; without `drops`, `x`."""
    return x if drops is None or p == 0.0 else dropout_unchecked(x, p, drops.seeds[place], drops.tokens)


def real_tokens(valid: Tensor, first_token: int = 0) -> Tensor:  # (B, S) -> (B, S)
    """The index of each real token, counted from `first_token`; padding has that of an earlier one."""
    return (valid.flatten().cumsum(0) - 1).clamp(min=0).view(valid.shape) + first_token


def sequence_positions(valid: Tensor) -> Tensor:  # (B, S) -> (B, S)
    """The position of each token among the real tokens of its row."""
    return (valid.cumsum(1) - 1).clamp(min=0)


def call_seeds(
    model: Any, config: ErnieMConfig, like: Tensor, seeds: Any, first_token: Any, head_drops: bool = False
) -> tuple[bool, Tensor | None, int]:
    """Whether the encoder of a call drops; the seeds, given or drawn, if it or the head does; the first token's index.

    `like` has the model's device. Raises TypeError or ValueError, naming the argument.
    """
    rates = (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.activation_dropout)
    # A part may be in another mode than the whole: where layers are frozen, for instance.
    parts = (model, model.embeddings, model.encoder, *getattr(model.encoder, "layers", ()))
    drops = max(rates) > 0.0 and any(getattr(part, "training", False) for part in parts)
    if seeds is not None:
        check_seeds(seeds, config.num_hidden_layers, like)
    elif drops or head_drops:
        seeds = draw_seeds(config.num_hidden_layers, like.device)
    return drops, seeds, check_count("first_token", first_token)


def check_seeds(seeds: Any, layers: int, like: Tensor) -> None:
    """Raise TypeError or ValueError unless `dropout_seeds` is (4 L + 2,) int64, on the device of `like`."""
    check_integers("dropout_seeds", seeds, (torch.int64,))
    check_shape("dropout_seeds", seeds, (PLACES_PER_LAYER * layers + 2,), "(4 L + 2,)")
    check_device("dropout_seeds", seeds, "the model", like)


def threshold_and_scale(p: float) -> tuple[int, float]:
    """What the attention kernels need to know of a dropout rate."""
    return threshold_of(p), 1.0 / (1.0 - p) if p < 1.0 else 0.0


def probability_drops(p: float, seed: Tensor | None, tokens: Tensor | None) -> ProbabilityDrops | None:
    """The arguments of the attention operation as plain torch takes them."""
    return None if seed is None or tokens is None else ProbabilityDrops(p, seed, tokens)

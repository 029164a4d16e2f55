"""What is measured and its minimum work: sizes, batches, floating-point operations and bytes.

Bytes count each input read once and each output written once. The floor of a step is the longer of operations / matrix
rate and bytes / copy rate, with rates measured in the same run; a model's floor is the sum over its steps.

The batches: full rows; ragged rows, like real text, padded to the longest that the model takes; and small batches, for
which idle time of the GPU matters more than its work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ernie_m.reference.config import ErnieMConfig

VOCABULARY, POSITIONS = 250_002, 514
# One token in so many has a label: about the 15 % that pretraining masks.
LABELLED = 7


@dataclass(frozen=True)
class Size:
    """A model's size; `hidden` is E, `intermediate` is F, heads have size 64."""

    layers: int
    hidden: int
    intermediate: int

    @property
    def heads(self) -> int:
        """H."""
        return self.hidden // 64

    @property
    def config(self) -> ErnieMConfig:
        """The model's configuration."""
        return ErnieMConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=POSITIONS,
        )


@dataclass(frozen=True)
class Batch:
    """Rows of `lengths` tokens; `padded` is their length with padding."""

    name: str
    lengths: tuple[int, ...]
    padded: int

    @property
    def tokens(self) -> int:
        """T."""
        return sum(self.lengths)

    @property
    def pairs(self) -> int:
        """Σ n², the number of scores per head."""
        return sum(n * n for n in self.lengths)

    @property
    def ragged(self) -> bool:
        """Whether any row is padded."""
        return min(self.lengths) < self.padded


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of one step."""

    flops: float
    bytes: float

    def floor(self, matrix_rate: float, copy_rate: float) -> float:
        """The minimum time in seconds; rates in operations and bytes per second."""
        return max(self.flops / matrix_rate, self.bytes / copy_rate)


def ragged_lengths(rows: int, mean: int, longest: int, seed: int) -> tuple[int, ...]:
    """Lengths from a gamma distribution with a coefficient of variation of 0.75, adjusted to exactly this mean."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.gamma(1 / 0.75**2, mean * 0.75**2, rows).round(), 4, longest).astype(int)
    while (missing := rows * mean - int(lengths.sum())) != 0:
        i = int(rng.integers(rows))
        lengths[i] = min(max(lengths[i] + (1 if missing > 0 else -1), 4), longest)
    return tuple(lengths.tolist())


SIZES = {
    "base": Size(12, 768, 3072),
    "large": Size(24, 1024, 4096),
}
# With seed 17 the sample's coefficient of variation is 0.744 and its longest row has the full length.
BATCHES = {
    "ragged": Batch("64 rows of mean length 128, padded to 512", ragged_lengths(64, 128, 512, seed=17), 512),
    "dense": Batch("64 x 512", (512,) * 64, 512),
    "one": Batch("1 x 128", (128,), 128),
    "small": Batch("8 x 128", (128,) * 8, 128),
}


def bias_gelu(size: Size, T: int, width: int) -> Work:
    """`width`: bytes per number. The roughly 25 operations per number are not counted."""
    return Work(0.0, (2 * T + 1) * size.intermediate * width)


def add_layer_norm(size: Size, T: int, width: int) -> Work:
    """x, residual and y; three vectors; two float32 statistics per row."""
    return Work(0.0, (3 * T + 3) * size.hidden * width + 8 * T)


def embed(size: Size, batch: Batch, width: int) -> Work:
    """A row of the word table per token, the used rows of the position table once, ids, and the output."""
    rows = 2 * batch.tokens + max(batch.lengths) + 2
    return Work(0.0, rows * size.hidden * width + 16 * batch.tokens)


def bias_gelu_vjp(size: Size, T: int, width: int) -> Work:
    """The cotangent and x read, dx written; the bias and its gradient."""
    return Work(0.0, (3 * T + 2) * size.intermediate * width)


def dropout_vjp(size: Size, T: int, width: int) -> Work:
    """The cotangent read, the gradient written, and the tokens' indices."""
    return Work(0.0, 2 * T * size.hidden * width + 8 * T)


def add_layer_norm_vjp(size: Size, T: int, width: int) -> Work:
    """The cotangent, x and residual read, two gradients of their shape written; five vectors."""
    return Work(0.0, (5 * T + 5) * size.hidden * width)


def dropped_layer_norm_vjp(size: Size, T: int, width: int) -> Work:
    """As `add_layer_norm_vjp`, and the tokens' indices."""
    return Work(0.0, (5 * T + 5) * size.hidden * width + 8 * T)


def embed_vjp(size: Size, batch: Batch, width: int) -> Work:
    """The cotangent and the rows that `embed` reads; the gradients of both tables, which are mostly zeros."""
    rows = 2 * batch.tokens + max(batch.lengths) + VOCABULARY + POSITIONS + 3
    return Work(0.0, rows * size.hidden * width + 16 * batch.tokens)


def linear_cross_entropy_vjp(size: Size, T: int, width: int) -> Work:
    """Three products of the rows with a label; hidden states, table, bias and labels read, three gradients written."""
    rows = -(-T // LABELLED)
    moved = (2 * T * size.hidden + 2 * VOCABULARY * (size.hidden + 1)) * width + 8 * T
    return Work(6.0 * rows * VOCABULARY * size.hidden, moved)


def packed_attention(size: Size, batch: Batch, width: int) -> Work:
    """Two n x n x D products per head and sequence; qkv read, context and log-sum-exps written."""
    moved = 4 * batch.tokens * size.hidden * width + 4 * size.heads * batch.tokens
    return Work(4.0 * size.hidden * batch.pairs, moved)


def packed_attention_vjp(size: Size, batch: Batch, width: int) -> Work:
    """The forward's two products and five of the backward; qkv and the cotangent read, the gradient written."""
    return Work(14.0 * size.hidden * batch.pairs, 7 * batch.tokens * size.hidden * width)


def pair_of(n: int) -> tuple[int, int, int, int]:
    """A pair of n tokens, of which CAMLM masks 15 %: text and masks of both sides, as `pair_groups` takes them."""
    masked = round(0.075 * n)
    first = (n - 2 * masked + 1) // 2
    return first, masked, n - 2 * masked - first, masked


def group_scores(batch: Batch) -> int:
    """Scores per head if each row is a pair: text and the other side's masks see the text, masks also themselves."""
    pairs = map(pair_of, batch.lengths)
    return sum(x * (x + m_y) + y * (y + m_x) + m_y + m_x for x, m_y, y, m_x in pairs)


def group_attention(size: Size, batch: Batch, width: int) -> Work:
    """As `packed_attention`, with the scores of pairs."""
    moved = 4 * batch.tokens * size.hidden * width + 4 * size.heads * batch.tokens
    return Work(4.0 * size.hidden * group_scores(batch), moved)


def group_attention_vjp(size: Size, batch: Batch, width: int) -> Work:
    """As `packed_attention_vjp`, with the scores of pairs."""
    return Work(14.0 * size.hidden * group_scores(batch), 7 * batch.tokens * size.hidden * width)


def first_token_attention_vjp(size: Size, batch: Batch, width: int) -> Work:
    """Five 1 x n x D products per head and sequence; keys and values read, their gradients written."""
    rows = 4 * batch.tokens + 3 * len(batch.lengths)
    return Work(10.0 * size.hidden * batch.tokens, rows * size.hidden * width)


def first_token_attention(size: Size, batch: Batch, width: int) -> Work:
    """Two 1 x n x D products per head and sequence; keys, values and queries read, contexts written."""
    rows = 2 * batch.tokens + 2 * len(batch.lengths)
    return Work(4.0 * size.hidden * batch.tokens, rows * size.hidden * width)


def encoder_steps(size: Size, batch: Batch, width: int) -> Iterator[Work]:
    """The steps of the encoder's forward, without padding."""
    T = batch.tokens
    yield embed(size, batch, width)
    for _ in range(size.layers):
        yield from (work for _, work in products(size, T, width))
        yield from (packed_attention(size, batch, width), bias_gelu(size, T, width))
        yield from [add_layer_norm(size, T, width)] * 2


def training_steps(size: Size, batch: Batch, width: int) -> Iterator[Work]:
    """The steps of forward and backward with the loss of masked words, without the optimizer.

    The backward has two products for each of the forward's. That of attention needs the five products that
    `packed_attention_vjp` has beyond the forward's two.
    """
    T = batch.tokens
    yield from encoder_steps(size, batch, width)
    yield embed_vjp(size, batch, width)
    attention = packed_attention_vjp(size, batch, width)
    for _ in range(size.layers):
        yield from [work for _, work in products(size, T, width)] * 2
        yield Work(attention.flops - packed_attention(size, batch, width).flops, attention.bytes)
        yield bias_gelu_vjp(size, T, width)
        yield from [add_layer_norm_vjp(size, T, width)] * 2
    yield linear_cross_entropy_vjp(size, T, width)


def products(size: Size, T: int, width: int) -> Iterator[tuple[str, Work]]:
    """A layer's four matrix products; each weight is (outputs, inputs)."""
    E, F = size.hidden, size.intermediate
    for name, inputs, outputs in (("qkv", E, 3 * E), ("out", E, E), ("ffn1", E, F), ("ffn2", F, E)):
        yield name, Work(2.0 * T * inputs * outputs, (T * (inputs + outputs) + inputs * outputs) * width)


def model_floor(size: Size, batch: Batch, width: int, matrix_rate: float, copy_rate: float) -> float:
    """Minimum seconds of the encoder, without padding: the sum of its steps' floors."""
    return sum(work.floor(matrix_rate, copy_rate) for work in encoder_steps(size, batch, width))


def training_floor(size: Size, batch: Batch, width: int, matrix_rate: float, copy_rate: float) -> float:
    """Minimum seconds of a training step, as `model_floor`."""
    return sum(work.floor(matrix_rate, copy_rate) for work in training_steps(size, batch, width))

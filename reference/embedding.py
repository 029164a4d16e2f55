"""From ids to vectors: the word embedding plus the position embedding, normalised.

    x = LayerNorm(word[id] + position[position_id + 2])

Rows 0 and 1 of the position table are never used, so a table of 514 rows serves 512 tokens. There is no token-type
embedding: only separators tell the two texts of a pair apart.

Source: `ErnieMEmbeddings` in paddlenlp 2.8.1 and in transformers 4.40.2 (which adds 2 to the caller's array in place).
"""

from __future__ import annotations

import numpy as np

from .array import Array, check_range
from .layer_norm import layer_norm, layer_norm_vjp
from .trace import recomputed, record, record_gradient

POSITION_OFFSET = 2


def embed(
    input_ids: Array, position_ids: Array, word: Array, position: Array, gamma: Array, beta: Array, eps: float
) -> Array:  # (...,), (...,), (V, E), (P, E), (E,), (E,) -> (..., E)
    """Embed ids at positions, two integer arrays of the same shape: padded (B, S) or packed (T,).

    Raises ValueError if an id is not in [0, V) or a position not in [0, P - 2).
    """
    check_range("input_ids", input_ids, word.shape[0], "a vocabulary of {} rows")
    check_range("position_ids", position_ids, position.shape[0] - POSITION_OFFSET, "a position table for {} tokens")
    return embed_vectors(record("word_embeddings", word[input_ids]), position_ids, position, gamma, beta, eps)


def embed_vectors(
    vectors: Array, position_ids: Array, position: Array, gamma: Array, beta: Array, eps: float
) -> Array:  # (..., E), (...,), (P, E), (E,), (E,) -> (..., E)
    """`embed` with word vectors instead of ids, for callers that have validated the positions."""
    rows = record("position_embeddings", position[position_ids + POSITION_OFFSET])
    return record("layer_norm", layer_norm(vectors + rows, gamma, beta, eps))


def embed_vjp(
    dy: Array, input_ids: Array, position_ids: Array, word: Array, position: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array, Array]:  # (..., E), ... -> (V, E), (P, E), (E,), (E,)
    """The gradients of the word and position tables, γ and β: a table's row gets the sum over the tokens that read it.

    torch sets the gradient of the padding token's row to 0 (`padding_idx`); here every row has its own.
    """
    vectors = word[input_ids]
    d_vectors, d_position, dgamma, dbeta = embed_vectors_vjp(dy, vectors, position_ids, position, gamma, eps)
    return sum_by_row(record_gradient("word_embeddings", d_vectors), input_ids, word), d_position, dgamma, dbeta


def embed_vectors_vjp(
    dy: Array, vectors: Array, position_ids: Array, position: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array, Array]:  # (..., E), (..., E), ... -> (..., E), (P, E), (E,), (E,)
    """The gradients of the vectors, the position table, γ and β."""
    rows = position_ids + POSITION_OFFSET
    dy = record_gradient("layer_norm", dy)
    with recomputed():
        summed = vectors + record("position_embeddings", position[rows])
    d_sum, dgamma, dbeta = layer_norm_vjp(dy, summed, gamma, eps)
    return d_sum, sum_by_row(record_gradient("position_embeddings", d_sum), rows, position), dgamma, dbeta


def sum_by_row(x: Array, rows: Array, table: Array) -> Array:  # (..., E), (...,), (V, E) -> (V, E)
    """Add each vector of `x` to the row of a zero table that `rows` names. float16 is summed in float32."""
    vectors, rows = x.reshape(-1, x.shape[-1]), rows.reshape(-1)
    total = np.zeros_like(table)
    if rows.size:
        order = np.argsort(rows, kind="stable")
        used, starts = np.unique(rows[order], return_index=True)
        wide = np.float32 if x.dtype == np.float16 else x.dtype
        total[used] = np.add.reduceat(vectors[order], starts, axis=0, dtype=wide)
    return total

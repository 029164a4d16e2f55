"""From ids to vectors: the word embedding plus the position embedding, normalised.

    x = LayerNorm(word[id] + position[position_id + 2])

Rows 0 and 1 of the position table are never used, so a table of 514 rows serves 512 tokens. There is no token-type
embedding: only separators tell the two texts of a pair apart.

Source: `ErnieMEmbeddings` in paddlenlp 2.8.1 and in transformers 4.40.2 (which adds 2 to the caller's array in place).
"""

from __future__ import annotations

from .array import Array, check_range
from .layer_norm import layer_norm
from .trace import record

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

"""Text to ids and back, with character offsets.

A text goes through these files in order: `segments` (lower-casing, special tokens), `piece_model` (sentencepiece),
`cutting` (ERNIE-M's two rules), `token_table` (ids), `truncation`, `layout` ([CLS] and [SEP]), `padding`,
`batch_encoding`. `calls` takes it through them. `sampling` explains sampled pieces and their seeds, `offsets` traces
each token back to the text, and `alignment` answers which token covers which character or word; `decoding` turns tokens
into text.
"""

from .added_tokens import AddedToken
from .batch_encoding import BatchEncoding
from .tokenizer import ErnieMTokenizer

__all__ = ["AddedToken", "BatchEncoding", "ErnieMTokenizer"]

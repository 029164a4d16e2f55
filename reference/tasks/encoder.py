"""Texts to vectors: one per text, in the order of the texts.

    cls      the hidden state of [CLS]
    mean     the mean of the hidden states of all tokens, including [CLS] and [SEP]
    pooler   the pooler's output, tanh(dense(cls))

Texts are sorted by length before they are batched, so that batches contain little padding. The model may be the
reference or a torch model (see `backends`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from ernie_m.tokenizer import ErnieMTokenizer

from ..array import Array
from ..checkpoint import open_checkpoint
from ..checkpoint.names import file_name
from ..groups import TOKENS as TOKENS
from ..groups import batches as batches
from .backends import NUMPY, backend_of, check_backend, load
from .long_texts import POLICIES, TRUNCATE, WINDOW_MEAN, parts

POOLINGS = ("cls", "mean", "pooler")


@dataclass(frozen=True)
class TokenRows:
    """Token ids of `count` texts, with special tokens: row j is text owners[j], or a window of it."""

    count: int
    owners: list[int]
    rows: list[list[int]]


class Encoder:
    """A model and its tokenizer, which turn texts into vectors.

    model: an ErnieMModel of `ernie_m.reference` or `ernie_m.kernels`.
    pooling: one of POOLINGS, how the model's output becomes a vector.
    long: one of POLICIES, how to treat a text that is longer than the model's maximum length (see `long_texts`).
    batch_size: the maximum number of texts, or windows of long texts, in one call of the model; by default as many as
        have TOKENS tokens together.

    `truncated` counts the texts truncated so far. Raises ValueError for any other argument, and for a model whose
    maximum length leaves no room for a token between [CLS] and [SEP]; TypeError for any other model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: ErnieMTokenizer,
        pooling: str = "mean",
        long: str = TRUNCATE,
        batch_size: int | None = None,
    ) -> None:
        for name, value, allowed in (("pooling", pooling, POOLINGS), ("long", long, POLICIES)):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.backend = backend_of(model)
        if model.config.max_length < 3:
            raise ValueError(
                f"model: expected a maximum length of at least 3 tokens ([CLS], a token, [SEP]), "
                f"got {model.config.max_length}"
            )
        if pooling == "pooler" and not self.backend.has_pooler:
            raise ValueError("pooling: the model has no pooler; expected cls or mean, got pooler")
        self.model, self.tokenizer = model, tokenizer
        self.pooling, self.long, self.batch_size = pooling, long, batch_size
        self.truncated = 0

    @classmethod
    def from_pretrained(
        cls,
        directory: str | PathLike[str],
        pooling: str = "mean",
        long: str = TRUNCATE,
        batch_size: int | None = None,
        backend: str = NUMPY,
        device: str | None = None,
    ) -> Encoder:
        """Load model and tokenizer from a checkpoint directory, in float32, for inference only.

        backend: "numpy" for the reference, "torch" for the model of `ernie_m.kernels`, which needs the extra "kernels".
        device: where torch computes, such as "cuda"; by default the CPU.

        Raises ValueError if `pooling` is "pooler" and the checkpoint has no pooler, ImportError if torch is needed and
        not installed; otherwise as the `from_pretrained` of model and tokenizer.
        """
        check_backend(backend, device)
        tokenizer = ErnieMTokenizer.from_pretrained(directory)
        if pooling == "pooler":
            # The model's `from_pretrained` would newly initialise a missing pooler.
            checkpoint = open_checkpoint(directory)
            if file_name("pooler.weight", checkpoint.format, checkpoint.prefix) not in checkpoint.tensors:
                raise ValueError(f"pooling: {directory} has no pooler; expected cls or mean, got pooler")
        return cls(load(directory, backend, device), tokenizer, pooling, long, batch_size)

    def vectors(self, texts: Sequence[str], names: Sequence[str] | None = None) -> Array:  # n texts -> (n, E)
        """One vector per text, in order; an empty text gets one too. In the model's dtype, or float32 if that is less.

        names: what errors call each text; by default `texts[i]`. If a text is too long and `long` is "error", raises a
        ValueError that names the text.
        """
        return self.vectors_of_rows(self.token_rows(texts, names))

    def token_rows(self, texts: Sequence[str], names: Sequence[str] | None = None) -> TokenRows:
        """The first half of `vectors`, without the model: it may run in another thread, one call at a time."""
        longest = self.model.config.max_length - 2
        owners: list[int] = []
        rows: list[list[int]] = []
        for i, ids in enumerate(self._token_ids(texts)):
            try:
                found = parts(ids, longest, self.long)
            except ValueError as error:
                raise ValueError(f"{f'texts[{i}]' if names is None else names[i]}: {error}") from None
            self.truncated += self.long == TRUNCATE and len(ids) > longest
            owners += [i] * len(found)
            rows += [self.tokenizer.build_inputs_with_special_tokens(list(piece)) for piece in found]
        return TokenRows(len(texts), owners, rows)

    def vectors_of_rows(self, given: TokenRows) -> Array:  # n texts -> (n, E)
        """The second half of `vectors`: run the model."""
        owners, rows = given.owners, given.rows
        sums = np.zeros((given.count, self.model.config.hidden_size), self.backend.dtype)
        for chosen in batches([len(row) for row in rows], self.batch_size):
            # `sums[...] += ...` would add only one of several windows of the same text.
            pooled = self.backend.pooled([rows[j] for j in chosen], self.pooling)
            np.add.at(sums, [owners[j] for j in chosen], pooled)
        if self.long == WINDOW_MEAN:
            sums /= np.bincount(owners, minlength=given.count).astype(sums.dtype)[:, None]
        return sums

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        batch = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        return list(batch["input_ids"])

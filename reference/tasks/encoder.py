"""Texts to vectors: one per text, in the order of the texts.

    cls      the hidden state of [CLS]
    mean     the mean of the hidden states of all tokens, including [CLS] and [SEP]
    pooler   the pooler's output, tanh(dense(cls))

Texts are sorted by length before they are batched, so that batches contain little padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np

from ernie_m.tokenizer import ErnieMTokenizer

from ..array import Array
from ..checkpoint import open_checkpoint
from ..checkpoint.names import file_name
from ..model import ErnieMModel
from ..padding import pad_ids
from .long_texts import POLICIES, TRUNCATE, WINDOW_MEAN, parts

POOLINGS = ("cls", "mean", "pooler")


class Encoder:
    """A model and its tokenizer, which turn texts into vectors.

    pooling: one of POOLINGS, how the model's output becomes a vector.
    long: one of POLICIES, how to treat a text that is longer than the model's maximum length (see `long_texts`).
    batch_size: the maximum number of texts, or windows of long texts, in one call of the model.

    `truncated` counts the texts truncated so far. Raises ValueError for any other argument, and for a model whose
    maximum length leaves no room for a token between [CLS] and [SEP].
    """

    def __init__(
        self,
        model: ErnieMModel,
        tokenizer: ErnieMTokenizer,
        pooling: str = "mean",
        long: str = TRUNCATE,
        batch_size: int = 32,
    ) -> None:
        for name, value, allowed in (("pooling", pooling, POOLINGS), ("long", long, POLICIES)):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if model.config.max_length < 3:
            raise ValueError(
                f"model: expected a maximum length of at least 3 tokens ([CLS], a token, [SEP]), "
                f"got {model.config.max_length}"
            )
        if pooling == "pooler" and model.parameters.pooler is None:
            raise ValueError("pooling: the model has no pooler; expected cls or mean, got pooler")
        self.model, self.tokenizer = model, tokenizer
        self.pooling, self.long, self.batch_size = pooling, long, batch_size
        self.truncated = 0

    @classmethod
    def from_pretrained(
        cls, directory: str | PathLike[str], pooling: str = "mean", long: str = TRUNCATE, batch_size: int = 32
    ) -> Encoder:
        """Load model and tokenizer from a checkpoint directory, in float32.

        Raises ValueError if `pooling` is "pooler" and the checkpoint has no pooler; otherwise as the `from_pretrained`
        of model and tokenizer.
        """
        tokenizer = ErnieMTokenizer.from_pretrained(directory)
        if pooling == "pooler":
            # `ErnieMModel.from_pretrained` would newly initialise a missing pooler.
            checkpoint = open_checkpoint(directory)
            if file_name("pooler.weight", checkpoint.format, checkpoint.prefix) not in checkpoint.tensors:
                raise ValueError(f"pooling: {directory} has no pooler; expected cls or mean, got pooler")
        model = ErnieMModel.from_pretrained(directory, dtype=np.float32)
        return cls(model, tokenizer, pooling, long, batch_size)

    def vectors(self, texts: Sequence[str], names: Sequence[str] | None = None) -> Array:  # n texts -> (n, E)
        """One vector per text, in order; an empty text gets one too.

        names: what errors call each text; by default `texts[i]`. If a text is too long and `long` is "error", raises a
        ValueError that names the text.
        """
        longest = self.model.config.max_length - 2
        owners: list[int] = []
        pieces: list[list[int]] = []
        for i, ids in enumerate(self._token_ids(texts)):
            try:
                found = parts(ids, longest, self.long)
            except ValueError as error:
                raise ValueError(f"{f'texts[{i}]' if names is None else names[i]}: {error}") from None
            self.truncated += self.long == TRUNCATE and len(ids) > longest
            owners += [i] * len(found)
            pieces += [self.tokenizer.build_inputs_with_special_tokens(list(piece)) for piece in found]

        sums = np.zeros((len(texts), self.model.config.hidden_size), self.model.dtype)
        order = sorted(range(len(pieces)), key=lambda j: len(pieces[j]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            # `sums[...] += ...` would add only one of several windows of the same text.
            np.add.at(sums, [owners[j] for j in chosen], self._pooled([pieces[j] for j in chosen]))
        if self.long == WINDOW_MEAN:
            sums /= np.bincount(owners, minlength=len(texts)).astype(sums.dtype)[:, None]
        return sums

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        batch = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        return list(batch["input_ids"])

    def _pooled(self, rows: Sequence[Sequence[int]]) -> Array:  # B rows of ids -> (B, E)
        input_ids, mask = pad_ids(rows, self.model.config.pad_token_id)
        out = self.model(input_ids, attention_mask=mask)
        if self.pooling == "pooler":
            assert out.pooler_output is not None
            return out.pooler_output
        if self.pooling == "cls":
            return out.last_hidden_state[:, 0]
        # Hidden states are 0 at padding.
        return out.last_hidden_state.sum(axis=1) / mask.sum(axis=1)[:, None].astype(out.last_hidden_state.dtype)

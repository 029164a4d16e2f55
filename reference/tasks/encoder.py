"""Texts to vectors, in the order of the texts: one for each text, or one for each of its tokens.

    cls          the hidden state of [CLS]
    mean         the mean of the hidden states of all tokens, including [CLS] and [SEP]
    pooler       the pooler's output, tanh(dense(cls))
    first-last   the mean over all tokens of (first + last) / 2, the hidden states after the first and the last layer

Texts are sorted by length before they are batched, so that batches contain little padding. The model may be the
reference or a torch model (see `backends`).

Source: for first-last, Su et al., 2021 ("Whitening Sentence Representations", first-last-avg). "First" is the output of
the first layer, not the embeddings; SimCSE does the same since its issue 133. For centring, `training.retrieval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from ernie_m.tokenizer import ErnieMTokenizer, hub

from ..array import Array, true_or_false
from ..checkpoint import open_checkpoint
from ..checkpoint.names import file_name
from ..groups import TOKENS as TOKENS
from ..groups import batches as batches
from ..training.retrieval import normalised
from .arguments import at_least_one, finite, several
from .backends import NUMPY, POOLINGS, backend_of, check_backend, load
from .long_texts import POLICIES, TRUNCATE, WINDOW_MEAN, parts, window_starts
from .recorded import ONE_AT_A_TIME, Centre, Recorded, choose_layer, read_recorded
from .results import TokenVectors


@dataclass(frozen=True)
class TokenRows:
    """Token ids of `count` texts, with special tokens: row j is text owners[j], or a window of it from token starts[j].

    `spans`: of each text's tokens, without special tokens, the characters (start, end) that they come from, if wanted.
    """

    count: int
    owners: list[int]
    rows: list[list[int]]
    starts: list[int]
    spans: list[list[tuple[int, int]]] | None = None


class Encoder:
    """A model and its tokenizer, which turn texts into vectors.

    model: an ErnieMModel of `ernie_m.reference` or `ernie_m.kernels`.
    pooling: one of POOLINGS, how the model's output becomes a vector.
    long: one of POLICIES, how to treat a text that is longer than the model's maximum length (see `long_texts`).
    batch_size: the maximum number of texts, or windows of long texts, in one call of the model; by default as many as
        have TOKENS tokens together.
    layer: the layer after which hidden states are taken, 0 for the embeddings; for cls and mean only. By default the
        last; for mean the recorded one, if there is one.
    center: whether to subtract the recorded mean of each text's language, which calls then ask for. The mean vector of
        a language carries the language, not the meaning. A language without a recorded mean is not centred; a
        warning, once per language, says so.
    normalize: whether to scale each vector to length 1.
    recorded: what the checkpoint records for retrieval, if it does; `from_pretrained` reads it.

    Several threads may use one object. `truncated` counts the texts truncated so far, by all of them.

    Raises ValueError for any other argument, and for a model whose maximum length leaves no room for a token between
    [CLS] and [SEP]; TypeError for any other model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: ErnieMTokenizer,
        pooling: str = "mean",
        long: str = TRUNCATE,
        batch_size: int | None = None,
        *,
        layer: int | None = None,
        center: bool = False,
        normalize: bool = False,
        recorded: Recorded | None = None,
    ) -> None:
        for name, value, allowed in (("pooling", pooling, POOLINGS), ("long", long, POLICIES)):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        true_or_false(center=center, normalize=normalize)
        if batch_size is not None:
            at_least_one("batch_size", batch_size)
        self.backend = backend_of(model)
        if model.config.max_length < 3:
            raise ValueError(
                f"model: expected a maximum length of at least 3 tokens ([CLS], a token, [SEP]), "
                f"got {model.config.max_length}"
            )
        if pooling == "pooler" and not self.backend.has_pooler:
            raise ValueError("pooling: the model has no pooler; expected cls, mean or first-last, got pooler")
        self.model, self.tokenizer = model, tokenizer
        self.pooling, self.long, self.batch_size = pooling, long, batch_size
        self.layer = choose_layer(model.config, pooling, layer, recorded)
        self.center, self.normalize = center, normalize
        self.centre = Centre(recorded, pooling, self.layer) if center else None
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
        *,
        layer: int | None = None,
        center: bool = False,
        normalize: bool = False,
        default_mask: str | None = None,
        revision: str | None = None,
    ) -> Encoder:
        """Load model and tokenizer from a directory, or a repository (see `hub`), in float32, for inference only.

        backend: "numpy" for the reference, "torch" for the model of `ernie_m.kernels`, which needs the extra "kernels".
        device: where torch computes, such as "cuda"; by default the CPU.
        default_mask: the configuration's, if that should be another one than the checkpoint's own.
        Layer and means of languages come from the checkpoint's `retrieval.json`, if it has one (see `recorded`).

        Raises ValueError if `pooling` is "pooler" and the checkpoint has no pooler, or if `retrieval.json` has another
        form, ImportError if torch is needed and not installed; otherwise as the `from_pretrained` of model and
        tokenizer.
        """
        check_backend(backend, device)
        directory = hub.directory(directory, revision)
        tokenizer = ErnieMTokenizer.from_pretrained(directory)
        if pooling == "pooler":
            # The model's `from_pretrained` would newly initialise a missing pooler.
            checkpoint = open_checkpoint(directory)
            if file_name("pooler.weight", checkpoint.format, checkpoint.prefix) not in checkpoint.tensors:
                expected = "expected cls, mean or first-last"
                raise ValueError(f"pooling: {directory} has no pooler; {expected}, got pooler")
        changes = {} if default_mask is None else {"default_mask": default_mask}
        model, recorded = load(directory, backend, device, **changes), read_recorded(directory)
        options: dict[str, Any] = {"layer": layer, "center": center, "normalize": normalize, "recorded": recorded}
        return cls(model, tokenizer, pooling, long, batch_size, **options)

    def vectors(
        self,
        texts: Sequence[str],
        names: Sequence[str] | None = None,
        language: str | Sequence[str] | None = None,
    ) -> Array:  # n texts -> (n, E)
        """One vector per text, in order; an empty text gets one too. In the model's dtype, or float32 if that is less.

        names: what errors call each text; by default `texts[i]`.
        language: that of all texts, or one for each, named as the checkpoint names it; if `center`, and only then.

        Raises TypeError for anything but texts, and ValueError for a wrong `language`, for a text that is not Unicode,
        and if a text is too long and `long` is "error", naming the text.
        """
        return self.vectors_of_rows(self.token_rows(texts, names), language)

    def token_rows(
        self, texts: Sequence[str], names: Sequence[str] | None = None, with_spans: bool = False
    ) -> TokenRows:
        """The first half of `vectors`, without the model: it may run in another thread."""
        texts = several("texts", texts, names)
        longest = self.model.config.max_length - 2
        owners: list[int] = []
        rows: list[list[int]] = []
        starts: list[int] = []
        options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False}
        options["return_offsets_mapping"] = with_spans
        batch = self.tokenizer(texts, **options) if texts else {"input_ids": [], "offset_mapping": []}
        for i, ids in enumerate(batch["input_ids"]):
            try:
                found = parts(ids, longest, self.long)
            except ValueError as error:
                raise ValueError(f"{f'texts[{i}]' if names is None else names[i]}: {error}") from None
            owners += [i] * len(found)
            rows += [self.tokenizer.build_inputs_with_special_tokens(list(piece)) for piece in found]
            starts += window_starts(len(ids), longest) if len(found) > 1 else [0]
        if self.long == TRUNCATE:
            with ONE_AT_A_TIME:
                self.truncated += sum(len(ids) > longest for ids in batch["input_ids"])
        return TokenRows(len(texts), owners, rows, starts, batch["offset_mapping"] if with_spans else None)

    def vectors_of_rows(
        self, given: TokenRows, language: str | Sequence[str] | None = None
    ) -> Array:  # n texts -> (n, E)
        """The second half of `vectors`: run the model."""
        means = self._means(given.count, language)
        owners, rows = given.owners, given.rows
        sums = np.zeros((given.count, self.model.config.hidden_size), self.backend.dtype)
        for chosen in batches([len(row) for row in rows], self.batch_size):
            # `sums[...] += ...` would add only one of several windows of the same text.
            pooled = self.backend.pooled([rows[j] for j in chosen], self.pooling, self._inner_layer)
            np.add.at(sums, [owners[j] for j in chosen], pooled)
        if self.long == WINDOW_MEAN:
            sums /= np.bincount(owners, minlength=given.count).astype(sums.dtype)[:, None]
        return self._finished(sums, means)

    def tokens(
        self,
        texts: Sequence[str],
        names: Sequence[str] | None = None,
        language: str | Sequence[str] | None = None,
    ) -> list[TokenVectors]:
        """For each text, its tokens' hidden states, those that `pooling` averages or chooses from, and their spans.

        They are centred and normalised as `vectors` are. A text that was truncated has the tokens that are left; a
        token in several windows has its mean. Arguments and errors are those of `vectors`; also raises ValueError if
        `pooling` is "pooler", which has no tokens.
        """
        if self.pooling == "pooler":
            raise ValueError("pooling: expected cls, mean or first-last for vectors of tokens, got pooler")
        given = self.token_rows(texts, names, with_spans=True)
        means = self._means(given.count, language)
        assert given.spans is not None
        sizes = [0] * given.count
        for i, start, row in zip(given.owners, given.starts, given.rows, strict=True):
            sizes[i] = start + len(row) - 2
        sums = [np.zeros((n, self.model.config.hidden_size), self.backend.dtype) for n in sizes]
        counts = [np.zeros((n, 1), self.backend.dtype) for n in sizes]
        for chosen in batches([len(row) for row in given.rows], self.batch_size):
            states = self.backend.tokens([given.rows[j] for j in chosen], self.pooling, self._inner_layer)
            for j, hidden in zip(chosen, states, strict=True):
                i, start = given.owners[j], given.starts[j]
                part = slice(start, start + len(hidden) - 2)
                sums[i][part] += hidden[1:-1]
                counts[i][part] += 1
        return [
            TokenVectors(self._finished(sums[i] / counts[i], None if means is None else means[i]), spans[: sizes[i]])
            for i, spans in enumerate(given.spans)
        ]

    @property
    def _inner_layer(self) -> int | None:
        return None if self.layer == self.model.config.num_hidden_layers else self.layer

    def _means(self, count: int, language: str | Sequence[str] | None) -> Array | None:  # -> (count, E)
        """What to subtract from each text's vectors."""
        if self.centre is not None:
            return self.centre.means(count, language, self.model.config.hidden_size).astype(self.backend.dtype)
        if language is not None:
            raise ValueError(f"language: expected none without center=True, which alone needs it, got {language!r}")
        return None

    def _finished(self, vectors: Array, means: Array | None) -> Array:  # (n, E), (n, E) or (E,) -> (n, E)
        """The vectors, centred and normalised if that is wanted. Raises ValueError for nan or inf."""
        centred = finite(vectors) if means is None else finite(vectors) - means
        return normalised(centred) if self.normalize else centred

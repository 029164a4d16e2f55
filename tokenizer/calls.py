"""What a tokenizer is called for: encoding texts and batches of texts, and padding what is encoded.

Source: transformers 4.40.2 `tokenization_utils_base.py`, `PreTrainedTokenizerBase.__call__` and `pad`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from .batch_encoding import BatchEncoding, to_tensors
from .id_rows import IdRows
from .inputs import Inputs, Text, arrange, flatten
from .layout import Row, columns_of
from .options import Options, boolean
from .padding import as_columns, pad_columns
from .text_encoder import Encoded, TextEncoder, join_words
from .truncation import truncate

# The arguments that ask for a column, where it is not `return_` and the column's name.
ARGUMENTS = {"offset_mapping": "return_offsets_mapping", "overflow_to_sample_mapping": "return_overflowing_tokens"}


class Calls(IdRows):
    """A token table that encodes texts, by `_encoder`, with its own settings as defaults."""

    model_input_names: Sequence[str] = ("input_ids", "attention_mask")
    pad_token_type_id = 0

    padding_side: str
    truncation_side: str
    model_max_length: int
    split_special_tokens: bool
    _encoder: TextEncoder
    _noted: set[str]

    def tokenize(self, text: str, pair: str | None = None, *, split_special_tokens: bool | None = None) -> list[str]:
        """The tokens of a text, followed by those of a second one. No special tokens are added."""
        split = self._splits_special(split_special_tokens)
        texts = arrange(text, None, False).first
        texts += [] if pair is None else arrange(pair, None, False, ("pair", "")).first
        return [token for part in flatten(texts) for token in self._encoder.tokens(part, split)]

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Encode a text, a pair, or a batch of either; `inputs` lists the forms.

        Columns: input_ids; token_type_ids, special_tokens_mask, attention_mask (by default), length (without padding),
        offset_mapping (code points, relative to the text or word), overflow_to_sample_mapping. They are lists or, with
        `return_tensors`, arrays ("np") or torch tensors ("pt"); a single text is then a batch of one.
        `return_overflowing_tokens`: one row per window of a text that is too long, overlapping by `stride` tokens.
        `padding`, `truncation`: see `options`; options without effect are warned about once, if `verbose`.
        `text_target`: encoded alike, its ids become the column labels. Raises TypeError or ValueError that names the
        argument.
        """
        returned = {"token_type_ids": return_token_type_ids, "special_tokens_mask": return_special_tokens_mask}
        returned |= {"attention_mask": return_attention_mask, "length": return_length}
        returned |= {"offset_mapping": return_offsets_mapping}
        returned |= {"overflow_to_sample_mapping": return_overflowing_tokens}
        names = ["input_ids", *(name for name, option in returned.items() if self._wanted(name, option))]
        given = {"padding": padding, "truncation": truncation, "max_length": max_length, "stride": stride}
        given |= {"pad_to_multiple_of": pad_to_multiple_of, "return_tensors": return_tensors}
        options = self._options(padding_side, verbose, **given, overflow="overflow_to_sample_mapping" in names)
        is_split_into_words = boolean("is_split_into_words", is_split_into_words)
        special, split = boolean("add_special_tokens", add_special_tokens), self._splits_special(split_special_tokens)
        if text_target is None and text_pair_target is not None:
            raise ValueError("text_pair_target: expected None without text_target")
        if text is not None or text_target is None:
            inputs = arrange(text, text_pair, is_split_into_words)
            batch = self._encode_columns(inputs, options, names, special, split)
            if text_target is None:
                return batch
        elif text_pair is not None:
            raise ValueError("text_pair: expected None without text")
        targets = arrange(text_target, text_pair_target, is_split_into_words, ("text_target", "text_pair_target"))
        labels = self._encode_columns(targets, options, names, special, split)
        if text is None:
            return labels
        batch["labels"] = labels["input_ids"]
        return batch

    def _encode_columns(
        self, inputs: Inputs, options: Options, names: list[str], add_special_tokens: bool, split: bool
    ) -> BatchEncoding:
        """The named columns of these texts: encoded, truncated, padded, as arrays."""
        encoded = self._encode(inputs, split, "offset_mapping" in names)
        rows = [
            row
            for i, (first, second) in enumerate(encoded)
            for row in truncate(Row(first, second, add_special_tokens, i), options)
        ]
        columns = columns_of(rows, names, self.cls_token_id, self.sep_token_id)
        pad_columns(columns, options, self.pad_token_id, self.pad_token_type_id)
        if not inputs.batched and options.return_tensors is None and not options.overflow:
            columns = {name: column[0] for name, column in columns.items()}
        return BatchEncoding(to_tensors(columns, options.return_tensors), rows, options.padding_side, self.token_of)

    def _encode(
        self, inputs: Inputs, split_special: bool, with_offsets: bool
    ) -> Iterator[tuple[Encoded, Encoded | None]]:
        """The encoded texts of each sample, from one call."""
        texts: list[Text] = inputs.first + (inputs.second or [])
        parts = iter(self._encoder.encode(flatten(texts), split_special, with_offsets))
        encoded = [next(parts) if isinstance(t, str) else join_words([next(parts) for _ in t]) for t in texts]
        count = len(inputs.first)
        return zip(encoded[:count], encoded[count:] if inputs.second else [None] * count, strict=True)

    def _wanted(self, name: str, option: bool | None) -> bool:
        argument = ARGUMENTS.get(name, f"return_{name}")
        return name in self.model_input_names if option is None else boolean(argument, option)

    def _splits_special(self, option: bool | None) -> bool:
        return self.split_special_tokens if option is None else boolean("split_special_tokens", option)

    def _options(self, padding_side: str | None, verbose: bool, **given: Any) -> Options:
        options = Options(
            **given,
            padding_side=self.padding_side if padding_side is None else padding_side,
            truncation_side=self.truncation_side,
            model_max_length=self.model_max_length,
        )
        for name, reason in options.without_effect.items() if boolean("verbose", verbose) else ():
            if name not in self._noted:
                self._noted.add(name)
                warnings.warn(f"{name}={given[name]!r} has no effect: {reason}", stacklevel=3)
        return options

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The input_ids of a call with these arguments."""
        return self(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """The call, under an older name."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Any, **options: Any) -> BatchEncoding:
        """The call with a batch of texts or pairs, under an older name."""
        return self(batch_text_or_text_pairs, **options)

    def pad(
        self,
        encoded_inputs: Any,
        padding: Any = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
        padding_side: str | None = None,
    ) -> BatchEncoding:
        """Pad encoded rows: a mapping of columns, or a list of mappings, as from a data loader.

        Columns that are not in the table of `padding`, such as labels, stay as they are. Raises TypeError or ValueError
        that names the column that cannot be padded, or cannot become a tensor, and says why.
        """
        given = {"padding": padding, "truncation": False, "max_length": max_length, "return_tensors": return_tensors}
        options = self._options(padding_side, verbose, **given, pad_to_multiple_of=pad_to_multiple_of)
        columns, single = as_columns(encoded_inputs)
        if "attention_mask" not in columns and self._wanted("attention_mask", return_attention_mask):
            columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        pad_columns(columns, options, self.pad_token_id, self.pad_token_type_id)
        if single and return_tensors is None:
            columns = {name: column[0] for name, column in columns.items()}
        return BatchEncoding(to_tensors(columns, return_tensors))

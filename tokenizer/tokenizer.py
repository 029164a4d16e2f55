"""`ErnieMTokenizer`: the calls that users know from transformers, built on the stages in this folder.

It differs from transformers 4.40.2 on purpose in two ways: `attention_mask` is returned by default, and with
`return_overflowing_tokens=True` the tokens that truncation removes are returned as further rows.

Source: transformers 4.40.2 `tokenization_ernie_m.py` and `tokenization_utils_base.py` for names and behaviour.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .added_tokens import AddedToken
from .batch_encoding import BatchEncoding, to_tensors
from .cutting import LONE_MARKER_RULES
from .id_rows import IdRows
from .inputs import Inputs, Text, arrange, flatten
from .layout import Row, columns_of
from .options import NO_LIMIT, SIDES, Options, choice, integer
from .padding import as_columns, pad_columns
from .piece_model import PieceModel
from .saving import SAVED, constructor_arguments, table_files, vocabulary_files, write_all
from .text_encoder import Encoded, TextEncoder, join_words
from .truncation import truncate
from .vocabulary import Vocabulary


class ErnieMTokenizer(IdRows):
    """Text to ids and back. `ErnieMTokenizer.from_pretrained(directory)`, or from the two files."""

    model_input_names: Sequence[str] = ("input_ids", "attention_mask")
    pad_token_type_id = 0
    is_fast = False

    def __init__(
        self,
        sentencepiece_model_file: str | os.PathLike[str],
        vocab_file: str | os.PathLike[str],
        do_lower_case: bool = False,
        *,
        lone_marker: str = "huggingface",
        strict_vocab: bool = False,
        sp_model_kwargs: Mapping[str, Any] | None = None,
        model_max_length: int = NO_LIMIT,
        padding_side: str = "right",
        truncation_side: str = "right",
        split_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = True,
        added_tokens_decoder: Mapping[Any, Any] | None = None,
        **special_tokens: str | AddedToken | Sequence[str | AddedToken] | None,
    ) -> None:
        """
        vocab_file: a vocab.txt, or "sentencepiece" for the piece model's own pieces and ids.
        lone_marker: "huggingface" or "paddle", the rule for a piece that is only the marker ▁ (see `cutting`).
        strict_vocab: whether a duplicate line in vocab.txt is an error.
        sp_model_kwargs: sampling, {"enable_sampling": True, "nbest_size": 64, "alpha": 0.1}.
        model_max_length: the length to truncate to if a call has no max_length. Longer texts are not refused.
        added_tokens_decoder: {id: token}, as in tokenizer_config.json.
        special_tokens: unk_token, sep_token, pad_token, cls_token, mask_token, additional_special_tokens, bos_token,
            eos_token. A token that is not in the vocabulary is added.
        """
        flags = {"do_lower_case": do_lower_case, "strict_vocab": strict_vocab}
        flags |= {"split_special_tokens": split_special_tokens}
        flags |= {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise TypeError(f"{name}: expected a bool, got {value!r}")
        # "No limit" may come from JSON as the float 1e30.
        limit = int(model_max_length) if isinstance(model_max_length, float) else model_max_length
        self._lone_marker = choice("lone_marker", lone_marker, LONE_MARKER_RULES)
        self.padding_side = choice("padding_side", padding_side, SIDES)
        self.truncation_side = choice("truncation_side", truncation_side, SIDES)
        self.model_max_length = integer("model_max_length", limit, 1)
        self.split_special_tokens = split_special_tokens
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self._model = PieceModel.read(sentencepiece_model_file, sp_model_kwargs)
        self.sp_model_kwargs = self._model.sampling
        own = str(vocab_file) == "sentencepiece"
        vocabulary = Vocabulary(self._model.table()) if own else Vocabulary.read(vocab_file, strict_vocab)
        super().__init__(vocabulary, do_lower_case, special_tokens, added_tokens_decoder)

    @property
    def lone_marker(self) -> str:
        """The rule for a lone marker, fixed at construction."""
        return self._lone_marker

    def _tokens_changed(self) -> None:
        super()._tokens_changed()
        self._encoder = TextEncoder(self._model, self, self._lone_marker)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_encoder"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokens_changed()

    def __repr__(self) -> str:
        return f"ErnieMTokenizer(vocab_size={self.vocab_size}, length={len(self)}, special={self.all_special_tokens})"

    def tokenize(self, text: str, pair: str | None = None, *, split_special_tokens: bool | None = None) -> list[str]:
        """The tokens of a text, followed by those of a second one. No special tokens are added."""
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        texts = arrange(text, None, False).first + ([] if pair is None else arrange(pair, None, False).first)
        return [token for part in flatten(texts) for token in self._encoder.tokens(part, split)]

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Encode a text, a pair, or a batch of either; `inputs` lists the forms.

        Columns: input_ids; token_type_ids, special_tokens_mask, attention_mask (by default), length (without padding),
        offset_mapping (code points, relative to the text or word), overflow_to_sample_mapping. They are lists or, with
        `return_tensors`, arrays ("np") or torch tensors ("pt"); a single text is then a batch of one.
        `return_overflowing_tokens`: one row per window of a text that is too long, overlapping by `stride` tokens.
        `padding`, `truncation`: see `options`. Raises TypeError or ValueError that names the argument.
        """
        inputs = arrange(text, text_pair, is_split_into_words)
        options = self._options(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors=return_tensors,
            overflow=return_overflowing_tokens,
        )
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        names = ["input_ids"]
        names += ["token_type_ids"] * self._wanted("token_type_ids", return_token_type_ids)
        names += ["special_tokens_mask"] * return_special_tokens_mask
        names += ["attention_mask"] * self._wanted("attention_mask", return_attention_mask)
        names += ["length"] * return_length + ["offset_mapping"] * return_offsets_mapping
        names += ["overflow_to_sample_mapping"] * return_overflowing_tokens
        encoded = self._encode(inputs, split, return_offsets_mapping)
        rows = [
            row
            for i, (first, second) in enumerate(encoded)
            for row in truncate(Row(first, second, add_special_tokens, i), options)
        ]
        columns = columns_of(rows, names, self.cls_token_id, self.sep_token_id)
        pad_columns(columns, options, self.pad_token_id, self.pad_token_type_id)
        if not inputs.batched and return_tensors is None and not return_overflowing_tokens:
            columns = {name: column[0] for name, column in columns.items()}
        return BatchEncoding(to_tensors(columns, return_tensors), rows, self.padding_side)

    def _encode(self, inputs: Inputs, split_special: bool, with_offsets: bool) -> list[tuple[Encoded, Encoded | None]]:
        """The encoded texts of each sample, from one call."""
        texts: list[Text] = inputs.first + (inputs.second or [])
        parts = iter(self._encoder.encode(flatten(texts), split_special, with_offsets))
        encoded = [next(parts) if isinstance(t, str) else join_words([next(parts) for _ in t]) for t in texts]
        count = len(inputs.first)
        return [(encoded[i], encoded[count + i] if inputs.second else None) for i in range(count)]

    def _wanted(self, name: str, option: bool | None) -> bool:
        return name in self.model_input_names if option is None else option

    def _options(self, **given: Any) -> Options:
        given |= {"padding_side": self.padding_side, "truncation_side": self.truncation_side}
        return Options(**given, model_max_length=self.model_max_length)

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
    ) -> BatchEncoding:
        """Pad encoded rows: a mapping of columns, or a list of mappings, as from a data loader."""
        options = self._options(
            padding=padding,
            truncation=False,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors=return_tensors,
        )
        columns, single = as_columns(encoded_inputs)
        if "attention_mask" not in columns and self._wanted("attention_mask", return_attention_mask):
            columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        pad_columns(columns, options, self.pad_token_id, self.pad_token_type_id)
        if single and return_tensors is None:
            columns = {name: column[0] for name, column in columns.items()}
        return BatchEncoding(to_tensors(columns, return_tensors))

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.txt and the piece model into an existing directory. Returns their paths."""
        folder = Path(save_directory)
        if not folder.is_dir():
            raise NotADirectoryError(f"save_directory: {folder} is not a directory")
        return write_all(folder, vocabulary_files(self.vocabulary, self._model, filename_prefix))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write a directory from which `from_pretrained`, here and in transformers 4.40.2, restores this tokenizer.

        Creates the directory if needed, and replaces these files in it. Returns the paths of the files written.
        """
        folder = Path(save_directory)
        options = {name: getattr(self, name) for name in SAVED}
        files = vocabulary_files(self.vocabulary, self._model) | table_files(self, options)
        folder.mkdir(parents=True, exist_ok=True)
        return write_all(folder, files)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], **arguments: Any) -> ErnieMTokenizer:
        """Read a directory with sentencepiece.bpe.model and vocab.txt, and the other files of `saving` if present.

        `arguments` are the constructor's, and override the files. Raises FileNotFoundError or ValueError that names the
        file.
        """
        return cls(**constructor_arguments(directory, arguments))

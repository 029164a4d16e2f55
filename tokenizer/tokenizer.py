"""`ErnieMTokenizer`: the calls that users know from transformers, built on the stages in this folder.

It differs from transformers 4.40.2 on purpose in two ways: `attention_mask` is returned by default, and with
`return_overflowing_tokens=True` the tokens that truncation removes are returned as further rows.

Source: transformers 4.40.2 `tokenization_ernie_m.py` and `tokenization_utils_base.py` for names and behaviour.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

from . import hub
from .added_tokens import AddedToken, parse_added
from .calls import Calls
from .cutting import LONE_MARKER_RULES
from .files import path_of
from .options import NO_LIMIT, SIDES, boolean, choice, model_length
from .piece_model import PieceModel
from .roles import missing_defaults
from .saving import SAVED, constructor_arguments, naming, table_files, vocabulary_files, write_all
from .text_encoder import TextEncoder
from .token_table import DERIVED
from .vocabulary import Vocabulary

# Enough pieces of a model to tell whether a vocabulary belongs to it; to get all 250,000 takes a tenth of a second.
SAMPLED_PIECES = 10_000


class ErnieMTokenizer(Calls):
    """Text to ids and back. `ErnieMTokenizer.from_pretrained(directory)`, or from the two files.

    The calls themselves are in `calls`.
    """

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
        sp_model_kwargs: sampling, {"enable_sampling": True, "nbest_size": 64, "alpha": 0.1}; see `sampling` for seeds.
        model_max_length: the length to truncate to if a call has no max_length. Longer texts are not refused.
        added_tokens_decoder: {id: token}, as in tokenizer_config.json.
        special_tokens: unk_token, sep_token, pad_token, cls_token, mask_token, additional_special_tokens, bos_token,
            eos_token. A token that is not in the vocabulary is added.

        Raises ValueError, naming the file, for a vocab.txt that lacks a special token under its default name, or nearly
        every piece of the model; see `vocabulary` for the rest.
        """
        lower, strict = boolean("do_lower_case", do_lower_case), boolean("strict_vocab", strict_vocab)
        self._lone_marker = choice("lone_marker", lone_marker, LONE_MARKER_RULES)
        self.padding_side = choice("padding_side", padding_side, SIDES)
        self.truncation_side = choice("truncation_side", truncation_side, SIDES)
        self.model_max_length = model_length(model_max_length)
        self.split_special_tokens = boolean("split_special_tokens", split_special_tokens)
        cleans = boolean("clean_up_tokenization_spaces", clean_up_tokenization_spaces)
        self.clean_up_tokenization_spaces = cleans
        self._model = PieceModel.read(sentencepiece_model_file, sp_model_kwargs)
        self.sp_model_kwargs = self._model.sampling
        self._noted = set()
        if not isinstance(added_tokens_decoder, (Mapping, type(None))):
            raise TypeError(f"added_tokens_decoder: expected a mapping, got {added_tokens_decoder!r:.80}")
        decoder = parse_added((added_tokens_decoder or {}).items())
        if str(vocab_file) == "sentencepiece":
            vocabulary = Vocabulary(self._model.table())
        else:
            vocabulary = Vocabulary.read(vocab_file, strict)
            missing = missing_defaults(vocabulary, special_tokens, decoder)
            if missing:
                raise ValueError(
                    f"vocab_file: {vocab_file} has no line {', no line '.join(missing)}; a token with another name "
                    "must be passed, such as cls_token='<s>'"
                )
            vocabulary.check_pieces(self._model.sample(SAMPLED_PIECES), vocab_file)
        super().__init__(vocabulary, lower, special_tokens, decoder)

    @property
    def lone_marker(self) -> str:
        """The rule for a lone marker, fixed at construction."""
        return self._lone_marker

    def _tokens_changed(self, stored: Iterable[AddedToken] | None = None) -> None:
        super()._tokens_changed(stored)
        self._encoder = TextEncoder(self._model, self, self._lone_marker)

    def __getstate__(self) -> dict[str, Any]:
        # Lists and dictionaries are copied, because `copy.copy` gives this to the copy as it is.
        state = {name: value for name, value in self.__dict__.items() if name not in (*DERIVED, "_encoder")}
        return {name: copy(value) if isinstance(value, (list, dict, set)) else value for name, value in state.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokens_changed()

    def __repr__(self) -> str:
        return f"ErnieMTokenizer(vocab_size={self.vocab_size}, length={len(self)}, special={self.all_special_tokens})"

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.txt and the piece model into an existing directory. Returns their paths."""
        folder = path_of(save_directory, "save_directory")
        if not folder.is_dir():
            raise NotADirectoryError(f"save_directory: {folder} is not a directory")
        return write_all(folder, vocabulary_files(self.vocabulary, self._model, filename_prefix))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write a directory from which `from_pretrained`, here and in transformers 4.40.2, restores this tokenizer.

        Creates the directory if needed, and replaces these files in it. Returns the paths of the files written.
        """
        folder = path_of(save_directory, "save_directory")
        options = {name: getattr(self, name) for name in SAVED}
        files = vocabulary_files(self.vocabulary, self._model) | table_files(self, options)
        return write_all(folder, files)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], *, revision: str | None = None, **arguments: Any
    ) -> ErnieMTokenizer:
        """Read a directory with sentencepiece.bpe.model and vocab.txt, and the other files of `saving` if present.

        directory, revision: or the name of a repository on the Hugging Face Hub, and its branch, tag or commit, whose
            errors `hub.directory` lists.
        `arguments` are the constructor's, and override the files. Raises FileNotFoundError, or TypeError or ValueError
        for what is in a file; each names the file.
        """
        found, files = constructor_arguments(hub.directory(directory, revision, weights=False), arguments)
        with naming(files):
            return cls(**found)

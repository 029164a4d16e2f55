"""Operations of a tokenizer on ids alone: building rows, masks over rows, and decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .decoding import clean_up, join_tokens, join_with_added
from .layout import SPECIAL_PAIR, SPECIAL_SINGLE, lay_out, type_ids
from .options import boolean
from .token_table import TokenTable


class IdRows(TokenTable):
    """A token table that also builds rows (`layout`) and decodes them (`decoding`)."""

    clean_up_tokenization_spaces: bool

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """The text of ids (one id, a list, or a one-dimensional array or tensor). `decoding` says what is lost."""
        # An array of no axes, such as each element of a tensor, counts as iterable.
        ids: Any = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        tokens = self.convert_ids_to_tokens(ids if isinstance(ids, Iterable) else [ids], skip_special_tokens)
        set_off = {token for token in set(tokens) if self._is_set_off(token)}
        text = join_with_added(tokens, set_off, boolean("spaces_between_special_tokens", spaces_between_special_tokens))
        name, option = "clean_up_tokenization_spaces", clean_up_tokenization_spaces
        return clean_up(text) if (getattr(self, name) if option is None else boolean(name, option)) else text

    def _is_set_off(self, token: str) -> bool:
        """Whether a token that a user added is one around which `decode` puts spaces."""
        if token in self._additional:
            return self.id_of(token) >= self.vocab_size
        return token in self.added_tokens_encoder and not self._is_special(token)

    def batch_decode(self, sequences: Iterable[Any], **options: Any) -> list[str]:
        """Call `decode` on each of several rows of ids."""
        if not isinstance(sequences, Iterable):
            raise TypeError(f"sequences: expected rows of ids, got {sequences!r}")
        return [self.decode(ids, **options) for ids in sequences]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Join tokens, with markers as spaces."""
        return join_tokens(tokens)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """The number of special tokens in a row: 2, or 4 for a pair."""
        return SPECIAL_PAIR if boolean("pair", pair) else SPECIAL_SINGLE

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """[CLS] A [SEP], or [CLS] A [SEP] [SEP] B [SEP]."""
        return lay_out(token_ids_0, token_ids_1, self.cls_token_id, self.sep_token_id)

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """The type ids of the row that `build_inputs_with_special_tokens` returns for the same arguments."""
        return type_ids(len(token_ids_0), None if token_ids_1 is None else len(token_ids_1))

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for text, in the row built from these ids or, if already built, in `token_ids_0`.

        In a row already built, every special token counts except [UNK], which stands for text.
        """
        if not boolean("already_has_special_tokens", already_has_special_tokens):
            zeros = None if token_ids_1 is None else [0] * len(token_ids_1)
            return lay_out([0] * len(token_ids_0), zeros, 1, 1)
        if token_ids_1 is not None:
            raise ValueError("token_ids_1: expected None with already_has_special_tokens=True")
        special = set(self.all_special_ids) - {self.unk_token_id}
        return [int(index in special) for index in token_ids_0]

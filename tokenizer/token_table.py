"""Tokens and ids: the vocabulary, the tokens added to it, and which of them are special.

    token -> id     added tokens first, then the vocabulary (a duplicate's last line), else the id of [UNK]
    id -> token     added tokens first, then the vocabulary (its line), else "[UNK]"

The special tokens are read and set by role (`pad_token`, `mask_token`, ...). All of them are also added tokens, so that
they are found in running text. Names and rules are those of transformers.

Source: transformers 4.40.2 `tokenization_utils.py`, `PreTrainedTokenizer`; `tokenization_utils_base.py`,
`SpecialTokensMixin`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import index
from typing import Any, overload

from .added_tokens import AddedToken
from .options import boolean
from .roles import ADDITIONAL, ROLES, SpecialId, SpecialToken
from .segments import Finder
from .vocabulary import Vocabulary

# What `TokenTable` derives from the rest.
DERIVED = ("added", "finder", "cased")


class TokenTable:
    """Every token and its id. `len` includes added tokens, `vocab_size` does not."""

    unk_token, sep_token, pad_token = SpecialToken(), SpecialToken(), SpecialToken()
    cls_token, mask_token = SpecialToken(), SpecialToken()
    unk_token_id, sep_token_id, pad_token_id = SpecialId(), SpecialId(), SpecialId()
    cls_token_id, mask_token_id = SpecialId(), SpecialId()
    bos_token, eos_token, bos_token_id, eos_token_id = SpecialToken(), SpecialToken(), SpecialId(), SpecialId()

    def __init__(
        self,
        vocabulary: Vocabulary,
        do_lower_case: bool,
        special_tokens: Mapping[str, Any],
        added_tokens_decoder: Mapping[int, AddedToken],
    ) -> None:
        unknown = [name for name in special_tokens if name not in ROLES and name != ADDITIONAL]
        if unknown:
            raise TypeError(f"ErnieMTokenizer: unknown argument {', '.join(map(repr, unknown))}")
        self.vocabulary = vocabulary
        self.do_lower_case = do_lower_case
        self.roles: dict[str, str | None] = dict.fromkeys(ROLES)
        # A dictionary for its keys, which are in order and quick to find.
        self._additional: dict[str, None] = {}
        self.added_tokens_decoder = dict(added_tokens_decoder)
        self.added_tokens_encoder = {token.content: number for number, token in added_tokens_decoder.items()}
        self._length = max([len(vocabulary), *(number + 1 for number in added_tokens_decoder)])
        self._tokens_changed()
        roles = {role: special_tokens.get(role, default) for role, default in ROLES.items()}
        for role, token in roles.items():
            if token is None and ROLES[role] is not None:
                raise TypeError(f"{role}: expected str or AddedToken, got None")
        additional = special_tokens.get(ADDITIONAL) or []
        self.add_special_tokens({**{k: v for k, v in roles.items() if v is not None}, ADDITIONAL: additional})
        for number, token in added_tokens_decoder.items():
            kept, told = self.added_tokens_decoder[number].content, "ignored"
            if kept == token.content and number < len(vocabulary):
                kept, told = vocabulary.tokens[number], "both encode to it, and it decodes to the former"
            if kept != token.content:
                name = f"added_tokens_decoder: {token.content!r}"
                print(f"{name} has the id of {kept!r}, {number}: {told}", file=sys.stderr)

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add a token or a list of them, as str or AddedToken. Returns how many are new to the vocabulary.

        Raises TypeError or ValueError for what is no token, such as "", before any is added.
        """
        special_tokens = boolean("special_tokens", special_tokens)
        several = isinstance(new_tokens, Iterable) and not isinstance(new_tokens, (str, Mapping))
        values = list(new_tokens) if several else [new_tokens]
        tokens = [AddedToken.of(value, "new_tokens", special_tokens) for value in values]
        stored, before, replaced = [], self._length, False
        for value, token in zip(values, tokens, strict=True):
            if isinstance(value, str) and value in self.added_tokens_encoder:
                continue
            if self.do_lower_case and token.normalized and not token.special:
                token = replace(token, content=token.content.lower())
            number = self.added_tokens_encoder.get(token.content, self.vocabulary.ids.get(token.content, self._length))
            earlier = self.added_tokens_decoder.get(number, token)
            replaced |= earlier != token
            if earlier.content != token.content:
                self.added_tokens_encoder.pop(earlier.content, None)
            self.added_tokens_decoder[number] = token
            self.added_tokens_encoder[token.content] = number
            self._length = max(self._length, number + 1)
            if token.special and not self._is_special(token.content):
                self._additional[token.content] = None
            stored.append(token)
        self._tokens_changed(None if replaced else stored)
        return self._length - before

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Assign roles, {"mask_token": "<mask>", "additional_special_tokens": [...]}. Returns how many are new.

        Raises TypeError or ValueError that names the role, before any is assigned.
        """
        replaces = boolean("replace_additional_special_tokens", replace_additional_special_tokens)
        contents: dict[str, list[str]] = {}
        for role, value in special_tokens_dict.items():
            if role not in ROLES and role != ADDITIONAL:
                raise ValueError(f"special_tokens_dict: expected {', '.join(ROLES)} or {ADDITIONAL}, got {role!r}")
            if role == ADDITIONAL and (isinstance(value, str) or not isinstance(value, Sequence)):
                raise TypeError(f"{ADDITIONAL}: expected a list of str or AddedToken, got {value!r:.80}")
            values = value if role == ADDITIONAL else [value]
            contents[role] = [AddedToken.of(token, role, special=True).content for token in values]
        before = self._length
        for role, found in contents.items():
            if role != ADDITIONAL:
                gone = self.roles[role] not in (None, *found)
                (self.roles[role],) = found
            elif replaces:
                gone = not self._additional.keys() <= set(found)
                self._additional = dict.fromkeys(found)
            else:
                gone = False
                self._additional.update(dict.fromkeys(found))
            self.add_tokens(special_tokens_dict[role], special_tokens=True)
            if gone:
                self._tokens_changed()
            for content in found:
                self.cased.add(content)
        return self._length - before

    def _is_special(self, content: str) -> bool:
        return content in self._additional or content in self.roles.values()

    def _tokens_changed(self, stored: Iterable[AddedToken] | None = None) -> None:
        """Find these tokens in texts too or, without an argument, exactly those that there are now."""
        if stored is None:
            self.added: dict[str, AddedToken] = {}
            # What is found in a text, and what keeps its case before that.
            self.finder, self.cased = Finder(), Finder(self.all_special_tokens)
            stored = self.added_tokens_decoder.values()
        for token in stored:
            self.added[token.content] = token
            self.finder.add(token.content)
            if (token.normalized and not token.special) or self._is_special(token.content):
                self.cased.add(token.content)

    def id_of(self, token: str) -> int:
        """The id of one token."""
        number = self.added_tokens_encoder.get(token)
        if number is None:
            number = self.vocabulary.ids.get(token)
        return self.unk_token_id if number is None else number

    def token_of(self, number: int) -> str:
        """The token of one id."""
        added = self.added_tokens_decoder.get(number)
        if added is not None:
            return added.content
        return self.vocabulary.tokens[number] if 0 <= number < len(self.vocabulary) else str(self.unk_token)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...  # type: ignore[overload-overlap]
    @overload
    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int]:
        """The id of a token, or the ids of several. An unknown token has the id of [UNK]."""
        if isinstance(tokens, str):
            return self.id_of(tokens)
        found = list(tokens) if isinstance(tokens, Iterable) else [tokens]
        if not all(isinstance(token, str) for token in found):
            raise TypeError(f"tokens: expected str or a list of str, got {tokens!r:.80}")
        return [self.id_of(token) for token in found]

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str | list[str]:
        """The token of an id, or the tokens of several (a list, or a one-dimensional array or tensor)."""
        skips = boolean("skip_special_tokens", skip_special_tokens)
        given: Any = ids.tolist() if hasattr(ids, "tolist") else ids
        single = not isinstance(given, Iterable)
        values = [given] if single else list(given)
        try:
            numbers = list(map(index, values))
        except TypeError:
            numbers = [True]
        if bool in map(type, [*values, *numbers]):
            raise TypeError(f"ids: expected integers, got {ids!r:.80}")
        if single:
            return self.token_of(numbers[0])
        skipped = set(self.all_special_ids) if skips else ()
        return [self.token_of(number) for number in numbers if number not in skipped]

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, including added tokens."""
        return {**self.vocabulary.ids, **self.added_tokens_encoder}

    def get_added_vocab(self) -> dict[str, int]:
        """The added tokens, including special ones, with their ids."""
        return dict(self.added_tokens_encoder)

    @property
    def vocab_size(self) -> int:
        """The number of lines of vocab.txt."""
        return len(self.vocabulary)

    def __len__(self) -> int:
        """One more than the largest id: the number of rows that an embedding needs."""
        return self._length

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The tokens by role, as in special_tokens_map.json."""
        roles: dict[str, Any] = {role: token for role, token in self.roles.items() if token is not None}
        return {**roles, ADDITIONAL: list(self._additional)} if self._additional else roles

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens without a role."""
        return list(self._additional)

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Their ids."""
        return [self.id_of(token) for token in self._additional]

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token, once."""
        return list(dict.fromkeys([token for token in self.roles.values() if token is not None] + [*self._additional]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self.id_of(token) for token in self.all_special_tokens]

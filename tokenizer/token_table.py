"""Tokens and ids: the vocabulary, the tokens added to it, and which of them are special.

    token -> id     added tokens first, then the vocabulary (a duplicate's last line), else the id of [UNK]
    id -> token     added tokens first, then the vocabulary (its line), else "[UNK]"

The special tokens are read and set by role (`pad_token`, `mask_token`, ...). All of them are also added tokens, so that
they are found in running text. Names and rules are those of transformers.

Source: transformers 4.40.2 `tokenization_utils.py`, `PreTrainedTokenizer`; `tokenization_utils_base.py`,
`SpecialTokensMixin`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, overload

from .added_tokens import AddedToken
from .segments import alternation
from .vocabulary import Vocabulary

# The roles, in the order in which transformers lists the special tokens, and their default tokens.
ROLES: dict[str, str | None] = {
    "bos_token": None,
    "eos_token": None,
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ADDITIONAL = "additional_special_tokens"


def added_id(value: Any) -> int:
    """Parse an id from a configuration file, where it is a string. Raises ValueError if it is not an id."""
    if not isinstance(value, (str, int)) or not str(value).isdecimal():
        raise ValueError(f"added_tokens_decoder: expected ids of 0 or more, got {value!r}")
    return int(value)


def missing_defaults(
    vocabulary: Vocabulary, special_tokens: Mapping[str, Any], added_tokens_decoder: Mapping[Any, Any] | None
) -> list[str]:
    """The special tokens that have their default names and no id, with their roles: `[CLS] (cls_token)`.

    A token of another name is the user's own, and is added if the vocabulary lacks it.
    """
    added = {AddedToken.of(token, "added_tokens_decoder").content for token in (added_tokens_decoder or {}).values()}
    return [
        f"{default} ({role})"
        for role, default in ROLES.items()
        if default is not None and default not in vocabulary.ids and default not in added
        if AddedToken.of(special_tokens.get(role, default), role).content == default
    ]


class SpecialToken:
    """An attribute such as `pad_token`: the token with that role. Setting it adds the token if it is new."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name

    def __get__(self, table: TokenTable, owner: type) -> str | None:
        return table.roles[self.role]

    def __set__(self, table: TokenTable, value: str | AddedToken) -> None:
        table.add_special_tokens({self.role: value})


class SpecialId:
    """An attribute such as `pad_token_id`: the id of the token with that role. Read-only; set the token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name.removesuffix("_id")

    def __get__(self, table: TokenTable, owner: type) -> int:
        token = table.roles[self.role]
        if token is None:
            raise ValueError(f"{self.role}: this tokenizer has none; set one first")
        return table.id_of(token)

    def __set__(self, table: TokenTable, value: object) -> None:
        raise AttributeError(f"{self.role}_id: set {self.role} instead")


class TokenTable:
    """Every token and its id. `len` includes added tokens, `vocab_size` does not."""

    unk_token, sep_token, pad_token = SpecialToken(), SpecialToken(), SpecialToken()
    cls_token, mask_token = SpecialToken(), SpecialToken()
    unk_token_id, sep_token_id, pad_token_id = SpecialId(), SpecialId(), SpecialId()
    cls_token_id, mask_token_id = SpecialId(), SpecialId()
    bos_token, eos_token = SpecialToken(), SpecialToken()

    def __init__(
        self,
        vocabulary: Vocabulary,
        do_lower_case: bool,
        special_tokens: Mapping[str, Any],
        added_tokens_decoder: Mapping[Any, Any] | None = None,
    ) -> None:
        unknown = [name for name in special_tokens if name not in ROLES and name != ADDITIONAL]
        if unknown:
            raise TypeError(f"ErnieMTokenizer: unknown argument {', '.join(map(repr, unknown))}")
        self.vocabulary = vocabulary
        self.do_lower_case = do_lower_case
        self.roles: dict[str, str | None] = dict.fromkeys(ROLES)
        self._additional: list[str] = []
        self.added_tokens_decoder: dict[int, AddedToken] = {}
        self.added_tokens_encoder: dict[str, int] = {}
        for number, token in (added_tokens_decoder or {}).items():
            self._store(added_id(number), AddedToken.of(token, "added_tokens_decoder"))
        roles = {role: special_tokens.get(role, default) for role, default in ROLES.items()}
        for role, token in roles.items():
            if token is None and ROLES[role] is not None:
                raise TypeError(f"{role}: expected str or AddedToken, got None")
        additional = special_tokens.get(ADDITIONAL) or []
        self.add_special_tokens({**{k: v for k, v in roles.items() if v is not None}, ADDITIONAL: additional})

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add a token or a list of them, as str or AddedToken. Returns how many are new to the vocabulary."""
        several = isinstance(new_tokens, Iterable) and not isinstance(new_tokens, (str, Mapping))
        new, free, known_special = 0, len(self), set(self.all_special_tokens)
        for value in new_tokens if several else [new_tokens]:
            token = AddedToken.of(value, "new_tokens", special_tokens)
            if token.content == "" or (isinstance(value, str) and value in self.added_tokens_encoder):
                continue
            if self.do_lower_case and token.normalized and not token.special:
                token = AddedToken.of({**token.to_json(), "content": token.content.lower()})
            number = self.added_tokens_encoder.get(token.content, self.vocabulary.ids.get(token.content))
            if number is None:
                number = free + new
                new += 1
            self._store(number, token)
            if token.special and token.content not in known_special:
                self._additional.append(token.content)
                known_special.add(token.content)
        self._tokens_changed()
        return new

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Assign roles, {"mask_token": "<mask>", "additional_special_tokens": [...]}. Returns how many are new."""
        new = 0
        for role, value in special_tokens_dict.items():
            if role not in ROLES and role != ADDITIONAL:
                raise ValueError(f"special_tokens_dict: expected {', '.join(ROLES)} or {ADDITIONAL}, got {role!r}")
            if role == ADDITIONAL:
                if isinstance(value, str) or not isinstance(value, Sequence):
                    raise TypeError(f"{ADDITIONAL}: expected a list of str or AddedToken, got {value!r}")
                contents = [AddedToken.of(token, role, special=True).content for token in value]
                kept = [] if replace_additional_special_tokens else self._additional
                self._additional = list(dict.fromkeys(kept + contents))
            else:
                self.roles[role] = AddedToken.of(value, role, special=True).content
            new += self.add_tokens(value, special_tokens=True)
        return new

    def _store(self, number: int, token: AddedToken) -> None:
        self.added_tokens_decoder[number] = token
        self.added_tokens_encoder[token.content] = number

    def _tokens_changed(self) -> None:
        """Rebuild the patterns that find added tokens in text."""
        self.added = {token.content: token for token in self.added_tokens_decoder.values()}
        self.added_pattern = alternation(self.added)
        plain = [token.content for token in self.added.values() if token.normalized and not token.special]
        self.cased_pattern = alternation([*self.all_special_tokens, *plain])

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
        return self.id_of(tokens) if isinstance(tokens, str) else [self.id_of(token) for token in tokens]

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str | list[str]:
        """The token of an id, or the tokens of several (a list, or a one-dimensional array or tensor)."""
        values = ids.tolist() if hasattr(ids, "tolist") else ids
        try:
            if not isinstance(values, Iterable):
                return self.token_of(index(values))
            numbers = list(map(index, values))
        except TypeError:
            raise TypeError(f"ids: expected integers, got {ids!r:.80}") from None
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
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
        return max([len(self.vocabulary), *(number + 1 for number in self.added_tokens_decoder)])

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
    def all_special_tokens(self) -> list[str]:
        """Every special token, once."""
        return list(dict.fromkeys([token for token in self.roles.values() if token is not None] + self._additional))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self.id_of(token) for token in self.all_special_tokens]

"""The roles of special tokens, and the attributes of a tokenizer that read and set them: `pad_token`, `pad_token_id`.

Source: transformers 4.40.2 `tokenization_utils_base.py`, `SpecialTokensMixin`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .added_tokens import AddedToken
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .token_table import TokenTable

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


def missing_defaults(
    vocabulary: Vocabulary, special_tokens: Mapping[str, Any], added_tokens_decoder: Mapping[int, AddedToken]
) -> list[str]:
    """The special tokens that have their default names and no id, with their roles: `[CLS] (cls_token)`.

    A token of another name is the user's own, and is added if the vocabulary lacks it.
    """
    added = {token.content for token in added_tokens_decoder.values()}
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
    """An attribute such as `pad_token_id`: the id of the token with that role, if any. Read-only; set the token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name.removesuffix("_id")

    def __get__(self, table: TokenTable, owner: type) -> Any:
        token = table.roles[self.role]
        return None if token is None else table.id_of(token)

    def __set__(self, table: TokenTable, value: object) -> None:
        raise AttributeError(f"{self.role}_id: set {self.role} instead")

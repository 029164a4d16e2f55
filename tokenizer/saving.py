"""A tokenizer's directory, as transformers 4.40.2 writes and reads it.

    sentencepiece.bpe.model    the piece model
    vocab.txt                  the vocabulary
    tokenizer_config.json      the options, and every added token with its id and flags
    special_tokens_map.json    the special tokens by role
    added_tokens.json          ids of added tokens outside the vocabulary, if there are any; Paddle reads it

Only the first two are required. Older directories, and Paddle's, have the added tokens only in the last two. Paddle
drops lone markers, which its files do not say: it is told by the weights in the same directory (`files.is_paddle`).

Source: transformers 4.40.2 `tokenization_utils_base.py`, `save_pretrained` and `_from_pretrained`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .added_tokens import AddedToken, parse_added
from .files import is_paddle, read_json
from .new_files import directory, replacing
from .piece_model import PieceModel
from .roles import ADDITIONAL, ROLES
from .token_table import TokenTable
from .vocabulary import Vocabulary

MODEL, VOCABULARY = "sentencepiece.bpe.model", "vocab.txt"
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

# Constructor arguments that tokenizer_config.json stores under their own names.
SAVED = (
    "do_lower_case",
    "lone_marker",
    "sp_model_kwargs",
    "model_max_length",
    "padding_side",
    "truncation_side",
    "split_special_tokens",
    "clean_up_tokenization_spaces",
)


def write_all(folder: Path, contents: Mapping[str, bytes | None]) -> tuple[str, ...]:
    """Write all files or, on failure, none: the old files then stay.

    None removes a file that an earlier save may have left. Returns the paths of the files written.
    """
    written = {folder / name: data for name, data in contents.items() if data is not None}
    removed = [folder / name for name, data in contents.items() if data is None]
    with directory(folder), replacing(*written, removed=removed) as files:
        for file, content in zip(files, written.values(), strict=True):
            file.write(content)
    return tuple(map(str, written))


def vocabulary_files(vocabulary: Vocabulary, model: PieceModel, prefix: str | None = None) -> dict[str, bytes | None]:
    """The two files that every tokenizer needs."""
    before = f"{prefix}-" if prefix else ""
    return {before + VOCABULARY: vocabulary.text().encode(), before + MODEL: model.serialised()}


def table_files(table: TokenTable, options: Mapping[str, Any]) -> dict[str, bytes | None]:
    """The files that hold the options and the added tokens."""
    roles, added = table.special_tokens_map, table.added_tokens_decoder
    outside = {token.content: index for index, token in added.items() if index >= table.vocab_size}
    config = {
        **options,
        **roles,
        "added_tokens_decoder": {str(index): token.to_json() for index, token in sorted(added.items())},
        "tokenizer_class": "ErnieMTokenizer",
    }
    return {
        CONFIG: to_json(config),
        SPECIAL: to_json(special_tokens_file(roles, table.added)),
        ADDED: to_json(outside) if outside else None,
    }


def to_json(value: Any) -> bytes:
    """Encode `value` as transformers formats these files."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_optional(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file."""
    return read_json(path) if os.path.lexists(path) else {}


def special_tokens_file(roles: Mapping[str, Any], added: Mapping[str, AddedToken]) -> dict[str, Any]:
    """The content of special_tokens_map.json: a string, or a mapping for a token with unusual flags."""

    def entry(content: str) -> Any:
        token = added[content]
        usual = token in (AddedToken(content, special=True), AddedToken(content))
        return content if usual else token.to_json(special=False)

    return {role: [entry(t) for t in tokens] if role == ADDITIONAL else entry(tokens) for role, tokens in roles.items()}


def constructor_arguments(
    directory: str | os.PathLike[str], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The arguments that rebuild the tokenizer of a directory, and the file of each; those in `given` override them.

    A directory with Paddle's weights whose files name no `lone_marker` has Paddle's rule, with a note on stderr.
    Raises FileNotFoundError that names what is missing, ValueError for files with invalid content.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory with {MODEL} and {VOCABULARY}")
    missing = [name for name in (MODEL, VOCABULARY) if not (folder / name).is_file() and argument(name) not in given]
    if missing:
        raise FileNotFoundError(f"{directory} has no {' and no '.join(missing)}")
    config = read_optional(folder / CONFIG)
    arguments = {name: config[name] for name in (*SAVED, *ROLES, ADDITIONAL) if config.get(name) is not None}
    files = dict.fromkeys((*arguments, "added_tokens_decoder"), folder / CONFIG)
    if "lone_marker" not in {**arguments, **given} and is_paddle(folder):
        arguments["lone_marker"] = "paddle"
        print(
            f'{directory}: a Paddle checkpoint: text is cut as Paddle does, lone_marker="paddle"; '
            'lone_marker="huggingface" would cut it as transformers does',
            file=sys.stderr,
        )
    if config.get("added_tokens_decoder") is not None:
        decoder = config["added_tokens_decoder"]
    else:
        roles = {k: v for k, v in read_optional(folder / SPECIAL).items() if k in ROLES or k == ADDITIONAL}
        arguments.update(roles)
        files |= dict.fromkeys(roles, folder / SPECIAL)
        with naming(files):
            decoder = older_added_tokens(folder / ADDED, [*arguments.items(), *given.items()])
    found = {
        "sentencepiece_model_file": folder / MODEL,
        "vocab_file": folder / VOCABULARY,
        **arguments,
        "added_tokens_decoder": decoder,
        **given,
    }
    return found, {name: file for name, file in files.items() if name not in given}


@contextmanager
def naming(files: Mapping[str, Path]) -> Iterator[None]:
    """Put the file of an argument before the errors about it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        file = files.get(str(error).partition(":")[0])
        if file is None:
            raise
        raise type(error)(f"{file}: {error}") from None


def argument(file: str) -> str:
    """The constructor argument that takes this file."""
    return "sentencepiece_model_file" if file == MODEL else "vocab_file"


def older_added_tokens(file: Path, arguments: list[tuple[str, Any]]) -> dict[int, AddedToken]:
    """The added tokens, by id, of a directory that has only added_tokens.json; those with a role are special."""
    ids = read_optional(file)
    special: set[str] = set()
    for name, value in arguments:
        if name in ROLES or name == ADDITIONAL:
            values = value if isinstance(value, list) else [value]
            special.update(AddedToken.of(token, name).content for token in values)
    return parse_added(
        ((index, {"content": content, "special": content in special}) for content, index in ids.items()), str(file)
    )

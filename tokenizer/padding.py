"""Padding: rows extended to equal length with [PAD].

    input_ids        the id of [PAD]     token_type_ids        0          offset_mapping   (0, 0)
    attention_mask   0                   special_tokens_mask   1

Source: transformers 4.40.2 `tokenization_utils_base.py`, `PreTrainedTokenizerBase.pad` and `_pad`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .options import Options

# The columns that are padded, and what with; None stands for an id that the tokenizer has.
PADDED: dict[str, Any] = {
    "input_ids": None,
    "attention_mask": 0,
    "token_type_ids": None,
    "special_tokens_mask": 1,
    "offset_mapping": (0, 0),
}


def as_columns(encoded_inputs: Any) -> tuple[dict[str, list[Any]], bool]:
    """Lists of rows by name, from a mapping of columns or a list of mappings; and whether it was a single row."""
    if isinstance(encoded_inputs, Mapping):
        columns = {name: to_list(value) for name, value in encoded_inputs.items()}
    elif isinstance(encoded_inputs, Sequence) and all(isinstance(row, Mapping) for row in encoded_inputs):
        names = encoded_inputs[0].keys() if encoded_inputs else ()
        odd = [i for i, row in enumerate(encoded_inputs) if row.keys() != names]
        if odd:
            raise ValueError(f"encoded_inputs: row {odd[0]}: expected the keys of row 0, {', '.join(names)}")
        columns = {name: [to_list(row[name]) for row in encoded_inputs] for name in names}
    else:
        raise TypeError(f"encoded_inputs: expected a mapping or a list of them, got {type(encoded_inputs).__name__}")
    ids = columns.get("input_ids")
    if ids is None:
        raise ValueError(f"encoded_inputs: expected the key input_ids, got {', '.join(columns) or 'no key'}")
    single = not ids or not isinstance(ids[0], list)
    if single and not isinstance(encoded_inputs, Mapping):
        raise TypeError("encoded_inputs: expected input_ids to be a list of ids in every row")
    columns = {name: [value] for name, value in columns.items()} if single else columns
    for name in PADDED:
        if name in columns:
            check_rows(name, columns)
    return columns, single


def check_rows(name: str, columns: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError unless a column that is padded has a list for each row of `input_ids`."""
    rows, count = columns[name], len(columns["input_ids"])
    if not isinstance(rows, list):
        raise TypeError(f"encoded_inputs: {name} cannot be padded: expected a list of rows, got {type(rows).__name__}")
    if len(rows) != count:
        raise ValueError(f"encoded_inputs: {name} cannot be padded: expected {count} rows, got {len(rows)}")
    for i, row in enumerate(rows):
        if not isinstance(row, (list, tuple)):
            found = type(row).__name__
            raise TypeError(f"encoded_inputs: {name} cannot be padded: row {i}: expected a list, got {found}")


def to_list(value: Any) -> Any:
    """A new list from an array, a tensor, or a list of either. Anything else, and any row, stays as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [item.tolist() if hasattr(item, "tolist") else item for item in value]
    return value


def pad_columns(columns: dict[str, list[Any]], options: Options, pad_id: int, pad_type_id: int = 0) -> None:
    """Pad the rows of every column in the table above, in place; others, such as labels, stay as they are.

    Raises ValueError that names the column if one of its rows is not as long as its ids.
    """
    if options.padding == "do_not_pad":
        return
    lengths = [len(row) for row in columns["input_ids"]]
    target = options.limit if options.padding == "max_length" else max(lengths, default=0)
    assert target is not None  # Options rejects "max_length" without a limit
    if options.pad_to_multiple_of is not None:
        target = -(-target // options.pad_to_multiple_of) * options.pad_to_multiple_of
    for name, fill in {**PADDED, "input_ids": pad_id, "token_type_ids": pad_type_id}.items():
        for i, row in enumerate(columns.get(name, ())):
            if len(row) != lengths[i]:
                raise ValueError(f"{name}: row {i}: expected the length of its input_ids, {lengths[i]}, got {len(row)}")
            more = [fill] * (target - lengths[i])
            columns[name][i] = [*row, *more] if options.padding_side == "right" else [*more, *row]

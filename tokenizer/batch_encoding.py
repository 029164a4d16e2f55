"""What a call returns: a dictionary of columns, which are also attributes, and methods that need the rows behind them.

    batch["input_ids"], batch.input_ids, model(**batch), batch.tokens(0), batch.word_ids(0), batch.char_to_token(0, 5)

Source: transformers 4.40.2 `tokenization_utils_base.py`, `BatchEncoding`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .alignment import Alignment
from .layout import Row
from .padding import PADDED


class BatchEncoding(dict[str, Any], Alignment):
    """The columns of a batch, lists or arrays, by name. `alignment` describes the other methods."""

    def __init__(
        self,
        data: dict[str, Any],
        rows: list[Row] | None = None,
        padding_side: str = "right",
        token_of: Callable[[int], str] | None = None,
    ) -> None:
        super().__init__(data)
        self._rows = rows
        self._padding_side = padding_side
        self._token_of = token_of

    def __getattr__(self, name: str) -> Any:
        # Called only for names that are not real attributes. Private names, which pickle and copy look up, never match.
        if name.startswith("_") or name not in self:
            raise AttributeError(f"BatchEncoding has no column {name!r}, only {', '.join(self)}")
        return self[name]

    def __getstate__(self) -> dict[str, Any]:
        # Without the tokenizer: a data loader's workers would send it along with each batch.
        return {**self.__dict__, "_token_of": None}

    @property
    def data(self) -> dict[str, Any]:
        """The columns as a plain dictionary."""
        return dict(self)

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, with special tokens and padding; an unknown piece is [UNK], as its id says."""
        self._row(batch_index)
        if self._token_of is None:
            raise ValueError(
                "tokens: a copied or unpickled BatchEncoding has no tokenizer: "
                "call tokenizer.convert_ids_to_tokens(batch['input_ids'][i])"
            )
        ids = self._ids(batch_index)
        return [self._token_of(int(number)) for number in (ids.tolist() if hasattr(ids, "tolist") else ids)]

    def to(self, device: Any) -> BatchEncoding:
        """A copy with its torch tensors moved to `device`."""
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in self.items()}
        return BatchEncoding(moved, self._rows, self._padding_side, self._token_of)


def to_tensors(columns: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """Convert columns of equally long rows to int64: "np" for NumPy, "pt" for torch; None leaves them as lists.

    Floats, such as labels, are float64 in NumPy, and have torch's default dtype in torch, as is usual there.
    Raises ValueError that names the first column that cannot be converted, and says why.
    """
    if kind is None:
        return columns
    arrays = {name: to_array(name, rows, kind) for name, rows in columns.items()}
    if kind == "np":
        return arrays
    try:
        import torch
    except ImportError:
        raise ImportError("return_tensors='pt' needs torch, which is not installed; 'np' does not") from None
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: x.to(torch.get_default_dtype()) if x.dtype == torch.float64 else x for name, x in tensors.items()}


def to_array(name: str, rows: Any, kind: str) -> Any:
    """One column as an array: integers and flags as int64; a column of the user's, such as float labels, as it is."""
    lengths = {len(row) for row in rows if hasattr(row, "__len__") and not isinstance(row, str)}
    if len(lengths) > 1:
        uneven = f"return_tensors={kind!r}: rows of {name} have different lengths, {min(lengths)} to {max(lengths)}"
        if name in PADDED:
            raise ValueError(f"{uneven}: pass padding=True, or truncation=True with padding='max_length'")
        raise ValueError(
            f"{uneven}, and only {', '.join(PADDED)} are padded: pad {name} yourself (labels of tokens with -100, "
            "which the losses ignore), or leave it out"
        )
    try:
        array = np.asarray(rows)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind == "O" or (kind == "pt" and array.dtype.kind not in "iubfc"):
        types = sorted({type(value).__name__ for value in rows if not hasattr(value, "tolist")})
        raise ValueError(
            f"return_tensors={kind!r}: {name} cannot be a tensor: expected numbers, or lists of numbers of equal "
            f"lengths, got {' and '.join(types)}: leave it out, or call without return_tensors"
        )
    return array.astype(np.int64) if array.dtype.kind in "iub" or array.size == 0 else array

"""What a call returns: a dictionary of columns, which are also attributes, and methods that need the rows behind them.

    batch["input_ids"], batch.input_ids, model(**batch), batch.word_ids(0), batch.sequence_ids(0)

Source: transformers 4.40.2 `tokenization_utils_base.py`, `BatchEncoding`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .layout import Row


class BatchEncoding(dict[str, Any]):
    """The columns of a batch, lists or arrays, by name."""

    def __init__(self, data: dict[str, Any], rows: list[Row] | None = None, padding_side: str = "right") -> None:
        super().__init__(data)
        self._rows = rows
        self._padding_side = padding_side

    def __getattr__(self, name: str) -> Any:
        # Called only for names that are not real attributes. Private names, which pickle and copy look up, never match.
        if name.startswith("_") or name not in self:
            raise AttributeError(f"BatchEncoding has no column {name!r}, only {', '.join(self)}")
        return self[name]

    @property
    def data(self) -> dict[str, Any]:
        """The columns as a plain dictionary."""
        return dict(self)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: 0 for the first text, 1 for the second, None at special tokens and padding."""
        return self._padded(self._row(batch_index).sequence_ids(), batch_index)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: the index of its word, None at special tokens and padding.

        With is_split_into_words, words are those of the call, otherwise those of `text.split()`. Raises ValueError for
        running text encoded without offsets.
        """
        return self._padded(self._row(batch_index).word_ids(), batch_index)

    def to(self, device: Any) -> BatchEncoding:
        """A copy with its torch tensors moved to `device`."""
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in self.items()}
        return BatchEncoding(moved, self._rows, self._padding_side)

    def _row(self, index: int) -> Row:
        if self._rows is None:
            raise ValueError("BatchEncoding: word_ids and sequence_ids need a tokenizer call's rows, got columns only")
        if not -len(self._rows) <= index < len(self._rows):
            raise IndexError(f"batch_index: expected less than {len(self._rows)}, got {index}")
        return self._rows[index]

    def _padded(self, values: list[int | None], index: int) -> list[int | None]:
        ids = self["input_ids"]
        nested = len(ids) > 0 and hasattr(ids[0], "__len__")
        padding: list[int | None] = [None] * ((len(ids[index]) if nested else len(ids)) - len(values))
        return values + padding if self._padding_side == "right" else padding + values


def to_tensors(columns: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """Convert columns of equally long rows to int64: "np" for NumPy, "pt" for torch; None leaves them as lists."""
    if kind is None:
        return columns
    for name, rows in columns.items():
        lengths = {len(row) for row in rows if hasattr(row, "__len__")}
        if len(lengths) > 1:
            raise ValueError(
                f"return_tensors={kind!r}: rows of {name} have different lengths, {min(lengths)} to {max(lengths)}: "
                "pass padding=True, or truncation=True with padding='max_length'"
            )
    arrays = {name: np.asarray(rows) for name, rows in columns.items()}
    # Ids, masks and spans are integers; a column of the user's, such as float labels, keeps its dtype.
    arrays = {name: a.astype(np.int64) if a.dtype.kind in "iub" or a.size == 0 else a for name, a in arrays.items()}
    if kind == "np":
        return arrays
    try:
        import torch
    except ImportError:
        raise ImportError("return_tensors='pt' needs torch, which is not installed; 'np' does not") from None
    return {name: torch.from_numpy(array) for name, array in arrays.items()}

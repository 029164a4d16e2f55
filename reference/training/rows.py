"""Texts as rows of tokens, for all heads: what a row is, how texts are cut to fit, and how rows become a batch.

    one text      [CLS] X [SEP]
    two           [CLS] X [SEP] [SEP] Y [SEP]
    a long Y      windows of it, each with X, that overlap by up to `STRIDE` tokens

Characters of Y have their own positions; those of X stand before them, as if X, a space and Y were one text in which Y
begins at 0. So a span is anywhere in a row, and X can be told from Y.

Twin: none; this is NumPy for both rooms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.layout import SPECIAL_PAIR, SPECIAL_SINGLE, lay_out
from ernie_m.tokenizer.truncation import shares

from ..array import Array
from ..config import ErnieMConfig
from ..inputs import CLS_TOKEN_ID

# Tokens that the windows of a long text share, where there is room.
STRIDE = 128
# What targets are padded with: not counted by the loss, or no start and no end.
FILL: Mapping[str, int] = {"labels": -100, "start_positions": 0, "end_positions": 0}


@dataclass(frozen=True)
class Text:
    """The tokens of a text, without special tokens, and the characters that each stands for."""

    ids: list[int]
    offsets: Array  # (n, 2)

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, end: int) -> Text:
        """The tokens start:end."""
        return Text(self.ids[start:end], self.offsets[start:end])


@dataclass
class Row:
    """What the model reads at once.

    choices: token ids, special tokens included; one list, but for multiple choice. record: the record that it belongs
    to. side: for each token 0 or 1, the first or the second text, or -1, a special token. targets: scalars or one
    number for each token, by the name of the argument.
    """

    choices: list[list[int]]
    record: int
    offsets: Array  # (n, 2)
    side: Array  # (n,)
    targets: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """How many there are, of all choices together."""
        return sum(map(len, self.choices))


class RowEncoder:
    """Makes rows of at most `longest` tokens. `notes` counts what did not fit."""

    def __init__(self, tokenizer: ErnieMTokenizer, longest: int) -> None:
        if longest <= 2 * SPECIAL_PAIR:
            raise ValueError(f"longest: expected more than {2 * SPECIAL_PAIR} tokens, got {longest}")
        self.tokenizer, self.longest, self.notes = tokenizer, longest, Counter[str]()

    def texts(self, texts: Sequence[str]) -> list[Text]:
        """Tokenise texts, each distinct one once."""
        if not texts:
            return []
        distinct = list(dict.fromkeys(texts))
        found = self.tokenizer(distinct, add_special_tokens=False, return_offsets_mapping=True)
        columns = zip(distinct, found["input_ids"], found["offset_mapping"], strict=True)
        known = {text: Text(ids, np.array(spans, np.int64).reshape(-1, 2)) for text, ids, spans in columns}
        return [known[text] for text in texts]

    def single(self, text: Text, record: int) -> Row:
        """[CLS] X [SEP], with the beginning of X if it is too long."""
        room = self.longest - SPECIAL_SINGLE
        if len(text) > room:
            self.notes["texts cut to fit"] += 1
        return self.row(text.part(0, room), None, record)

    def pair(self, first: Text, second: Text, record: int, before: int = 0) -> Row:
        """[CLS] X [SEP] [SEP] Y [SEP]; of the longer text, the end is cut off. before: the characters of X."""
        room = self.longest - SPECIAL_PAIR
        if len(first) + len(second) > room:
            self.notes["texts cut to fit"] += 1
            kept, others = shares(len(first), len(second), room)
            first, second = first.part(0, kept), second.part(0, others)
        return self.row(first, second, record, before)

    def windows(self, first: Text, second: Text, record: int, before: int = 0) -> list[Row]:
        """Pairs with all of Y, window by window; X is cut only if it takes more than half of a row."""
        most = (self.longest - SPECIAL_PAIR) // 2
        if len(first) > most:
            self.notes["questions or prompts cut to fit"] += 1
            first = first.part(0, most)
        size = self.longest - SPECIAL_PAIR - len(first)
        step = size - min(STRIDE, size // 2)
        count = 1 + max(0, -(-(len(second) - size) // step))
        if count > 1:
            self.notes["texts in several windows"] += 1
        return [self.row(first, second.part(i * step, i * step + size), record, before) for i in range(count)]

    def row(self, first: Text, second: Text | None, record: int, before: int = 0) -> Row:
        """A row of texts that fit."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        ids = lay_out(first.ids, None if second is None else second.ids, cls, sep)
        side = lay_out([0] * len(first), None if second is None else [1] * len(second), -1, -1)
        places = np.zeros((len(ids), 2), np.int64)
        x, y = np.array(side) == 0, np.array(side) == 1
        places[x] = first.offsets if second is None else first.offsets - (before + 1)
        if second is not None:
            places[y] = second.offsets
        return Row([ids], record, places, np.array(side))


def visible(config: ErnieMConfig, input_ids: Array, mask: Array) -> Array:  # (..., S) x 2 -> (..., S) or (..., S, S)
    """The attention mask of a batch, given which positions hold tokens: what the checkpoint's own default would mask.

    Where `config.default_mask` is "cls_token", as in UIE-M's checkpoints, no token attends to [CLS], while [CLS]
    attends to all others; the model's default would let all attend to padding too, and results depend on the batch.
    """
    if config.default_mask != "cls_token":
        return mask
    keys = mask * (input_ids != CLS_TOKEN_ID)
    found: Array = mask[..., :, None] * keys[..., None, :]
    return found


def collate(rows: Sequence[Row], pad: int, several: bool) -> dict[str, Array]:
    """The arguments of a call: ids and mask, (B, S), or (B, C, S) for rows of `several` choices; and the targets.

    A row with fewer choices than others is filled up with empty ones, which the model leaves out.
    """
    B, C = len(rows), max(len(row.choices) for row in rows)
    S = max(len(ids) for row in rows for ids in row.choices)
    ids = np.full((B, C, S), pad, np.int64)
    mask = np.zeros((B, C, S), np.int64)
    for b, row in enumerate(rows):
        for c, choice in enumerate(row.choices):
            ids[b, c, : len(choice)] = choice
            mask[b, c, : len(choice)] = 1
    given = {"input_ids": ids, "attention_mask": mask}
    arguments: dict[str, Array] = given if several else {name: x[:, 0] for name, x in given.items()}
    for name in rows[0].targets:
        values = [np.asarray(row.targets[name]) for row in rows]
        if values[0].ndim == 0:
            arguments[name] = np.array(values)
        else:
            padded = np.full((B, S), FILL[name], values[0].dtype)
            for b, value in enumerate(values):
                padded[b, : len(value)] = value
            arguments[name] = padded
    return arguments

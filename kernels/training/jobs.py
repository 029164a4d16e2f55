"""What a head is fine-tuned for: rows from records, predictions from outputs, and figures. Here, whole texts.

    classify   one class for a text or two      accuracy
    choose     which of several texts goes on   accuracy

`span_jobs` has those that look for spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ernie_m.reference.array import Array
from ernie_m.reference.training.records import Chosen, Classified
from ernie_m.reference.training.rows import Row, RowEncoder, collate, visible
from ernie_m.reference.training.scores import accuracy
from ernie_m.tokenizer import ErnieMTokenizer

from .. import heads


class Job:
    """What the jobs share.

    labels: the classes of a text, or of spans, in the order of the head's outputs.
    decides: the figure by which the best model is kept.
    """

    head: ClassVar[Any]
    decides: ClassVar[str] = "accuracy"
    several: ClassVar[bool] = False

    def __init__(self, tokenizer: ErnieMTokenizer, longest: int, records: Sequence[Any]) -> None:
        """records: those to train on."""
        self.encoder = RowEncoder(tokenizer, longest)
        self.labels: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the configuration that the head needs."""
        return {"id2label": dict(enumerate(self.labels))} if self.labels else {}

    def keep_order(self, known: Sequence[str]) -> None:
        """Take the labels in the order in which a checkpoint knows them, if those are the same."""
        if sorted(known) == sorted(self.labels):
            self.labels = tuple(known)

    def rows(self, records: Sequence[Any]) -> list[Row]:
        """Rows of tokens, with targets. Raises ValueError that names the place of a record that does not fit."""
        raise NotImplementedError

    def learnable(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that have something to learn from."""
        return list(rows)

    def prepare(self, model: Any, new: Sequence[str], rows: Sequence[Row]) -> None:
        """Set what a newly initialised head can know from the rows. new: the names of the weights that are new."""

    def arguments(self, rows: Sequence[Row], config: Any) -> dict[str, Array]:
        """The arguments of a call."""
        found = collate(rows, config.pad_token_id, self.several)
        return found | {"attention_mask": visible(config, found["input_ids"], found["attention_mask"])}

    def weight(self, arguments: dict[str, Array]) -> float:
        """How many targets the loss is the mean of."""
        return float(len(arguments["input_ids"]))

    def read(self, output: Any, rows: Sequence[Row]) -> list[Any]:
        """What the output says about each row."""
        raise NotImplementedError

    def figures(self, records: Sequence[Any], found: Sequence[Sequence[Any]]) -> dict[str, float]:
        """How good the predictions are; `found` has those of all rows of each record."""
        return {"accuracy": accuracy([answer for (answer,) in found], [record.label for record in records])}


class Classify(Job):
    """Sequence classification."""

    head = heads.ErnieMForSequenceClassification

    def __init__(self, tokenizer: ErnieMTokenizer, longest: int, records: Sequence[Classified]) -> None:
        super().__init__(tokenizer, longest, records)
        self.labels = tuple(sorted({record.label for record in records}))
        self.pairs = records[0].pair is not None
        if len(self.labels) < 2:
            raise ValueError(f"{records[0].where}: label: expected at least two classes, got only {self.labels[0]!r}")

    @property
    def fields(self) -> dict[str, Any]:
        return super().fields | {"problem_type": "single_label_classification"}

    def rows(self, records: Sequence[Classified]) -> list[Row]:
        number = {label: i for i, label in enumerate(self.labels)}
        for record in records:
            if (record.pair is not None) != self.pairs:
                told = "a second text, as in the first record, got none"
                if not self.pairs:
                    told = f"no second text, as in the first record, got {record.pair!r:.80}"
                raise ValueError(f"{record.where}: pair: expected {told}")
        texts = self.encoder.texts([record.text for record in records])
        others = self.encoder.texts([record.pair for record in records if record.pair is not None])
        rows = []
        for i, record in enumerate(records):
            if record.label not in number:
                raise ValueError(f"{record.where}: label: expected {one_of(self.labels)}, got {record.label!r:.80}")
            encoder = self.encoder
            row = encoder.pair(texts[i], others[i], i) if others else encoder.single(texts[i], i)
            row.targets["labels"] = number[record.label]
            rows.append(row)
        return rows

    def read(self, output: Any, rows: Sequence[Row]) -> list[Any]:
        return [self.labels[i] for i in output.logits.argmax(dim=-1).tolist()]


class Choose(Job):
    """Multiple choice."""

    head, several = heads.ErnieMForMultipleChoice, True

    def rows(self, records: Sequence[Chosen]) -> list[Row]:
        prompts = self.encoder.texts([record.prompt for record in records])
        rows = []
        for i, (record, prompt) in enumerate(zip(records, prompts, strict=True)):
            pairs = [self.encoder.pair(prompt, choice, i) for choice in self.encoder.texts(record.choices)]
            choices = [pair.choices[0] for pair in pairs]
            rows.append(Row(choices, i, pairs[0].offsets, pairs[0].side, {"labels": record.label}))
        return rows

    def read(self, output: Any, rows: Sequence[Row]) -> list[Any]:
        found: list[Any] = output.logits.argmax(dim=-1).tolist()
        return found


def one_of(labels: Sequence[str]) -> str:
    """What a label is expected to be, for a message."""
    return f"one of the labels to learn from, {', '.join(labels[:8])}{', ...' if len(labels) > 8 else ''}"

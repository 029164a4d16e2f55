"""Fine-tuning for spans of a text.

tag        a tag for every token                F1 of spans
answer     where the answer to a question is    F1 of words, exact match
extract    all places that a prompt asks for    F1 of spans
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ernie_m.reference.array import Array
from ernie_m.reference.inputs import CLS_TOKEN_ID
from ernie_m.reference.training.records import Answered, Extracted, Span, Tagged
from ernie_m.reference.training.rows import Row, collate
from ernie_m.reference.training.scores import answer_f1, exact_match, span_scores
from ernie_m.reference.training.spans import best_span, covering, is_exact, paired, spans_of, tag_names, tags_of
from ernie_m.tokenizer import ErnieMTokenizer

from .. import heads
from .jobs import Job, one_of

INEXACT = "spans that do not begin and end where tokens do"
# Above it, a start or an end is more probable than not.
LOGIT = 0.0


class Tag(Job):
    """Token classification of spans, by tags for their beginning and inside."""

    head, decides = heads.ErnieMForTokenClassification, "f1"

    def __init__(self, tokenizer: ErnieMTokenizer, longest: int, records: Sequence[Tagged]) -> None:
        super().__init__(tokenizer, longest, records)
        kinds = sorted({span.label for record in records for span in record.spans})
        if not kinds:
            raise ValueError(f"{records[0].where}: spans: expected some in one of the texts, got none")
        self.labels = tag_names(kinds)

    def rows(self, records: Sequence[Tagged]) -> list[Row]:
        rows = []
        for i, (record, text) in enumerate(zip(records, self.encoder.texts([r.text for r in records]), strict=True)):
            for span in record.spans:
                if f"B-{span.label}" not in self.labels:
                    known = one_of([name[2:] for name in self.labels if name[0] == "B"])
                    raise ValueError(f"{record.where}: label: expected {known}, got {span.label!r:.80}")
                self.encoder.notes[INEXACT] += not is_exact(text.offsets, span.start, span.end)
            row = self.encoder.single(text, i)
            labels = np.full(len(row.side), -100, np.int64)
            labels[row.side == 0] = tags_of(row.offsets[row.side == 0], record.spans, self.labels)
            row.targets["labels"] = labels
            rows.append(row)
        return rows

    def learnable(self, rows: Sequence[Row]) -> list[Row]:
        found = [row for row in rows if (row.side == 0).any()]
        self.encoder.notes["texts without tokens, left out"] += len(rows) - len(found)
        return found

    def weight(self, arguments: dict[str, Array]) -> float:
        return float((arguments["labels"] != -100).sum())

    def read(self, output: Any, rows: Sequence[Row]) -> list[Any]:
        tags = output.logits.argmax(dim=-1).cpu().numpy()
        kept = [row.side == 0 for row in rows]
        found = zip(rows, tags, kept, strict=True)
        return [spans_of(row.offsets[k], t[: len(k)][k].tolist(), self.labels) for row, t, k in found]

    def figures(self, records: Sequence[Tagged], found: Sequence[Sequence[Any]]) -> dict[str, float]:
        return span_scores([spans for (spans,) in found], [record.spans for record in records])


class Answer(Job):
    """Question answering. No answer is an answer if one of the questions to learn from has none: then start and end
    are [CLS].
    """

    head, decides = heads.ErnieMForQuestionAnswering, "f1"

    def __init__(self, tokenizer: ErnieMTokenizer, longest: int, records: Sequence[Answered]) -> None:
        super().__init__(tokenizer, longest, records)
        self.unanswerable = any(not record.answers for record in records)
        answers = [record.context[span.start : span.end] for record in records for span in record.answers]
        # In its context an answer may be cut into a few more tokens.
        self.longest_answer = 2 + max(map(len, self.encoder.texts(answers)), default=0)

    @property
    def fields(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def rows(self, records: Sequence[Answered]) -> list[Row]:
        questions = self.encoder.texts([record.question for record in records])
        contexts = self.encoder.texts([record.context for record in records])
        rows = []
        for i, record in enumerate(records):
            for answer in record.answers[:1]:
                self.encoder.notes[INEXACT] += not is_exact(contexts[i].offsets, answer.start, answer.end)
            for row in self.encoder.windows(questions[i], contexts[i], i, len(record.question)):
                first = record.answers[0] if record.answers else None
                span = None if first is None else _within(row, first, contexts[i].offsets, 1)
                row.targets["start_positions"], row.targets["end_positions"] = span or (0, 0)
                rows.append(row)
        return rows

    def read(self, output: Any, rows: Sequence[Row]) -> list[Any]:
        """For each row the score of no answer, of the best answer, and its characters."""
        starts, ends = (logits.float().cpu().numpy() for logits in (output.start_logits, output.end_logits))
        found = []
        for b, row in enumerate(rows):
            n, allowed = len(row.side), row.side == 1
            none = float(starts[b, 0] + ends[b, 0])
            if not allowed.any():
                found.append((none, -np.inf, 0, 0))
                continue
            score, start, end = best_span(starts[b, :n], ends[b, :n], allowed, self.longest_answer)
            found.append((none, score, int(row.offsets[start, 0]), int(row.offsets[end, 1])))
        return found

    def figures(self, records: Sequence[Answered], found: Sequence[Sequence[Any]]) -> dict[str, float]:
        f1 = exact = 0.0
        for record, windows in zip(records, found, strict=True):
            _, score, start, end = max(windows, key=lambda window: window[1])
            none = self.unanswerable and min(window[0] for window in windows) > score
            answer = "" if none else record.context[start:end]
            wanted = [record.context[span.start : span.end] for span in record.answers]
            f1, exact = f1 + answer_f1(answer, wanted), exact + exact_match(answer, wanted)
        return {"f1": f1 / len(records), "exact_match": exact / len(records)}


class Extract(Job):
    """Information extraction, as in UIE.

    A new head begins with the frequency of starts and ends as their probability. Beginning with 1/2, where perhaps one
    token in a hundred is one, the first steps push all hidden states to where nothing can be told apart.
    Source: Lin et al. (2017), Focal Loss for Dense Object Detection, section 3.3, for the bias.
    """

    head, decides = heads.ErnieMForInformationExtraction, "f1"

    def rows(self, records: Sequence[Extracted]) -> list[Row]:
        prompts = self.encoder.texts([record.prompt for record in records])
        contents = self.encoder.texts([record.content for record in records])
        rows = []
        for i, record in enumerate(records):
            before = len(record.prompt) + 1
            for start, end, _ in record.spans:
                text, shift = (prompts[i], before) if start < 0 else (contents[i], 0)
                self.encoder.notes[INEXACT] += not is_exact(text.offsets, start + shift, end + shift)
            for row in self.encoder.windows(prompts[i], contents[i], i, len(record.prompt)):
                targets = {name: np.zeros(len(row.side), np.float32) for name in ("start_positions", "end_positions")}
                for span in record.spans:
                    whole = prompts[i].offsets - before if span.start < 0 else contents[i].offsets
                    tokens = _within(row, span, whole, int(span.start >= 0))
                    if tokens is not None:
                        targets["start_positions"][tokens[0]] = targets["end_positions"][tokens[1]] = 1
                row.targets |= targets
                rows.append(row)
        return rows

    def prepare(self, model: Any, new: Sequence[str], rows: Sequence[Row]) -> None:
        tokens = sum(len(row.side) for row in rows)
        for name in ("start", "end"):
            if f"linear_{name}.bias" in new:
                count = sum(float(row.targets[f"{name}_positions"].sum()) for row in rows)
                share = max(count, 1.0) / (tokens + 2.0)
                with torch.no_grad():
                    getattr(model, f"linear_{name}").bias.fill_(math.log(share / (1.0 - share)))

    def arguments(self, rows: Sequence[Row], config: Any) -> dict[str, Array]:
        """UIE-M's checkpoints learnt without the token with id 0, [CLS]; theirs is the mask that they go on with.

        Here [CLS] is left out of the loss too.
        """
        arguments = collate(rows, config.pad_token_id, self.several)
        if config.default_mask == "cls_token":
            arguments["attention_mask"] *= arguments["input_ids"] != CLS_TOKEN_ID
        return arguments

    def weight(self, arguments: dict[str, Array]) -> float:
        return float(arguments["attention_mask"].sum())

    def read(self, output: Any, rows: Sequence[Row]) -> list[Any]:
        starts, ends = ((logits > LOGIT).cpu().numpy() for logits in (output.start_logits, output.end_logits))
        found = []
        for b, row in enumerate(rows):
            spans = []
            for side in (0, 1):
                given = (np.flatnonzero(on[b, : len(row.side)] & (row.side == side)).tolist() for on in (starts, ends))
                spans += [Span(int(row.offsets[s, 0]), int(row.offsets[e, 1])) for s, e in paired(*given)]
            found.append(spans)
        return found

    def figures(self, records: Sequence[Extracted], found: Sequence[Sequence[Any]]) -> dict[str, float]:
        merged = [{span for spans in windows for span in spans} for windows in found]
        return span_scores(merged, [record.spans for record in records])


def _within(row: Row, span: Span, whole: Array, side: int) -> tuple[int, int] | None:
    """The first and the last token of a span in this row, if all of its tokens are; `whole` are its text's tokens."""
    places = np.flatnonzero(row.side == side)
    wanted, here = covering(whole, *span[:2]), covering(row.offsets[places], *span[:2])
    if wanted is None or here is None or here[1] - here[0] < wanted[1] - wanted[0]:
        return None
    return int(places[here[0]]), int(places[here[1] - 1])

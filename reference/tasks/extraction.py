"""Universal information extraction (UIE): texts and a schema in; entities, relations and classifications out.

    Extractor.from_pretrained(directory).extract(["2月8日谷爱凌夺冠"], ["时间", {"选手": "国籍"}])

    [{"时间": [{"text": "2月8日", "start": 0, "end": 4, "probability": 0.97}],
      "选手": [{"text": "谷爱凌", ..., "relations": {"国籍": [...]}}]}]

Results are in PaddleNLP's form. Where it has defects, ours differs: long texts are read in windows of tokens that
overlap, with offsets in the caller's text, and nothing is cut off; results are ordered by position, each once; a
dictionary may stand in a dictionary; special tokens are never part of a result; whether a field is a classification is
decided by its options, a label is one of them, and of several in one window the most probable counts; every prompt is
asked once about the same window, all of one level of the schema together; no object keeps state between calls.

Source: Lu et al. (2022), Unified Structure Generation for Universal Information Extraction, for the task; paddlenlp
2.8.1, `taskflow/information_extraction.py`, for prompts, decoding and the form of results.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from ernie_m.tokenizer.layout import SPECIAL_PAIR

from ..activations import sigmoid
from ..array import Array
from ..heads import ErnieMForInformationExtraction
from ..training.rows import Row, RowEncoder, Text
from .arguments import listed
from .decoding import TEXT, label_in, merge_windows, spans_in, vote
from .schema import DEFAULT_THRESHOLD, LANGUAGES, ZH, Field, Schema, read_schema
from .task import Task

Result = dict[str, Any]
# By the token ids of a row, the probabilities that a span starts, and ends, at each token.
Known = dict[tuple[int, ...], tuple[Array, Array]]


@dataclass(frozen=True)
class Question:
    """A field to look for in texts[text]; `parent`: the result that it is about, None at the root."""

    text: int
    field: Field
    parent: Result | None

    def prompt(self, language: str) -> str:
        """What to ask the model."""
        return self.field.prompt(None if self.parent is None else self.parent["text"], language)


# A question, its prompt, and the prompt's tokens.
Asked = tuple[Question, str, Text]


class Extractor(Task):
    """An extraction model and its tokenizer; arguments as in `Task`.

    One call of `extract` calls the model for each level of the schema, so `progress` counts the rows of a level: a
    prompt and a window of a text each.
    """

    head = ErnieMForInformationExtraction

    @overload
    def extract(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, texts: str, schema: Schema, threshold: float | Mapping[str, float] = ..., schema_lang: str = ...
    ) -> Result: ...
    @overload
    def extract(
        self, texts: Sequence[str], schema: Schema, threshold: float | Mapping[str, float] = ..., schema_lang: str = ...
    ) -> list[Result]: ...
    def extract(
        self,
        texts: Any,
        schema: Schema,
        threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD,
        schema_lang: str = ZH,
    ) -> Any:
        """What the schema asks for, in each text; names without results are absent, so it may be an empty dictionary.

        schema: names, lists of them, and dictionaries of a name and the schema below it (see `schema`).
        threshold: what the probabilities of a start and of an end must both exceed, for all fields, or by the name of
            the field as in the schema, such as {"时间": 0.3}, wherever it stands there; 0.5 for the others. A result
            reaches from a start to the next end, so a lower threshold, which admits more of both, may also break a
            probable result into improbable parts.
        schema_lang: "zh" or "en", the language of the prompts below the root: "马云的出生地" or "birthplace of Jobs".

        A result is {"text", "start", "end", "probability"}, with text == texts[i][start:end], and "relations" if
        something was found below it; of a classification, {"text", "probability"}, at most one. Returns a dictionary
        for one text, or one for each of a list. Where a result is so long that the prompt for what is below it takes
        more than half of a row of the model, that is not asked; a warning for each call says so.

        Raises TypeError or ValueError for any other argument, and for a name that takes more than half of a row.
        """
        single, texts = isinstance(texts, str), listed("texts", texts)
        if schema_lang not in LANGUAGES:
            raise ValueError(f"schema_lang: expected one of {', '.join(LANGUAGES)}, got {schema_lang!r}")
        fields, encoder = read_schema(schema, threshold), self.rows()
        results: list[Result] = [{} for _ in texts]
        tokens = encoder.texts(texts)
        # In a text without tokens nothing can be found.
        level = [Question(i, field, None) for i, text in enumerate(tokens) if len(text) for field in fields]
        known: Known = {}
        left_out: list[str] = []
        while level:
            asked = _fitting(encoder, level, schema_lang, left_out)
            rows = _rows(encoder, asked, tokens)
            self._ask([row for some in rows for row in some], known)
            below: list[Question] = []
            for (question, prompt, _), some in zip(asked, rows, strict=True):
                found = decode(question.field, prompt, texts[question.text], some, known)
                if found:
                    parent = question.parent
                    place = results[question.text] if parent is None else parent.setdefault("relations", {})
                    place[question.field.name] = found
                below += [Question(question.text, field, x) for x in found for field in question.field.children]
            level = below
        if left_out:
            more = f"; and {len(left_out) - 1:,} more" if len(left_out) > 1 else ""
            warnings.warn(left_out[0] + more, stacklevel=2)
        return results[0] if single else results

    def _ask(self, rows: Sequence[Row], known: Known) -> None:
        """Add the probabilities of those rows that are not known yet."""
        new = [ids for ids in dict.fromkeys(tuple(row.choices[0]) for row in rows) if ids not in known]
        for ids, out in zip(new, self.outputs(new), strict=True):
            start, end = (sigmoid(out[f"{name}_logits"].astype(np.float64)) for name in ("start", "end"))
            known[ids] = start, end


def _fitting(encoder: RowEncoder, level: Sequence[Question], language: str, left_out: list[str]) -> list[Asked]:
    """The questions whose prompts fit. The others are described in `left_out`; raises ValueError if a root is one."""
    most = (encoder.longest - SPECIAL_PAIR) // 2
    expected = f"expected a prompt of at most {most} tokens, half of what the model reads"
    prompts = [question.prompt(language) for question in level]
    fitting: list[Asked] = []
    for question, prompt, tokens in zip(level, prompts, encoder.texts(prompts), strict=True):
        if len(tokens) <= most:
            fitting.append((question, prompt, tokens))
        elif question.parent is None:
            raise ValueError(f"schema: {question.field.name!r:.80}: {expected}, got {len(tokens)}: {prompt!r:.80}")
        else:
            left_out.append(f"texts[{question.text}]: left out {shortened(prompt)}: {expected}, got {len(tokens)}")
    return fitting


def shortened(prompt: str, most: int = 80) -> str:
    """The prompt in quotes, without its middle if it is longer."""
    half = most // 2
    return repr(prompt if len(prompt) <= most else f"{prompt[:half]} ... {prompt[-half:]}")


def _rows(encoder: RowEncoder, asked: Sequence[Asked], texts: Sequence[Text]) -> list[list[Row]]:
    """The rows of each question: windows of its text."""
    rows: dict[tuple[str, int], list[Row]] = {}
    for question, prompt, tokens in asked:
        key = prompt, question.text
        if key not in rows:
            rows[key] = encoder.windows(tokens, texts[question.text], question.text, len(prompt))
    return [rows[prompt, question.text] for question, prompt, _ in asked]


def decode(field: Field, prompt: str, text: str, rows: Sequence[Row], known: Known) -> list[Result]:
    """The results of a field in a text, given the probabilities of its rows."""
    windows = [(row.offsets, row.side, *known[tuple(row.choices[0])], field.threshold) for row in rows]
    if field.options:
        # In a row, a prompt ends one character before its text begins.
        before = len(prompt) + 1
        labels = [(name, start - before, end - before) for name, start, end in field.labels(prompt)]
        chosen = vote(label_in(labels, *window) for window in windows)
        return [] if chosen is None else [{"text": chosen[0], "probability": chosen[1]}]
    seen = [row.offsets[row.side == TEXT] for row in rows]
    spans = merge_windows(
        [((int(x[0, 0]), int(x[-1, 1])), spans_in(*window)) for x, window in zip(seen, windows, strict=True)]
    )
    return [{"text": text[s:e], "start": s, "end": e, "probability": p} for (s, e), p in spans.items()]

"""Question answering: where in a context the answer to a question stands.

    p_start, p_end    softmax of the logits over the context's tokens and [CLS], in each window of the context
    score of s..e     p_start[s] p_end[e]
    no answer         p_start[CLS] p_end[CLS], the minimum over all windows

Source: transformers 4.40.2, `pipelines/question_answering.py`, for the scores. It reads at most 384 tokens at a time
and cuts questions to 64; here rows are as long as the model reads, and no question is cut. It lists a span once for
each window that it is in; here the best counts. Its positions are those of whole words and, with ERNIE-M's tokenizer,
one token off; here they are the tokens' own, without white space at the edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from ..array import Array, true_or_false
from ..heads import ErnieMForQuestionAnswering
from ..softmax import softmax
from ..training.rows import Row
from .arguments import alike, at_least_one
from .results import Answer
from .task import Task


class Answerer(Task):
    """Answers questions from contexts of any length."""

    head = ErnieMForQuestionAnswering

    @overload
    def answer(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, questions: str, contexts: str, top_k: int = ..., no_answer: bool = ..., longest: int = ...
    ) -> list[Answer]: ...
    @overload
    def answer(
        self, questions: Sequence[str], contexts: Sequence[str], top_k: int = ..., no_answer: bool = ...,
        longest: int = ...,
    ) -> list[list[Answer]]: ...  # fmt: skip
    def answer(self, questions: Any, contexts: Any, top_k: int = 1, no_answer: bool = False, longest: int = 15) -> Any:
        """The `top_k` best answers to each question in the context of the same place, the best first.

        no_answer: whether to allow "no answer" as an answer. longest: the maximum length of an answer, in tokens. There
        are fewer than `top_k` if the context has fewer. Returns a list of answers for one question, or one for each of
        a list.

        Raises ValueError for unequal lengths, numbers below 1, or a question that takes more than half of a row.
        """
        single = isinstance(questions, str)
        questions, contexts = alike(("questions", "contexts"), questions, contexts)
        at_least_one("top_k", top_k)
        at_least_one("longest", longest)
        true_or_false(no_answer=no_answer)
        encoder = self.rows()
        most = (encoder.longest - 4) // 2
        rows: list[Row] = []
        pairs = zip(encoder.texts(questions), encoder.texts(contexts), strict=True)
        for i, (question, context) in enumerate(pairs):
            if len(question) > most:
                raise ValueError(f"questions[{i}]: expected at most {most} tokens, got {len(question)}")
            rows += encoder.windows(question, context, i)
        best: list[dict[tuple[int, int], float]] = [{} for _ in questions]
        none = [1.0] * len(questions)
        for row, output in zip(rows, self.outputs([row.choices[0] for row in rows]), strict=True):
            allowed = row.side == 1
            allowed[0] = True
            starts, ends = (softmax(output[f"{x}_logits"].astype(np.float64), allowed) for x in ("start", "end"))
            none[row.record] = min(none[row.record], float(starts[0] * ends[0]))
            found = best[row.record]
            for place, score in best_spans(starts, ends, row, contexts[row.record], top_k, longest).items():
                found[place] = max(score, found.get(place, 0.0))
        results = []
        for context, places, nothing in zip(contexts, best, none, strict=True):
            answers = [Answer(context[start:end], start, end, score) for (start, end), score in places.items()]
            if no_answer:
                answers.append(Answer("", 0, 0, nothing))
            results.append(sorted(answers, key=lambda a: (-a.score, not a.text, a.start, a.end))[:top_k])
        return results[0] if single else results


def best_spans(
    starts: Array, ends: Array, row: Row, text: str, top_k: int, longest: int
) -> dict[tuple[int, int], float]:  # (S,) x 2 -> at most top_k
    """The best spans of a row's second text, as its characters without white space at the edges, with their scores."""
    tokens = np.flatnonzero(row.side == 1)
    n = len(tokens)
    first = np.arange(n)[:, None]
    last = first + np.arange(min(longest, n))
    first, last = (x[last < n] for x in (np.broadcast_to(first, last.shape), last))
    scores = starts[tokens][first] * ends[tokens][last]
    found: dict[tuple[int, int], float] = {}
    for j in np.argsort(-scores, kind="stable"):
        start, end = int(row.offsets[tokens[first[j]], 0]), int(row.offsets[tokens[last[j]], 1])
        start, end = end - len(text[start:end].lstrip()), start + len(text[start:end].rstrip())
        if start < end:
            found.setdefault((start, end), float(scores[j]))
        if len(found) == top_k:
            break
    return found

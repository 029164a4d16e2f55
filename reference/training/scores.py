"""How good answers are: accuracy, F1 of spans, and SQuAD's exact match and F1.

    precision = right / found        recall = right / wanted        F1 = 2 right / (found + wanted)

counted over all texts together ("micro"). If nothing is wanted and nothing found, all are 1.

Source: SQuAD's official `evaluate-v2.0.py` for the comparison of answers; conlleval for spans.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Hashable, Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """The share of answers that are right."""
    return sum(one == other for one, other in zip(found, wanted, strict=True)) / len(wanted)


def span_scores(found: Sequence[Collection[Hashable]], wanted: Sequence[Collection[Hashable]]) -> dict[str, float]:
    """Precision, recall and F1 of the spans of some texts; a span counts if all of it is right."""
    right = sum(len(set(one) & set(other)) for one, other in zip(found, wanted, strict=True))
    n_found, n_wanted = (sum(len(set(spans)) for spans in side) for side in (found, wanted))

    def share(part: int, whole: int) -> float:
        return part / whole if whole else 1.0 if n_found == n_wanted else 0.0

    return {
        "f1": share(2 * right, n_found + n_wanted),
        "precision": share(right, n_found),
        "recall": share(right, n_wanted),
    }


def normalise(answer: str) -> str:
    """In lower case, without punctuation and English articles, words separated by one space."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(found: str, wanted: Collection[str]) -> float:
    """1 if an answer is one of those wanted; "" is the answer to a question without any."""
    return float(any(normalise(found) == normalise(answer) for answer in wanted or ("",)))


def answer_f1(found: str, wanted: Collection[str]) -> float:
    """The F1 of an answer's words, with the one of those wanted that fits best."""
    return max(_word_f1(normalise(found).split(), normalise(answer).split()) for answer in wanted or ("",))


def _word_f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))

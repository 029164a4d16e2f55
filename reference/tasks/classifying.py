"""Classification of texts or pairs, and into labels that the head never saw, through one that judges entailment.

    classify     softmax of the logits; if several may be true or there is only one, sigmoids; regression: as they are
    zero_shot    does the text entail "This example is {label}."?  if one label is true: softmax over the labels of the
                 logit for entailment; if any number are: of that and the one for contradiction, for each label

With "window-mean", the mean over the windows of a long text.

Source: transformers 4.40.2, `pipelines/text_classification.py` and `zero_shot_classification.py`; Yin, Hay and Roth
(2019), Benchmarking Zero-shot Text Classification. For regression, transformers 4.40.2 gives the sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from ernie_m.tokenizer.layout import SPECIAL_PAIR

from ..activations import sigmoid
from ..array import Array, true_or_false
from ..heads import ErnieMForSequenceClassification
from ..softmax import softmax
from ..training.rows import Row
from .arguments import alike, at_least_one, listed, options
from .fitting import CUT, FittingTask, fitted
from .long_texts import ERROR
from .results import Label

TEMPLATE = "This example is {}."


class Classifier(FittingTask):
    """Puts texts into classes; arguments as in `Task`, and `long` as in `FittingTask`."""

    head = ErnieMForSequenceClassification

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, texts: str, pairs: str | None = ..., top_k: int | None = ...
    ) -> list[Label]: ...
    @overload
    def classify(
        self, texts: Sequence[str], pairs: Sequence[str] | None = ..., top_k: int | None = ...
    ) -> list[list[Label]]: ...
    def classify(self, texts: Any, pairs: Any = None, top_k: int | None = 1) -> Any:
        """The `top_k` most probable classes of each text, or of all with None, the most probable first.

        pairs: the second text of each, for a head on pairs. Returns a list for one text, or one for each of a list.
        Raises ValueError for unequal lengths, for `top_k` below 1, and with "error" for a text that is too long.
        """
        single, others = isinstance(texts, str), None
        if pairs is None:
            texts = listed("texts", texts)
        else:
            texts, others = alike(("texts", "pairs"), texts, pairs)
        if top_k is not None:
            at_least_one("top_k", top_k)
        names = [self.config.id2label[i] for i in range(self.config.num_labels)]
        found = self._logits(texts, None if others is None else [[other] for other in others])
        results = [ranked(names, self._probabilities(logits[:, 0]).mean(axis=0))[:top_k] for logits in found]
        return results[0] if single else results

    @overload
    def zero_shot(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, texts: str, labels: Sequence[str], template: str = ..., multi_label: bool = ...
    ) -> list[Label]: ...
    @overload
    def zero_shot(
        self, texts: Sequence[str], labels: Sequence[str], template: str = ..., multi_label: bool = ...
    ) -> list[list[Label]]: ...
    def zero_shot(self, texts: Any, labels: Sequence[str], template: str = TEMPLATE, multi_label: bool = False) -> Any:
        """All of the labels for each text, the most probable first.

        template: what is asked to follow from the text, with {} for the label; only the text is ever cut or windowed.
        multi_label: whether several may be true. A single label is judged alone in any case.

        Raises ValueError if there is no label or one twice, if the template has no place for it, if a label takes more
        than half of a row and leaves no room for the text, and if no class, or the only one, has a name that begins
        with "entail".
        """
        true_or_false(multi_label=multi_label)
        single, texts, labels = isinstance(texts, str), listed("texts", texts), options("labels", labels)
        twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
        if twice is not None:
            raise ValueError(f"labels: expected different ones, got {twice!r:.80} twice")
        hypotheses = [hypothesis(template, label) for label in labels]
        yes = self._entailment()
        no, alone = -1 if yes == 0 else 0, multi_label or len(labels) == 1

        def judged(logits: Array) -> Array:  # (windows, labels, C) -> (windows, labels)
            return softmax(logits[..., [no, yes]])[..., 1] if alone else softmax(logits[..., yes])

        found = self._logits(texts, [hypotheses] * len(texts), whole=True)
        results = [ranked(labels, judged(logits).mean(axis=0)) for logits in found]
        return results[0] if single else results

    def _entailment(self) -> int:
        found = next((i for name, i in self.config.label2id.items() if name.lower().startswith("entail")), None)
        if found is None or self.config.num_labels < 2:
            names = ", ".join(map(repr, self.config.label2id))
            raise ValueError(f"model: expected several classes, one whose name begins with 'entail', got {names:.200}")
        return found

    def _probabilities(self, logits: Array) -> Array:  # (..., C) -> (..., C)
        problem = self.config.problem_type
        if problem == "regression":
            return logits
        several = problem == "multi_label_classification" or self.config.num_labels == 1
        return sigmoid(logits) if several else softmax(logits)

    def _logits(self, texts: list[str], pairs: list[list[str]] | None, whole: bool = False) -> list[Array]:
        """The logits of each text beside each of its `pairs`, in each of its windows: (windows, pairs, C).

        whole: whether these must not be cut.
        """
        encoder, cut = self.rows(), 0
        rows: list[list[list[Row]]] = []
        others = iter(encoder.texts([other for some in pairs or [] for other in some]))
        for i, text in enumerate(encoder.texts(texts)):
            beside = [None] if pairs is None else [next(others) for _ in pairs[i]]
            sizes = [len(other or ()) for other in beside]
            reserved, before = max(sizes) if whole else None, encoder.notes[CUT]
            room = encoder.longest - SPECIAL_PAIR
            if whole and self.long != ERROR and max(sizes) > room // 2 and len(text) + max(sizes) > room:
                expected = f"expected at most {room // 2} tokens with the template, or {room} together with the text"
                name = f"labels[{np.argmax(sizes)}]"
                raise ValueError(f"{name}: {expected}, got {max(sizes)}, and {len(text)} in texts[{i}]")
            try:
                rows.append([fitted(encoder, text, other, self.long, i, reserved) for other in beside])
            except ValueError as error:
                raise ValueError(f"texts[{i}]: {error}") from None
            cut += encoder.notes[CUT] > before
        self.say_what_was_cut(cut, len(rows), "texts" if pairs is None or whole else "pairs of texts", 4)
        found = iter(self.outputs([row.choices[0] for some in rows for windows in some for row in windows]))
        numbers = [[[next(found)["logits"] for _ in windows] for windows in some] for some in rows]
        return [np.array(some, np.float64).swapaxes(0, 1) for some in numbers]


def ranked(names: Sequence[str], scores: Array) -> list[Label]:
    """All labels, the highest score first; of equal ones, in their order."""
    found = [Label(name, float(score)) for name, score in zip(names, scores, strict=True)]
    return sorted(found, key=lambda label: -label.score)


def hypothesis(template: str, label: str) -> str:
    """The template with the label in it. Raises ValueError if there is no place for it, or another."""
    place = "\x00"
    try:
        if place in template.format(place):
            return template.format(label)
    except (AttributeError, IndexError, KeyError, ValueError):
        pass
    raise ValueError(f"template: expected a text with {{}} where the label goes, got {template!r:.80}")

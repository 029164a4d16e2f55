"""Multiple choice: which of several texts goes with a prompt.

A row is [CLS] prompt [SEP] [SEP] choice [SEP]; scores are the softmax over the logits of all choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from ..heads import ErnieMForMultipleChoice
from ..softmax import softmax
from .arguments import listed, options
from .fitting import CUT, FittingTask, fitted
from .long_texts import ERROR, TRUNCATE
from .results import Choice


class Chooser(FittingTask):
    """Chooses between texts; arguments as in `Task`, and `long`, "error" or "truncate", as in `FittingTask`.

    `truncated` counts pairs of a prompt and a choice.
    """

    head = ErnieMForMultipleChoice
    policies = ERROR, TRUNCATE

    @overload
    def choose(self, prompts: str, choices: Sequence[str]) -> list[Choice]: ...  # type: ignore[overload-overlap]  # a str is a Sequence too
    @overload
    def choose(self, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[list[Choice]]: ...
    def choose(self, prompts: Any, choices: Any) -> Any:
        """The choices for each prompt with their probabilities, the most probable first.

        prompts, choices: one text and a list of texts, or a list of texts and as many lists; any number of choices.
        Returns a list for one prompt, or one for each of a list. Raises ValueError if there are no choices, for unequal
        lengths, and with "error" for texts that are too long.
        """
        single = isinstance(prompts, str)
        prompts, choices = listed("prompts", prompts), [choices] if single else choices
        if not isinstance(choices, Sequence):
            raise TypeError(f"choices: expected a list of lists of texts, got {type(choices).__name__}")
        if len(prompts) != len(choices):
            raise ValueError(f"choices: expected a list for each of {len(prompts)} prompts, got {len(choices)}")
        given = [options("choices" if single else f"choices[{i}]", some) for i, some in enumerate(choices)]
        encoder = self.rows()
        rows: list[list[int]] = []
        texts = iter(encoder.texts([text for some in given for text in some]))
        for i, (prompt, some) in enumerate(zip(encoder.texts(prompts), given, strict=True)):
            for k in range(len(some)):
                try:
                    (row,) = fitted(encoder, prompt, next(texts), self.long, i)
                except ValueError as error:
                    raise ValueError(f"prompts[{i}], choice {k}: {error}") from None
                rows.append(row.choices[0])
        self.say_what_was_cut(encoder.notes[CUT], len(rows), "pairs of a prompt and a choice", 3)
        found = iter(self.outputs(rows))
        results = []
        for some in given:
            scores = softmax(np.array([next(found)["logits"][0] for _ in some], np.float64))
            ordered = [Choice(k, text, float(score)) for k, (text, score) in enumerate(zip(some, scores, strict=True))]
            results.append(sorted(ordered, key=lambda choice: -choice.score))
        return results[0] if single else results

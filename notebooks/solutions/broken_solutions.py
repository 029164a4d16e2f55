"""Solutions to `exercises/06_broken_trainings`. Try the exercises first, then compare."""

from __future__ import annotations

from typing import Any

# By training: the cause, and where it is.
DIAGNOSES: dict[str, tuple[str, Any]] = {
    # A perfect model has a loss of 0 on one side and of ln 2 on the other: 0.35 on average. The run ends well below
    # that, which no honest model can. In `sees`, text sees the other side's text, for instance [CLS] the first y. A
    # [MASK] on that side reads [CLS] in the second layer, and finds its own word.
    "A": ("a leak", (0, 6)),
    # The loss rises after step 20. How far a parameter moves in AdamW is proportional to the rate, and hardly depends
    # on the size of the gradient: run("B").moved["word_embeddings"] doubles from step 19 to step 20.
    "B": ("rate jumps", 20),
    # All gradients of queries and keys are exactly 0, in both layers, and no others. What they share is the softmax of
    # attention. Values still learn, but queries and keys stay random: each place reads a mixture of all words, not the
    # word it needs.
    "C": ("no gradient", "q_proj"),
}

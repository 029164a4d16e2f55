"""Checks an exercise whose result is right or wrong as a whole: `answer("pair_spans", pair_spans)` prints and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mask_checks
import matplotlib.pyplot as plt
import span_checks
from matplotlib.figure import Figure

EXAMPLES = 100
CHECKS: dict[str, Callable[..., tuple[bool, str, Figure | None]]] = {
    "leak_proof_mask": mask_checks.examine,
    "pair_spans": span_checks.examine,
}


def answer(exercise: str, function: Callable[..., Any]) -> None:
    """Check a function and show the result. `exercise`: one of CHECKS."""
    _, text, figure = CHECKS[exercise](function, EXAMPLES)
    print(text)
    if figure is not None:
        plt.show()

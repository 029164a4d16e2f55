"""Judges what a reader says is wrong with a training: `diagnose("A", cause, where)`.

A wrong cause is refuted with numbers of the run itself. Reading this file spoils the exercise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from broken import BEST, REPAIRED, WARMUP, Run, draw, pairs, run, trained

from ernie_m.reference.array import Array
from ernie_m.reference.losses import IGNORE_INDEX

CAUSES = {
    "a leak": "a masked place sees, directly or not, what it is to predict",
    "the same batch": "the model sees the same few pairs again and again",
    "wrong labels": "the labels are not the words that were masked",
    "rate too low": "the learning rate is too low, all the time",
    "rate too high": "the learning rate is too high, all the time",
    "rate jumps": "the learning rate is right at first, and too high from some step on",
    "no update": "some parameters are not updated, although they have a gradient",
    "no gradient": "some parameters never get a gradient",
}


def diagnose(name: str, cause: str | None, where: Any = None) -> None:
    """Judge a diagnosis: `cause` is one of CAUSES, `where` says where the fault is (see the notebook)."""
    right, text = judged(name, cause, where)
    print(text)
    if right:
        repaired = trained(REPAIRED[name])
        draw({"loss": {f"{name}, as it was": run(name).losses, f"{name}, repaired": repaired.losses}}, best=True)
        plt.show()


def judged(name: str, cause: str | None, where: Any = None) -> tuple[bool, str]:
    """Whether a diagnosis is right, and the answer in words."""
    found = run(name)
    if cause is None:
        return False, f"{name}: not written yet. The causes: {', '.join(map(repr, CAUSES))}."
    if not isinstance(cause, str) or cause not in CAUSES:
        return False, f"{name}: expected one of {', '.join(map(repr, CAUSES))}, got {cause!r}."
    expected, locate = FAULTS[name]
    if cause != expected:
        return False, f"{name}: not {cause!r}: {AGAINST[cause](found)}"
    right, text = locate(found, where)
    judgement = "right:" if right else f"yes, {cause!r}" + (". Where?" if where is None else ", but not there:")
    return right, f"{name}: {judgement} {text}"


def least(found: dict[str, Array]) -> tuple[str, float]:
    """The parameter with the smallest sum over all steps, key biases aside, and that sum."""
    path = min((path for path in found if "k_proj.bias" not in path), key=lambda path: found[path].sum())
    return path, float(found[path].sum())


def against_wrong_labels(found: Run) -> str:
    trained_on = [example for batch in pairs()[: len(found.losses)] for example in batch]
    right = sum(np.array_equal(x.labels[x.labels != IGNORE_INDEX], x.input_ids[x.input_ids >= 5]) for x in trained_on)
    return f"in {right} of its {len(trained_on)} pairs, the labels are the words of the text, in the same order."


def against_a_jump(found: Run) -> str:
    moves = found.moved["word_embeddings"]
    times = (moves[WARMUP:] / moves[WARMUP - 1 : -1]).max()
    return (
        "in AdamW, how far a parameter moves is proportional to the rate. From the end of warm-up on, no step moves "
        f"the words' embeddings more than {times:.1f} times as far as the step before."
    )


def against_no_update(found: Run) -> str:
    still = [path for path, moves in found.moved.items() if not moves[WARMUP:].any()]
    if not still:
        path, _ = least(found.moved)
        return f"all parameters move; {path} moves least."
    idle = [path for path in still if found.gradients[path].any()]
    return (
        f"of {len(still)} parameters that never move, {len(idle)} have a gradient. Look at what comes before the "
        "update."
    )


# What speaks against a cause, from the numbers of the run.
AGAINST: dict[str, Callable[[Run], str]] = {
    "a leak": lambda r: (
        f"a leak makes the loss too good. Without one, {BEST:.2f} is the best possible; this run ends at {r.last:.2g}."
    ),
    "the same batch": lambda r: f"{r.batches} of its {len(r.losses)} batches are different.",
    "wrong labels": against_wrong_labels,
    "rate too low": lambda r: (
        f"in 30 steps the loss falls from {r.losses[0]:.1f} to {r.losses[25:35].mean():.1f}: the steps are not too "
        "small. Something else decides where it ends."
    ),
    "rate too high": lambda r: (
        "then the last steps of warm-up would show it, where the rate is nearly at its highest. The loss falls there, "
        f"from {r.losses[0]:.1f} at the start to {r.losses[WARMUP - 5 : WARMUP].mean():.1f}. How far do parameters "
        "move (`moved`) in the steps after them?"
    ),
    "rate jumps": against_a_jump,
    "no update": against_no_update,
    "no gradient": lambda r: (
        f"every parameter has one; {least(r.gradients)[0]} has the smallest. (The biases of keys have none in any run, "
        "but for rounding: they shift all scores of a row alike, which changes no probability.)"
    ),
}


def where_it_leaks(found: Run, where: Any) -> tuple[bool, str]:
    right = pairs()[0][0].sees
    try:
        row, column = where
        seen, allowed = bool(found.sees[row, column]), bool(right[row, column])
    except (TypeError, ValueError, IndexError):
        return False, f"`where` is (row, column) of a cell of `sees`, which is {found.sees.shape}; got {where!r}."
    one, other = (f"{found.places[i]} at {i}" for i in (row, column))
    if not seen:
        return False, f"{one} does not see {other}."
    if allowed:
        return False, f"{one} may see {other}. Which places see what they may not see?"
    return True, (
        f"{one} sees {other}, of the other side. In the next layer, the [MASK]s of that side read {one}, and through "
        "it the side that they must not see."
    )


def where_it_jumps(found: Run, where: Any) -> tuple[bool, str]:
    moves = found.moved["word_embeddings"]
    if isinstance(where, (int, float, np.integer)) and where in range(1, len(moves)):
        step = int(where)
        if step == WARMUP:
            return True, f"from step {step} on, at the end of warm-up, the rate is twice what it should be."
        before, now = moves[step - 1 : step + 1]
        return False, f"the words' embeddings move {now:.2g} in step {step}, and {before:.2g} in the step before."
    return False, f"`where` is the first step with the new rate, from 1 to {len(moves) - 1}; got {where!r}."


def where_it_is_lost(found: Run, where: Any) -> tuple[bool, str]:
    parts = [where] if isinstance(where, str) else where if isinstance(where, (list, tuple, set)) else []
    named = [[path for path in found.gradients if isinstance(part, str) and part and part in path] for part in parts]
    if not named or not all(named):
        return False, f"`where` is a part of the names of parameters, such as 'v_proj'; got {where!r}."
    paths = [path for own in named for path in own]
    arrived = [path for path in paths if found.gradients[path].any()]
    if arrived:
        return False, f"{arrived[0]} gets a gradient."
    if all("k_proj.bias" in path for path in paths):
        return False, "the biases of keys have no gradient in any run, but for rounding. Which others have none?"
    return True, (
        "queries and keys get none, in both layers: all that they do goes through the softmax of attention, whose "
        "backward returned zeros. Weight decay still moves the weights."
    )


FAULTS: dict[str, tuple[str, Callable[[Run, Any], tuple[bool, str]]]] = {
    "A": ("a leak", where_it_leaks),
    "B": ("rate jumps", where_it_jumps),
    "C": ("no gradient", where_it_is_lost),
}

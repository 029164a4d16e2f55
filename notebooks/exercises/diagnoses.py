"""Judges what a reader says is wrong with a training: `diagnose("A", cause, where)`.

A wrong cause is refuted with numbers of the run itself. Reading this file spoils the exercise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
from broken import BEST, REPAIRED, WARMUP, WORDS, Run, draw, pairs, run, trained

from ernie_m.reference.array import Array

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
    if cause is None:
        return False, f"{name}: not written yet. The causes: {', '.join(map(repr, CAUSES))}."
    if cause not in CAUSES:
        return False, f"{name}: expected one of {', '.join(map(repr, CAUSES))}, got {cause!r}."
    expected, locate = FAULTS[name]
    if cause != expected:
        return False, f"{name}: not {cause!r}: {AGAINST[cause](run(name))}."
    right, text = locate(run(name), where)
    return right, f"{name}: {'right' if right else f'yes, {cause!r}, but not there'}: {text}."


def least(found: dict[str, Array]) -> tuple[str, float]:
    """The parameter with the smallest sum over all steps, key biases aside, and that sum."""
    path = min((path for path in found if "k_proj.bias" not in path), key=lambda path: found[path].sum())
    return path, float(found[path].sum())


def against_no_update(found: Run) -> str:
    still = [path for path, moves in found.moved.items() if not moves[WARMUP:].any()]
    if not still:
        path, _ = least(found.moved)
        return f"all parameters move; {path} moves least"
    idle = [path for path in still if found.gradients[path].any()]
    return (
        f"of {len(still)} parameters that never move, {len(idle)} have a gradient. Look at what comes before the update"
    )


# What speaks against a cause, from the numbers of the run.
AGAINST: dict[str, Callable[[Run], str]] = {
    "a leak": lambda r: (
        f"a leak makes the loss too good. Without one, {BEST:.2f} is the best possible; this run ends at {r.last:.2g}"
    ),
    "the same batch": lambda r: f"{r.batches} of its {len(r.losses)} batches are different",
    "wrong labels": lambda r: (
        f"then no model could do better than guess one of {3 * WORDS} words, a loss of {math.log(3 * WORDS):.1f}. "
        f"The loss falls to {r.losses.min():.2g}"
    ),
    "rate too low": lambda r: (
        f"in 30 steps the loss falls from {r.losses[0]:.1f} to {r.losses[25:35].mean():.1f}: the steps are not too "
        "small. Something else decides where it ends"
    ),
    "rate too high": lambda r: (
        f"then it would be so in the first {WARMUP} steps too, as the rate rises; there the loss falls from "
        f"{r.losses[0]:.1f} to {r.losses[WARMUP - 5 : WARMUP].mean():.1f}. How far do parameters move (`moved`) around "
        "the step at which the loss changes its course"
    ),
    "rate jumps": lambda r: (
        "how far a parameter moves is proportional to the rate, in AdamW. `moved` rises during warm-up and falls after "
        "it: there is no step that is much longer than the one before"
    ),
    "no update": against_no_update,
    "no gradient": lambda r: (
        f"every parameter has one; {least(r.gradients)[0]} has the smallest. (The biases of keys have none in any run: "
        "they shift all scores of a row alike, which changes no probability)"
    ),
}


def where_it_leaks(found: Run, where: Any) -> tuple[bool, str]:
    right = pairs()[0][0].sees
    try:
        row, column = where
        seen, allowed = bool(found.sees[row, column]), bool(right[row, column])
    except (TypeError, ValueError, IndexError):
        return False, f"`where` is (row, column) of a cell of `sees`, which is {found.sees.shape}; got {where!r}"
    one, other = (f"{found.places[i]} at {i}" for i in (row, column))
    if not seen:
        return False, f"{one} does not see {other}"
    if allowed:
        return False, f"{one} may see {other}. Which places may not see what they see"
    return True, (
        f"{one} sees {other}, of the other side. In the next layer, the [MASK]s of that side read {one}, and so the "
        "words that they hide"
    )


def where_it_jumps(found: Run, where: Any) -> tuple[bool, str]:
    if where == WARMUP:
        return True, f"from step {WARMUP} on, at the end of warm-up, the rate is twice what it should be"
    moves = found.moved["word_embeddings"]
    if isinstance(where, int) and 0 < where < len(moves):
        times = moves[where] / moves[where - 1]
        return False, f"in step {where}, the words' embeddings move {times:.1f} times as far as in the step before"
    return False, f"`where` is the first step with the new rate, from 1 to {len(moves) - 1}; got {where!r}"


def where_it_is_lost(found: Run, where: Any) -> tuple[bool, str]:
    paths = [path for path in found.gradients if isinstance(where, str) and where and where in path]
    if not paths:
        return False, f"`where` is a part of the names of parameters, such as 'v_proj'; got {where!r}"
    arrived = [path for path in paths if found.gradients[path].any()]
    if arrived:
        return False, f"{arrived[0]} gets a gradient"
    if all("bias" in path for path in paths) and "k_proj" in paths[0]:
        return False, "the biases of keys have no gradient in any run. Which others have none"
    return True, (
        "queries and keys get none, in both layers: all that they do goes through the softmax of attention, whose "
        "backward returned zeros. Weight decay still moves the weights"
    )


FAULTS: dict[str, tuple[str, Callable[[Run, Any], tuple[bool, str]]]] = {
    "A": ("a leak", where_it_leaks),
    "B": ("rate jumps", where_it_jumps),
    "C": ("no gradient", where_it_is_lost),
}

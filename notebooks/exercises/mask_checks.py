"""Checks a mask for CAMLM by what can be reached through it, in any number of layers.

A mask is not compared with another one: several are right. It must let each place see what it needs, and nothing may
reach a masked place from the text of its own side. After L layers a place has read what the L-th power of the mask
says, as a product of booleans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from hypothesis import strategies as st
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rules import UNSTABLE, Inputs, call, mistake, repeats, smallest

from ernie_m.reference.array import Array
from ernie_m.reference.objectives import camlm_sees

DPI = 80
HIDDEN, SEEN, LEAK = range(3)
EXAMPLE = {"sides": np.array([0, 0, 0, 1, 1, 1]), "masked": np.array([False, True, False, False, True, False])}


@st.composite
def pairs(draw: Any) -> Inputs:
    """A pair with at least one token on each side and at least one masked place."""
    first, second = (draw(st.lists(st.booleans(), min_size=1, max_size=4)) for _ in range(2))
    masked = np.array([*first, *second])
    masked[0] |= not masked.any()
    return {"sides": np.repeat([0, 1], [len(first), len(second)]), "masked": masked}


def wanted(sides: Array, masked: Array) -> list[tuple[str, Array]]:  # (S, S) each
    """What must be seen, and why."""
    same, text = sides[:, None] == sides, ~masked[None, :]
    return [
        ("every place sees itself", np.eye(len(sides), dtype=bool)),
        ("a masked place sees the text of the other side", masked[:, None] & ~same & text),
        ("a text place sees the text of its own side", ~masked[:, None] & same & text),
    ]


def forbidden(sides: Array, masked: Array) -> Array:  # -> (S, S)
    """What must never be reached: from a masked place, the text of its own side."""
    return masked[:, None] & (sides[:, None] == sides) & ~masked[None, :]


def reached(mask: Array) -> list[Array]:
    """What each place has read after 1, 2, ... layers, until nothing is added."""
    found = [mask]
    while len(found) < 2 or not np.array_equal(found[-1], found[-2]):
        found.append((found[-1].astype(int) @ mask.astype(int)) > 0)
        # A place that does not see itself can lose what it had read; then the powers may alternate.
        if len(found) > len(mask) + 1:
            break
    return found


def route(mask: Array, start: int, end: int) -> list[int]:
    """The shortest way from a place to what it reads: each sees the next."""
    ways, seen = [[start]], {start}
    for way in ways:
        for place in np.flatnonzero(mask[way[-1]]).tolist():
            if place == end:
                return [*way, end]
            if place not in seen:
                seen.add(place)
                ways.append([*way, place])
    return []


def fault(mask: Any, sides: Array, masked: Array) -> tuple[str, int]:
    """What is wrong with a mask, and after how many layers it shows; ("", 0) if nothing is."""
    S = len(sides)
    if not isinstance(mask, np.ndarray):
        return f"it returned {type(mask).__name__}, expected ndarray", 0
    if mask.shape != (S, S) or mask.dtype != bool:
        return f"it returned {mask.dtype} of shape {mask.shape}, expected bool of shape {(S, S)}", 0
    for layers, read in enumerate(reached(mask), start=1):
        leaks = np.argwhere(read & forbidden(sides, masked))
        if len(leaks):
            place, text = leaks[0].tolist()
            way = " <- ".join(map(str, route(mask, place, text)))
            count = "1 layer" if layers == 1 else f"{layers} layers"
            return f"after {count}, masked place {place} has read the text at {text}, of its own side: {way}", layers
    for words, needed in wanted(sides, masked):
        missing = np.argwhere(needed & ~mask)
        if len(missing):
            place, other = missing[0].tolist()
            return f"place {place} does not see place {other}: {words}", 1
    return "", 0


def form(rule: Callable[..., Array]) -> Callable[..., Array]:
    """A mask from (masked row, text column, same side), each to be broadcast."""

    def mask(sides: Array, masked: Array) -> Array:
        return rule(masked[:, None], ~masked[None, :], sides[:, None] == sides) | np.eye(len(sides), dtype=bool)

    return mask


def right(sides: Array, masked: Array) -> Array:
    return camlm_sees(sides, np.flatnonzero(masked), see_own_masks=False)


MISTAKES: dict[str, Callable[..., Array]] = {
    "every place sees every place: that is TLM": form(lambda m, t, same: m | ~m | t),
    "every place sees all text, of both sides: a mask may not see the text of its own side": form(
        lambda m, t, same: t | (m & ~m)
    ),
    "text sees the text of both sides: one layer later, it hands a mask the text of the mask's own side": form(
        lambda m, t, same: np.where(m, ~same & t, t)
    ),
    "text sees everything: one layer later, it hands a mask the text of the mask's own side": form(
        lambda m, t, same: ~m | (~same & t)
    ),
    "text sees the other side in place of its own: a mask gets its own side back in the second layer": form(
        lambda m, t, same: ~same & t
    ),
    "masks see the masks of the other side, which have read the text of this side": form(
        lambda m, t, same: np.where(m, ~same, same & t)
    ),
    "text sees the masks of its own side, which have read the other side: masks there get it back in the third layer": (
        form(lambda m, t, same: np.where(m, ~same & t, same))
    ),
    "masks see the whole other side and text its whole own side: they must not see the masks there": form(
        lambda m, t, same: np.where(m, ~same, same)
    ),
    "masks see their own side's text: they are to be predicted from the other side alone": form(
        lambda m, t, same: np.where(m, t, same & t)
    ),
    "masks see the text of their own side in place of the other's": form(lambda m, t, same: same & t),
    "`masked` is read the wrong way round: True means that the word is masked": lambda s, m: right(s, ~m),
    "text and masks have changed places: text sees its own side, masks the other": form(
        lambda m, t, same: np.where(m, same, ~same) & t
    ),
    "`masked` is not read: each side sees itself": form(lambda m, t, same: same),
    "rows and columns are swapped: rows see, columns are seen": lambda sides, masked: right(sides, masked).T,
    "True and False are swapped: True means that the row sees the column": lambda s, m: ~right(s, m),
    "masks do not see themselves: every place must, by rule 1": lambda s, m: right(s, m) & ~np.diag(m),
    "no place sees itself": lambda s, m: right(s, m) & ~np.eye(len(s), dtype=bool),
}
TELLING = [
    {"sides": np.repeat([0, 1], [5, 4]), "masked": np.array([0, 1, 0, 1, 0, 0, 1, 0, 1], bool)},
    {"sides": np.repeat([0, 1], [3, 4]), "masked": np.array([1, 0, 0, 0, 0, 1, 0], bool)},
]


def examine(function: Callable[..., Any], examples: int) -> tuple[bool, str, Figure | None]:
    """Whether a mask is right on all drawn pairs; the verdict in words; a figure of what is wrong."""
    got, wrong = call(function, EXAMPLE)
    if got is None and not wrong:
        text = "leak_proof_mask: not written yet: it returned None.\nThe figure shows one pair and one right mask."
        return False, text, draw(EXAMPLE, {"one right mask": right(**EXAMPLE)})

    def faulty(inputs: Inputs) -> tuple[str, int]:
        mask, wrong = call(function, inputs)
        return (wrong, 0) if wrong else fault(mask, **inputs)

    found, tried = smallest(pairs(), lambda inputs: faulty(inputs)[0] != "", examples)
    if found is None:
        return True, f"leak_proof_mask: right.\n  {tried} drawn pairs; nothing leaks through any number of layers", None
    reason, layers = faulty(found)
    got, wrong = call(function, found)
    if not reason or (isinstance(got, np.ndarray) and not repeats(function, EXAMPLE)):
        reason, layers = UNSTABLE, 0
    hint = None if reason == UNSTABLE else mistake(function, MISTAKES, TELLING)
    lines = [f"leak_proof_mask: not right yet: {reason}.", *([f"Hint: {hint}."] if hint else [])]
    lines += ["The smallest pair found:", *(f"  {name} = {x.tolist()}" for name, x in found.items())]
    mask, _ = call(function, found)
    panels = {}
    if layers:
        panels = {"your mask": mask}
        panels |= {f"read after {n} layers": reached(mask)[n - 1] for n in range(2, layers + 1)}
    return False, "\n".join(lines), draw(found, {**panels, "one right mask": right(**found)})


def draw(inputs: Inputs, panels: dict[str, Array]) -> Figure:
    """Draw masks side by side. Rows see columns; what reaches a masked place from its own side's text is red."""
    sides, masked = inputs["sides"], inputs["masked"]
    names = [f"{'xy'[side]}{i}" + (" [M]" if m else "") for i, (side, m) in enumerate(zip(sides, masked, strict=True))]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.9 * len(panels), 3), dpi=DPI, layout="constrained")
    colours = ListedColormap(["white", "#9ecae1", "#de2d26"])
    for ax, (title, mask) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        kinds = np.where(mask, np.where(forbidden(sides, masked), LEAK, SEEN), HIDDEN)
        ax.imshow(kinds, cmap=colours, vmin=HIDDEN, vmax=LEAK)
        ax.set_title(title, fontsize=9)
        ax.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.set(xlabel="is seen")
        for i, j in np.argwhere(np.any([needed for _, needed in wanted(sides, masked)], axis=0) & ~mask):
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="orange", linewidth=2))
    np.atleast_1d(axes)[0].set(ylabel="sees")
    keys = {"sees": "#9ecae1", "leaks": "#de2d26", "missing": "orange"}
    marks = [Rectangle((0, 0), 1, 1, facecolor="none" if k == "missing" else c, edgecolor=c) for k, c in keys.items()]
    figure.legend(marks, keys, loc="outside lower center", ncols=3, fontsize=8)
    return figure

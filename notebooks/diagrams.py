"""Draws the map of a layer. Used by the first notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

BLUE, RED = "#a9c8e8", "#e8a09a"


def draw_layer(entries: Mapping[str, Any]) -> None:
    """Draw one post-norm layer from its part of a trace, short names to values, in the order of computation.

    A box is an entry, with the number of values that a token has there. Scores and probabilities, which are tuples with
    an array a sentence, are red. The residuals are lines on the right.
    """
    side_by_side = {"q_proj": -1.9, "k_proj": 0.0, "v_proj": 1.9}
    others = [name for name in entries if name not in side_by_side]
    rows = {"input": 0, **dict.fromkeys(side_by_side, 1), **{name: row for row, name in enumerate(others, start=2)}}
    last = max(rows.values())
    _, ax = plt.subplots(figsize=(8, 4.8))
    for name, row in rows.items():
        value = entries[name if name in entries else "norm2"]
        pairs = isinstance(value, tuple)
        width = "heads x keys" if pairs else value.shape[-1]
        label = f"+, LayerNorm: {name}" if name.startswith("norm") else name
        box = {"boxstyle": "round", "facecolor": RED if pairs else BLUE}
        place = side_by_side.get(name, 0), -row
        ax.text(*place, f"{label}  {width}", ha="center", va="center", bbox=box, fontsize=9)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        style = {"arrowstyle": "-|>", "facecolor": "black", "shrinkA": 0, "shrinkB": 9}
        ax.annotate("", end, start, arrowprops=style, zorder=0)

    for row in range(last):
        arrow((0, -row), (0, -row - 1))
    for name, used_by in (("q_proj", "scores"), ("v_proj", "context")):
        x = side_by_side[name]
        arrow((0, 0), (x, -1))
        arrow((x, -1), (0.4 * np.sign(x), -rows[used_by]))
    for begin, end in (("input", "norm1"), ("norm1", "norm2")):
        top, bottom = -rows[begin] - 0.15, -rows[end]
        ax.plot([0.5, 3, 3], [top, top, bottom], color="black", linewidth=1, zorder=0)
        arrow((3, bottom), (0.9, bottom))
        ax.text(3.1, (top + bottom) / 2, f"residual: {begin}", va="center")
    ax.set(xlim=(-3, 5), ylim=(-last - 0.5, 0.5), title="One post-norm layer, from top to bottom")
    ax.axis("off")
    plt.show()

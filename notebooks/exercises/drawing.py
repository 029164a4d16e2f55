"""Draws one call of a function: its arguments, its result, the expected result, and the error relative to its bound."""

from __future__ import annotations

from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ernie_m.reference.array import Array

# Cells show their numbers if the panels of a row have at most this many columns in total, and this many rows.
MOST_COLUMNS, MOST_ROWS = 24, 12
DPI = 80


def draw(
    inputs: dict[str, Any],
    expected: Array | dict[str, Array],
    got: Array | None = None,
    limit: Array | None = None,
    index: tuple[int, ...] | None = None,
) -> Figure:
    """Draw the arguments above and the results below; `expected` may be several. `index`: the worst, framed in red."""
    arrays = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
    scalars = ", ".join(f"{name} = {value:g}" for name, value in inputs.items() if name not in arrays)
    results = expected if isinstance(expected, dict) else {"expected": expected}
    results = results if got is None else {"your result": got, **results}
    if got is not None and limit is not None and limit.any():
        results["error / bound"] = ratio(got, expected, limit)
    elif got is not None:
        results["wrong (1) or right (0)"] = (got != expected).astype(float)
    figure = plt.figure(figsize=(9, height(arrays) + height(results)), dpi=DPI, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(height(arrays), height(results)))
    above.suptitle("the input" + (f"; {scalars}" if scalars else ""), fontsize=11, fontweight="bold")
    below.suptitle("the result", fontsize=11, fontweight="bold")
    for part, panels in ((above, arrays), (below, results)):
        axes = part.subplots(1, len(panels), squeeze=False, width_ratios=[width(value) for value in panels.values()])
        for ax, (name, value) in zip(axes[0], panels.items(), strict=True):
            panel(ax, name, value, largest(expected if name == "your result" else value), len(panels))
            if part is below and index is not None:
                frame(ax, value, index)
    return figure


def ratio(got: Array, expected: Array, limit: Array) -> Array:
    """|got - expected| / limit; infinite where `got` is not finite."""
    with np.errstate(all="ignore"):
        error = np.abs(got - expected)
        return np.where(error == 0, 0.0, np.where(np.isfinite(error), error / limit, np.inf))


def flat(value: Array) -> Array:
    """`value` as a matrix: a vector becomes one row, and the matrices of a batch are stacked."""
    return np.atleast_2d(value) if value.ndim <= 2 else value.reshape(-1, value.shape[-1])


def height(panels: dict[str, Array]) -> float:
    """The height of a row of panels, in inches."""
    return 1.1 + 0.24 * max(min(flat(value).shape[0], MOST_ROWS) for value in panels.values())


def width(value: Array) -> int:
    return max(2, min(flat(value).shape[1], 6))


def largest(value: Array) -> float:
    """The largest finite magnitude, where the colour scale ends; 1 if that is 0."""
    size = np.abs(value.astype(float))
    return float(size.max(initial=0.0, where=np.isfinite(size))) or 1.0


def panel(ax: Axes, name: str, value: Array, most: float, beside: int) -> None:
    """Draw an array as coloured cells, with numbers where there is room. `beside`: the number of panels in the row."""
    cells = flat(value).astype(float)
    rows, columns = cells.shape
    ax.set_title(f"{name}\n({', '.join(map(str, value.shape))})", fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    if not cells.size:
        return
    error = name.startswith(("error", "wrong"))
    most = 2.0 if error else most
    shown = np.clip(cells, -most, most)
    image = ax.imshow(
        shown,
        cmap=matplotlib.colormaps["Reds" if error else "RdBu_r"].with_extremes(bad="lightgrey"),
        vmin=0 if error else -2 * most,
        vmax=2 * most,
    )
    ax.set_aspect("auto")
    if columns * beside > MOST_COLUMNS or rows > MOST_ROWS:
        ax.figure.colorbar(
            image, ax=ax, boundaries=np.linspace(0 if error else -most, most, 64), ticks=[0, most], format="%.3g"
        )
        return
    for i, j in np.ndindex(rows, columns):
        ax.text(j, i, f"{cells[i, j]:.3g}", ha="center", va="center", fontsize=8)
    ax.set_xticks(np.arange(0.5, columns - 1), minor=True)
    ax.set_yticks(np.arange(0.5, rows - 1), minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    if value.ndim == 3:
        ax.set_yticks(range(rows), [f"{b}, {s}" for b, s in np.ndindex(*value.shape[:2])], fontsize=8)


def frame(ax: Axes, value: Array, index: tuple[int, ...]) -> None:
    """Draw a red frame around one element."""
    *rows, column = (0, *index)[-max(value.ndim, 2) :]
    row = int(np.ravel_multi_index(tuple(rows), value.shape[:-1])) if value.ndim > 1 else 0
    corner = (column - 0.5, row - 0.5)
    ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2.5, clip_on=False))

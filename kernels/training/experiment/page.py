"""README.md and results.png from `results.json`: what was expected, what came out, and what it does not show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from ernie_m.reference.config import ErnieMConfig

from .design import ARMS, LANGUAGES, START

RETRIEVAL, MODULES = FIGURES = ("acc@1", "modules, other languages")

PAGE = """\
# What the objectives add: a small experiment

`make experiment` runs it and writes a page like this one, `results.json` and `results.png` into `runs/experiment`. The
text above "What came out" was written before there were results, the comments below it (`outcome.md`) afterwards.
`design.py` and `recipe.json` say everything about the arms.

## The question

The paper adds to masked words of single sentences (MMLM) three objectives: TLM and CAMLM on translations, BTMLM on
made-up ones. Its table 6 has them one after the other, for a model of 12 layers and text from the web. Here the same
steps are taken with a model of {layers} layers, {width} wide, on help pages and menus in English, German and Russian,
each of them {seeds} times.

| arm | learns from |
|---|---|
| M | MMLM, 30 % of the words masked |
| M+T | MMLM and TLM |
| M+C | MMLM and CAMLM, one side masked whole |
| M+C, both sides | MMLM and CAMLM, half of the words of both sides masked |
| M+C+B | M+C, in the second half with BTMLM |
| M+T+C+B | MMLM, TLM and CAMLM, in the second half with BTMLM |

- All arms of a seed begin with the same model, which has predicted {start:,} tokens with MMLM. Each arm then predicts
  {predicted:,} tokens, in equal parts of its objectives, at the same learning rate.
- {share} of the segments are used as translations; of the others, every text stands alone.
- The layer, and whether to subtract each language's mean vector, are chosen for each arm on the development split. The
  arms were compared on the test split once, when all runs were complete. Nothing was changed afterwards.

## What was expected

- From the paper: TLM and CAMLM above MMLM alone, CAMLM better at tagging and TLM at inference, BTMLM a little better
  still.
- From an earlier study with one seed and without MMLM first: CAMLM with one side masked whole far above TLM and above
  CAMLM with both sides masked at retrieval; BTMLM adding nothing.
- For the classification of modules: the same order, with smaller differences.

## What came out
{outcome}
![acc@1 and accuracy for each seed](results.png)

Retrieval: acc@1 on the test split ({items}), mean over seeds, with the standard deviation over seeds.

| arm | layer | centred | acc@1 | en-de | en-ru | de-ru |
|---|---:|---|---:|---:|---:|---:|
{retrieval}
Modules: accuracy of a head that was trained on {texts:,} English texts, on {classified:,} test texts.

| arm | en | de | ru | de and ru |
|---|---:|---:|---:|---:|
{modules}
Differences, paired by seed, with 95 % intervals (Student's t, {seeds} seeds):

| difference | acc@1 | modules, de and ru |
|---|---:|---:|
{contrasts}
Cost: what a run of each arm took, mean over seeds. CPU time is for one core ({processor}), which other programs used
too.

| arm | steps | tokens read | tokens predicted | CPU time | against M |
|---|---:|---:|---:|---:|---:|
{cost}
## What it does not show

- How the objectives compare in a large model on large data, or with other rates: all arms share the recipe, which was
  not tuned for any of them.
- Whether other test segments or other parallel texts would give the same: intervals are over seeds alone.
- The value of BTMLM where there are languages without translations: here every language has some.
- Equal numbers of predicted tokens are not equal computation: see the table of costs.
"""


def page(found: Mapping[str, Any], outcome: str) -> str:
    """The text. outcome: what somebody wrote about the results; tables are made here."""
    arms, recipe = found["arms"], found["recipe"]
    config = ErnieMConfig(**recipe["model"])
    names = [arm.name for arm in (START, *ARMS)]
    return PAGE.format(
        outcome=f"\n{outcome.strip()}\n" if outcome.strip() else "",
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        seeds=recipe["seeds"],
        start=recipe["predicted"]["start"],
        predicted=recipe["predicted"]["arm"],
        share=f"{recipe['share']:.0%}".replace("%", " %"),
        items=", ".join(f"{count} segments {pair}" for pair, count in found["items"].items()),
        texts=recipe["classification"]["texts"],
        classified=found["classified"],
        processor=found["made with"]["processor"],
        retrieval=lines(names, lambda name: retrieval_row(arms[name]))
        + f"| tf-idf of pieces |  |  | {np.mean(list(found['tf-idf'].values())):.3f} | "
        + " | ".join(f"{value:.3f}" for value in found["tf-idf"].values())
        + " |\n",
        modules=lines(names, lambda name: module_row(arms[name]["runs"]))
        + "| largest class | "
        + " | ".join(f"{found['largest class'][name]:.3f}" for name in LANGUAGES)
        + f" | {np.mean([found['largest class'][name] for name in LANGUAGES[1:]]):.3f} |\n",
        contrasts=contrasts(found["contrasts"]),
        cost=lines(names, lambda name: cost_row(arms[name]["runs"], arms["M"]["runs"])),
    )


def lines(names: Sequence[str], cells: Callable[[str], Sequence[str]]) -> str:
    """The rows of a table, one for each arm."""
    return "".join(f"| {name} | {' | '.join(cells(name))} |\n" for name in names)


def spread(values: Sequence[float]) -> str:
    """A mean and a standard deviation."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def retrieval_row(arm: Mapping[str, Any]) -> list[str]:
    """An arm's cells in the table of retrieval."""
    runs = arm["runs"]
    each = [f"{np.mean([row['pairs'][pair] for row in runs]):.3f}" for pair in runs[0]["pairs"]]
    return [str(arm["layer"]), "yes" if arm["centred"] else "no", spread([row[RETRIEVAL] for row in runs]), *each]


def module_row(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """An arm's cells in the table of modules."""
    each = [f"{np.mean([row['modules'][name] for row in runs]):.3f}" for name in LANGUAGES]
    return [*each, spread([row[MODULES] for row in runs])]


def cost_row(runs: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> list[str]:
    """An arm's cells in the table of costs."""

    def mean(name: str, of: Sequence[Mapping[str, Any]] = runs) -> float:
        return float(np.mean([row[name] for row in of]))

    counts = [f"{mean(name):,.0f}" for name in ("step", "tokens", "targets")]
    return [*counts, f"{mean('cpu_seconds'):.0f} s", f"{mean('cpu_seconds') / mean('cpu_seconds', plain):.2f}"]


def contrasts(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows of the table of differences."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in found:
        text = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        cells.setdefault((row["first"], row["second"]), {})[row["figure"]] = text
    return "".join(f"| {a} − {b} | {' | '.join(of[name] for name in FIGURES)} |\n" for (a, b), of in cells.items())


def picture(found: Mapping[str, Any]) -> bytes:
    """A PNG: a point for each seed and arm, and a bar at each mean. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    names = [arm.name for arm in (START, *ARMS)]
    references = (found["tf-idf"].values(), [found["largest class"][name] for name in LANGUAGES[1:]])
    labels = (("tf-idf", "acc@1, mean of three pairs"), ("largest class", "accuracy, mean of de and ru"))
    for i, (name, reference, (below, title)) in enumerate(zip(FIGURES, references, labels, strict=True), 1):
        axes = figure.add_subplot(1, 2, i)
        for y, arm in enumerate(names):
            values = [row[name] for row in found["arms"][arm]["runs"]]
            axes.plot(values, [y] * len(values), "o", color="#1f6fb2", alpha=0.6, markersize=5)
            axes.plot([np.mean(values)] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1.5)
        axes.axvline(float(np.mean(list(reference))), color="gray", linestyle=":", label=below)
        axes.set_yticks(range(len(names)), names if i == 1 else [""] * len(names))
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=8)
    target = BytesIO()
    figure.savefig(target, format="png", dpi=100)
    return target.getvalue()

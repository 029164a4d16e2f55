"""`python -m ernie_m.kernels.training.experiment`, which `make experiment` runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ernie_m.reference.cli.command import Parser, execute
from ernie_m.reference.cli.numbers import some_path, whole
from ernie_m.tokenizer.files import read_json
from ernie_m.tokenizer.new_files import replacing

PROGRAM = "experiment"
HERE = Path(__file__).resolve().parent
RECIPE = HERE / "recipe.json"
MOST = 10**9
# What these hold is checked by `ErnieMConfig` and `Settings`.
OPEN = ("model", "settings")


class ExperimentParser(Parser):
    """The project's parser under this program's name."""

    program = PROGRAM


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, and write the results."""
    from ...cli.runs import stopping
    from ..parallel import group
    from .figures import results
    from .runs import Experiment, say

    if arguments.results is not None and arguments.seeds is not None:
        raise ValueError("--results: expected no --seeds with it, which only trains")
    recipe = read_json(arguments.recipe)
    check_recipe(recipe, read_json(RECIPE), f"{arguments.recipe}: ")
    with group("cpu") as processes, stopping(processes, "the same command goes on"):
        experiment = Experiment(arguments.corpus, arguments.out, recipe, processes)
        experiment.run(range(recipe["seeds"]) if arguments.seeds is None else arguments.seeds)
        if arguments.seeds is None:
            write(results(experiment, say), arguments.results or arguments.out)
    return 0


def check_recipe(recipe: Any, like: Any, place: str, name: str = "recipe") -> None:
    """Raise ValueError, naming the entry, unless a recipe has the entries of `like`, and numbers above 0 as it has."""
    if isinstance(like, dict):
        if not isinstance(recipe, dict):
            raise ValueError(f"{place}{name}: expected an object, got {recipe!r:.80}")
        if name in OPEN:
            return
        if set(recipe) != set(like):
            raise ValueError(f"{place}{name}: expected {', '.join(like)}, got {', '.join(recipe) or 'nothing'}")
        for entry in recipe:
            check_recipe(recipe[entry], like[entry], place, entry)
        return
    kinds = (int,) if isinstance(like, int) else (int, float)
    if type(recipe) not in kinds or not 0 < recipe <= MOST:
        kind = "a whole number" if kinds == (int,) else "a number"
        raise ValueError(f"{place}{name}: expected {kind} above 0, at most {MOST:,}, got {recipe!r:.80}")


def write(found: dict[str, Any], directory: Path) -> None:
    """results.json, README.md and results.png. `outcome.md`, if there is one, goes into the page."""
    from .page import page, picture

    outcome = directory / "outcome.md"
    text = page(found, outcome.read_text("utf-8-sig") if outcome.exists() else "")
    directory.mkdir(parents=True, exist_ok=True)
    names = ("results.json", "README.md", "results.png")
    contents = ((json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode(), text.encode(), picture(found))
    with replacing(*(directory / name for name in names)) as files:
        for file, content in zip(files, contents, strict=True):
            file.write(content)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    root = ExperimentParser(
        prog=f"python -m ernie_m.kernels.training.{PROGRAM}",
        description="Compare the objectives of pretraining. A run that was stopped goes on where it was.",
        allow_abbrev=False,
    )
    add = root.add_argument
    add("--corpus", type=some_path, default=Path("runs/corpus-experiment"), metavar="DIR", help="default: %(default)s")
    add("--recipe", type=some_path, default=RECIPE, metavar="FILE", help="default: that of the program")
    add("--out", type=some_path, default=Path("runs/experiment"), metavar="DIR", help="default: %(default)s")
    add("--results", type=some_path, metavar="DIR", help="for figures and page; default: as --out")
    add("--seeds", type=whole, nargs="+", metavar="N", help="only train, and only for these seeds")
    root.set_defaults(run=run)
    return root


if __name__ == "__main__":
    sys.exit(execute(PROGRAM, parser, None))

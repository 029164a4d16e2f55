"""`ernie-m trace`: every named intermediate of one forward pass, as a table, as JSON, in a file, or compared.

The texts form one batch; for a multiple-choice checkpoint they are the choices of one example. Padding is not computed,
so shapes are those of packed tokens, and statistics cover real tokens only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.new_files import replacing

from ..array import Array
from ..checkpoint import open_checkpoint
from ..checkpoint.conversion import class_of
from ..compare import Comparison, compare
from ..config import ErnieMConfig
from ..heads import ErnieMForMultipleChoice
from ..padding import pad_ids
from ..trace import Trace, trace
from .command import DIFFERENCE, add_command
from .input import add_arguments, texts
from .model import add_model, checkpoint_directory, model_directory
from .numbers import directory_name, tolerance, whole
from .output import print_json, said_warnings, writable
from .table import entry_table, entry_values, statistics

MAX_TEXTS = 64

DESCRIPTION = "Run the model once and show every named intermediate: its shape, mean, standard deviation and range."
EPILOG = """\
All texts form one batch. Names are those of the checkpoint's modules.

--save writes an .npz with every value in padded form (0 at padding), input_ids and attention_mask.
--compare runs DIR2 on the same ids and reports the first value that differs by more than rounding explains, given its
inputs; or, with --tolerance, by more than that, relative to its largest magnitude if that is above 1. The exit code is
then 1.

examples:
  ernie-m trace "Good morning!" "Guten Morgen!"
  ernie-m trace --model DIR --ids 0 17 23 2 --json
  ernie-m trace --model DIR --compare CONVERTED_DIR "Good morning!" """.rstrip()


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "trace", "show every intermediate of a forward pass", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser)
    parser.add_argument("--ids", metavar="ID", nargs="+", type=whole, help="one row of token ids, instead of texts")
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float64", help="dtype to compute in (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per intermediate, one per line")
    parser.add_argument("--save", metavar="FILE", help="write all values to FILE, whose name ends in .npz")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--compare", metavar="DIR2", type=directory_name, help="checkpoint to compare with, run on the same ids"
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=tolerance,
        help="largest difference that --compare accepts (default: what rounding explains)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trace, then save, print or compare; return 1 if a comparison finds a difference."""
    for given, name, other in (
        (arguments.overwrite, "--overwrite", "save"),
        (arguments.tolerance is not None, "--tolerance", "compare"),
    ):
        if given and getattr(arguments, other) is None:
            raise ValueError(f"{name}: expected --{other} too")
    if arguments.save is not None and Path(arguments.save).suffix != ".npz":
        raise ValueError(f"--save: expected a name that ends in .npz, got {arguments.save!r}")
    target = None if arguments.save is None else writable(arguments.save, arguments.overwrite)
    with said_warnings():
        return traced(arguments, target)


def traced(arguments: argparse.Namespace, target: Path | None) -> int:
    """Trace; then save to `target`, if there is one, and print or compare."""
    directory = model_directory(arguments)
    config = ErnieMConfig.from_pretrained(directory)
    input_ids, mask = batch(arguments, directory, config.pad_token_id)
    model = load(directory, arguments.dtype)
    found = run_traced(model, input_ids, mask)
    if target is not None:
        save(target, found, input_ids, mask, arguments.overwrite)
    if arguments.compare is None:
        show(found, arguments.json)
        return 0
    other = run_traced(load(checkpoint_directory(arguments.compare), arguments.dtype), input_ids, mask)
    result = compare(found, other, tolerance=arguments.tolerance)
    show_comparison(result, arguments.json)
    return 0 if result else DIFFERENCE


def batch(arguments: argparse.Namespace, directory: Path, pad: int) -> tuple[Array, Array]:  # (B, S), (B, S)
    """Ids and mask of the input. Raises ValueError for no texts, too many, or two sources."""
    if arguments.ids is not None:
        if arguments.texts or arguments.file is not None:
            raise ValueError("TEXT, --file, --ids: expected only one of them")
        input_ids = np.array([arguments.ids])
        return input_ids, np.ones_like(input_ids)
    found = []
    for item in texts(arguments):
        found.append(item.text)
        if len(found) > MAX_TEXTS:
            raise ValueError(
                f"{item.origin}: expected at most {MAX_TEXTS} texts, because their trace is held in memory"
            )
    if not found:
        raise ValueError("TEXT: expected at least one, got none")
    input_ids, mask = pad_ids(ErnieMTokenizer.from_pretrained(directory)(found)["input_ids"], pad)
    return input_ids, mask.astype(np.int64)


def load(directory: Path, dtype: str) -> Any:
    """Load the model in a directory as the class that it was saved from."""
    cls = class_of(open_checkpoint(directory), ErnieMConfig.from_pretrained(directory))
    return cls.from_pretrained(directory, dtype=dtype)


def run_traced(model: Any, input_ids: Array, mask: Array) -> Trace:
    """The trace of one call."""
    if isinstance(model, ErnieMForMultipleChoice):
        input_ids, mask = input_ids[None], mask[None]
    with trace() as found:
        model(input_ids, attention_mask=mask)
    return found


def save(target: Path, found: Trace, input_ids: Array, mask: Array, overwrite: bool) -> None:
    """Write the values of a trace, padded, and the model's inputs."""
    values: dict[str, Any] = {name: entry.padded() for name, entry in found.items()}
    with replacing(target, overwrite=overwrite) as (file,):
        np.savez(file, input_ids=input_ids, attention_mask=mask, **values)


def show(found: Trace, as_json: bool) -> None:
    """Print a trace, as JSON lines or as a table."""
    if not as_json:
        print(*entry_table(list(found.values())), sep="\n")
        return
    for entry in found.values():
        values = entry_values(entry)
        # Packed maps have one shape per sequence.
        packed_maps = isinstance(entry.value, tuple)
        found_statistics = {name: finite(x) for name, x in statistics(values).items()}
        shape = [part.shape for part in entry.value] if packed_maps else entry.value.shape
        print_json({"name": entry.name, "shape": shape, "dtype": values.dtype.name, **found_statistics})


def finite(x: float) -> float | None:
    """A number for JSON, which has no infinity and no nan: None for those."""
    return float(x) if np.isfinite(x) else None


def show_comparison(result: Comparison, as_json: bool) -> None:
    """Print where two traces diverge, or that they agree."""
    if not as_json:
        print(result)
        if result.not_compared:
            print(f"not compared, because only one trace has them: {', '.join(result.not_compared)}")
        return
    parted = (
        None if result else {"name": result.name, "index": result.index, "values": [finite(v) for v in result.values]}
    )
    # `compare` reports an infinite error for nan and for different shapes.
    errors, ratios = ({name: finite(x) for name, x in values.items()} for values in (result.errors, result.ratios))
    print_json(
        {
            "agree": bool(result),
            "tolerance": result.tolerance,
            "parted": parted,
            "errors": errors,
            "ratios": ratios,
            "not_compared": result.not_compared,
        }
    )

"""`ernie-m inspect DIR`: show what a checkpoint directory contains, and check its weights against its class."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, LoadReport, open_checkpoint, read_config
from ..checkpoint.conversion import class_of, own_names
from ..checkpoint.reading import summary
from ..checkpoint.stored_tensor import StoredTensor
from ..config import ErnieMConfig
from .command import DIFFERENCE, add_command
from .model import CHECKPOINT, checkpoint_directory
from .numbers import directory_name
from .output import print_json
from .table import table

FORMATS = {"huggingface": "Hugging Face", "paddle": "Paddle"}
LONGEST_VALUE = 1000  # characters

DESCRIPTION = "Show a checkpoint's format, files, configuration and weights, and check that the weights fit its class."
EPILOG = """\
Names and shapes are shown as the file has them. Prefixes that training programs put before the names, such as module.,
are left out where the weights are compared with the class. The exit code is 1 if weights of the class are missing,
unexpected, or not of the shape that the configuration implies, or if a weight has numbers that are nan or infinity, and
2 if DIR is not a checkpoint. Weights that differ only in their layer share a line, unless --all is given.

examples:
  ernie-m inspect DIR
  ernie-m inspect DIR --json | python -m json.tool"""


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "inspect", "show what a checkpoint contains", DESCRIPTION, EPILOG, run)
    parser.add_argument("directory", metavar="DIR", type=directory_name, help=f"the checkpoint: a {CHECKPOINT}")
    parser.add_argument("--json", action="store_true", help="print the whole report as one JSON object")
    parser.add_argument(
        "--all", action="store_true", help="list every weight that does not fit, and long values in full"
    )


@dataclass(frozen=True)
class Findings:
    """A checkpoint, its configuration, the class that it was saved from, and how its weights fit that class.

    `report.missing` lists every weight of the class, including its head, that the files lack. `unused` lists known
    weights that the class does not use, such as a pooler. `not_finite` counts the numbers of each weight that are nan
    or infinity, if there are any.
    """

    checkpoint: Checkpoint
    config: ErnieMConfig
    architecture: str
    report: LoadReport
    unused: tuple[str, ...]
    not_finite: dict[str, int]


def run(arguments: argparse.Namespace) -> int:
    """Print the report; return 1 if the weights do not fit the class, or are not finite."""
    found = examine(checkpoint_directory(arguments.directory))
    if arguments.json:
        print_json(as_json(found))
    else:
        print(*as_text(found, arguments.all), sep="\n")
    return DIFFERENCE if found.report or found.not_finite else 0


def examine(directory: Path) -> Findings:
    """Compare a directory's weights with its configuration. Raises as `open_checkpoint` does."""
    config = read_config(directory)
    checkpoint = open_checkpoint(directory)
    stored, report = own_names(checkpoint, config)
    known = {*stored.values(), *report.unexpected, *(name for name, _, _ in report.mismatched)}
    unused = tuple(name for name in checkpoint.tensors if name not in known)
    not_finite = {name: count for name, tensor in checkpoint.tensors.items() if (count := tensor.not_finite())}
    return Findings(checkpoint, config, class_of(checkpoint, config).__name__, report, unused, not_finite)


def numbers(tensors: Iterable[StoredTensor]) -> int:
    """The total number of elements of these tensors."""
    return sum(math.prod(tensor.shape) for tensor in tensors)


def as_text(found: Findings, every: bool = False) -> Iterator[str]:
    """The lines of the report; with `every`, nothing is summarised."""
    checkpoint = found.checkpoint
    tensors = checkpoint.tensors.values()
    files = ", ".join(f"{path.name} ({path.stat().st_size:,} bytes)" for path in checkpoint.files)
    yield from table(
        [
            ("directory", str(checkpoint.directory)),
            ("format", FORMATS[checkpoint.format]),
            ("files", files),
            ("class", found.architecture),
            ("parameters", f"{numbers(tensors):,} in {len(tensors)} tensors"),
            ("dtypes", ", ".join(f"{count} {dtype}" for dtype, count in dtypes(tensors).items())),
        ]
    )
    yield "\nconfiguration"
    values = {name: json.dumps(value, ensure_ascii=False) for name, value in found.config.to_dict().items()}
    if not every:
        values = {name: shortened(value) for name, value in values.items()}
    yield from table([("", name, value) for name, value in sorted(values.items())])
    yield "\nweights"
    yield from table([("", item.name, str(item.shape), item.dtype) for item in tensors])
    yield ""
    renamed = [(tensor.name, name) for name, tensor in checkpoint.tensors.items() if tensor.name != name]
    if renamed:
        yield f"{len(renamed)} names are read without their prefix: {renamed[0][0]} as {renamed[0][1]}, and so on"
    if found.unused:
        unused = summary(((name, "") for name in found.unused), every)
        yield f"not used by {found.architecture}: {', '.join(unused)}"
    if found.report:
        yield from found.report.lines(every)
    else:
        yield f"all weights of {found.architecture} are present, with the expected shapes"
    wrong = [
        (name, f": {count:,} of {math.prod(checkpoint.tensors[name].shape):,} numbers are nan or infinity")
        for name, count in found.not_finite.items()
    ]
    yield from (f"not finite: {line}" for line in summary(wrong, every))


def shortened(value: str) -> str:
    """A value of the configuration, cut short if it is as long as thousands of labels."""
    return value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}... ({len(value):,} characters)"


def dtypes(tensors: Iterable[StoredTensor]) -> dict[str, int]:
    """The number of tensors of each dtype."""
    return dict(Counter(tensor.dtype for tensor in tensors))


def as_json(found: Findings) -> dict[str, Any]:
    """The report as one JSON object."""
    checkpoint, report = found.checkpoint, found.report
    tensors = checkpoint.tensors.values()
    return {
        "directory": str(checkpoint.directory),
        "format": checkpoint.format,
        "files": [{"name": path.name, "bytes": path.stat().st_size} for path in checkpoint.files],
        "class": found.architecture,
        "config": found.config.to_dict(),
        "parameters": numbers(tensors),
        "dtypes": dtypes(tensors),
        "tensors": [{"name": item.name, "shape": item.shape, "dtype": item.dtype} for item in tensors],
        "missing": report.missing,
        "unexpected": report.unexpected,
        "mismatched": [
            {"name": name, "expected": expected, "found": shape} for name, expected, shape in report.mismatched
        ],
        "unused": found.unused,
        "not_finite": [{"name": name, "count": count} for name, count in found.not_finite.items()],
    }

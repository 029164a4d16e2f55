"""`python -m ernie_m.kernels verify`: every kernel against its twin in NumPy, then a model, then a training step."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from ernie_m.reference.cli.command import DIFFERENCE

from ..checking import verify, verify_model, verify_training
from ..checking.report import Failure
from ..runtime.dtypes import TORCH_DTYPES
from .interpreted import run_interpreted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Verify every kernel against its twin in NumPy, then a whole model and a training step, layer by layer."
    )
    parser.epilog = "exit codes: 0 all errors within bounds; 1 some are not; 2 the kernels could not be verified"
    parser.add_argument("--quick", action="store_true", help="fewer drawn inputs and sentences")
    parser.add_argument("--dtype", action="append", choices=TORCH_DTYPES, help="only this dtype (may be repeated)")
    parser.add_argument("--json", action="store_true", help="print each row as a JSON object on one line")


def run(arguments: argparse.Namespace) -> int:
    """Verify, print, and return the exit code: 1 if anything failed."""
    status = run_interpreted(arguments.argv)
    if status is not None:
        return status
    start = time.perf_counter()
    dtypes = tuple(dict.fromkeys(arguments.dtype or TORCH_DTYPES))
    verify.prepare()
    write = Writer(arguments.json)
    write.line(f"kernels against their twins in NumPy ({verify.where()})")
    passed = write.rows(verify.HEADINGS, verify.kernel_rows(dtypes, arguments.quick))
    write.line("")
    write.line(verify_model.TITLE)
    passed &= write.rows(verify_model.HEADINGS, verify_model.rows(dtypes, arguments.quick))
    write.line("")
    write.line(verify_training.TITLE)
    passed &= write.rows(verify_model.HEADINGS, verify_training.rows(dtypes, arguments.quick))
    covered = f"{', '.join(dtypes)}; {'quick: few drawn inputs' if arguments.quick else 'in full'}"
    write.line("")
    write.line(f"{'all errors within bounds' if passed else 'FAILED'} ({covered}; {time.perf_counter() - start:.0f} s)")
    return 0 if passed else DIFFERENCE


class Writer:
    """Prints rows as they arrive, in columns or as JSON lines, each failure below its row."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str) -> None:
        """Print a line of text; JSON output has none."""
        if not self.as_json:
            print(text, flush=True)

    def rows(self, headings: tuple[str, ...], rows: Iterator[Any]) -> bool:
        """Print rows with `cells()`, `as_json()` and `holds`; return whether all hold."""
        widths = (24, *(max(9, len(heading)) for heading in headings[1:]))
        passed = True
        self.line("  ".join(heading.ljust(width) for heading, width in zip(headings, widths, strict=True)).rstrip())
        for row in rows:
            passed &= row.holds
            if self.as_json:
                print(json.dumps(row.as_json(), ensure_ascii=False), flush=True)
                continue
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row.cells(), widths, strict=True)).rstrip())
            if isinstance(getattr(row, "found", None), Failure):
                self.line(f"    {row.found}".replace("\n", "\n    "))
        return passed

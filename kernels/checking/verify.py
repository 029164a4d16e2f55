"""`python -m ernie_m.kernels verify`: does every kernel compute what its twin in NumPy defines, here, in every dtype?

First each kernel by itself (`check.py`: drawn inputs and fixed random data, under the bounds of `bounds.py` and
`judge.py`), then a whole model, layer by layer, on real sentences (`verify_model.py`). On a GPU where there is one,
otherwise in Triton's interpreter, whose bfloat16 is compared with torch's first.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import interpreter
from ._triton import HAS_TRITON
from .attention import packed_attention
from .check import check
from .check_buffers import TORCH_DTYPES
from .check_report import DtypeReport, Failure
from .cli import FAILED, run_interpreted
from .embedding import embed
from .first_token import first_token_attention
from .gelu import bias_gelu
from .layer_norm import add_layer_norm
from .operation import INTERPRETED

# Every kernel: the name of its twin's operation in `check_inputs.OPERATIONS`, and the inputs drawn in the interpreter.
KERNELS: dict[str, tuple[Callable[..., Any], int]] = {
    "attention": (packed_attention, 12),
    "first_token_attention": (first_token_attention, 12),
    "bias_gelu": (bias_gelu, 25),
    "add_layer_norm": (add_layer_norm, 25),
    "embedding": (embed, 25),
}
QUICK = 3
ON_GPU = 100
HEADINGS = ("kernel", "dtype", "drawn", "worst/limit", "rms error", "bound", "bias", "bound", "verdict")


@dataclass(frozen=True)
class KernelRow:
    """What was found about one kernel in one dtype: a report, or a failure."""

    op: str
    dtype: str
    found: DtypeReport | Failure

    @property
    def holds(self) -> bool:
        """Whether the kernel is right."""
        return isinstance(self.found, DtypeReport)

    def cells(self) -> tuple[str, ...]:
        """A line of the table, under HEADINGS."""
        if isinstance(self.found, Failure):
            return (self.op, self.dtype, "", "", "", "", "", "", "FAILED")
        worst = self.found.worst
        averages = []
        for bound in ("rms", "bias"):
            verdict = worst.get(bound)
            averages += ["", ""] if verdict is None else [f"{verdict.error:.2e}", f"{verdict.limit:.2e}"]
        return (self.op, self.dtype, str(self.found.inputs), f"{worst['componentwise'].ratio:.2f}", *averages, "ok")

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        row: dict[str, Any] = {"kernel": self.op, "dtype": self.dtype, "passed": self.holds}
        if isinstance(self.found, Failure):
            return row | {"failure": str(self.found)}
        bounds = {bound: {"error": v.error, "bound": v.limit} for bound, v in self.found.worst.items()}
        return row | {"drawn": self.found.inputs, **bounds}


def kernel_rows(dtypes: tuple[str, ...], quick: bool, kernels: Any = None) -> Iterator[KernelRow]:
    """Check every kernel in every dtype."""
    for op, (kernel, examples) in (KERNELS if kernels is None else kernels).items():
        for dtype in dtypes:
            count = QUICK if quick else ON_GPU if gpu_name() else examples
            try:
                found: DtypeReport | Failure = check(kernel, op, dtypes=[dtype], examples=count).dtypes[dtype]
            except Failure as failure:
                found = failure
            yield KernelRow(op, dtype, found)


def gpu_name() -> str | None:
    """The GPU's name, if there is one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() and not INTERPRETED else None


def where() -> str:
    """What computes: a GPU, the interpreter, or plain torch."""
    return gpu_name() or ("Triton's interpreter" if INTERPRETED else "plain torch, as there is no Triton here")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = "Verify every kernel against its twin in NumPy, then a whole model, layer by layer."
    parser.epilog = "exit codes: 0 all within the bounds; 1 something is not; 2 it could not be verified"
    parser.add_argument("--quick", action="store_true", help="few drawn inputs and few sentences: under a minute")
    parser.add_argument("--dtype", action="append", choices=TORCH_DTYPES, help="of these alone (may be repeated)")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line for each row")


def run(arguments: argparse.Namespace) -> int:
    """Verify, print, and give 1 if anything failed."""
    status = run_interpreted(arguments.argv)
    if status is not None:
        return status
    from . import verify_model

    start = time.perf_counter()
    dtypes = tuple(arguments.dtype or TORCH_DTYPES)
    prepare()
    write = Writer(arguments.json)
    write.line(f"kernels against their twins in NumPy, in {where()}")
    passed = write.rows(HEADINGS, kernel_rows(dtypes, arguments.quick))
    write.line("")
    write.line(verify_model.TITLE)
    passed &= write.rows(verify_model.HEADINGS, verify_model.rows(dtypes, arguments.quick))
    covered = f"{', '.join(dtypes)}; {'quick: few drawn inputs' if arguments.quick else 'in full'}"
    write.line("")
    write.line(f"{'all within the bounds' if passed else 'FAILED'} ({covered}; {time.perf_counter() - start:.0f} s)")
    return 0 if passed else FAILED


def prepare() -> None:
    """Make results those of the kernels: exact bfloat16 in the interpreter, and float32 products without tf32."""
    if INTERPRETED:
        interpreter.install()
        interpreter.self_test()
    elif HAS_TRITON:
        # It would put the matrix products off, and with them the model, by 2⁻¹¹.
        torch.backends.cuda.matmul.allow_tf32 = False


class Writer:
    """Prints rows as they come, in columns or as JSON lines, and what failed below them."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str) -> None:
        """A line of prose; JSON has none."""
        if not self.as_json:
            print(text, flush=True)

    def rows(self, headings: tuple[str, ...], rows: Iterator[Any]) -> bool:
        """Print rows with `cells()`, `as_json()`, `holds`; give whether all hold."""
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

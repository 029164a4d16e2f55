"""Does every kernel compute what its twin in NumPy defines, in every dtype, on this machine?

Each kernel is checked on its own, on drawn inputs and fixed random data (see `check`); `verify_model` then compares a
whole model, layer by layer, on real sentences. Kernels run on a GPU if there is one, otherwise in Triton's interpreter,
whose bfloat16 is first compared with torch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..runtime import interpreter
from ..runtime.dispatch import INTERPRETED
from ..runtime.optional_triton import HAS_TRITON
from ..runtime.self_test import self_test
from .check import Plan, check_dtype, default_device, smallest
from .operations import with_kernel
from .report import DtypeReport, Failure
from .runner import Runner

QUICK = 3
ON_GPU = 100
HEADINGS = ("kernel", "dtype", "drawn", "worst/limit", "rms error", "bound", "signed mean", "bound", "verdict")


@dataclass(frozen=True)
class KernelRow:
    """What was found for one kernel in one dtype: a report or a failure."""

    op: str
    dtype: str
    found: DtypeReport | Failure

    @property
    def holds(self) -> bool:
        """Whether the kernel is right."""
        return isinstance(self.found, DtypeReport)

    def cells(self) -> tuple[str, ...]:
        """The cells of a table row, under HEADINGS."""
        if isinstance(self.found, Failure):
            return (self.op, self.dtype, "", "", "", "", "", "", "FAILED")
        worst = self.found.worst
        averages = []
        for bound in ("rms", "signed_mean"):
            verdict = worst.get(bound)
            averages += ["", ""] if verdict is None else [f"{verdict.error:.2e}", f"{verdict.limit:.2e}"]
        return (self.op, self.dtype, str(self.found.inputs), f"{worst['componentwise'].ratio:.2f}", *averages, "ok")

    def as_json(self) -> dict[str, Any]:
        """The same, for JSON."""
        row: dict[str, Any] = {"kernel": self.op, "dtype": self.dtype, "passed": self.holds}
        if isinstance(self.found, Failure):
            return row | {"failure": str(self.found)}
        bounds = {bound: {"error": v.error, "bound": v.limit} for bound, v in self.found.worst.items()}
        return row | {"drawn": self.found.inputs, **bounds}


def kernel_rows(dtypes: tuple[str, ...], quick: bool) -> Iterator[KernelRow]:
    """Check every kernel in every dtype; `quick` as `check` does, with fewer drawn inputs."""
    for op, operation in with_kernel().items():
        assert operation.kernel is not None
        count = QUICK if quick else ON_GPU if gpu_name() else operation.examples
        plan = Plan(count, 0, quick, False, smallest(dtypes))
        for dtype in dtypes:
            try:
                found: DtypeReport | Failure = check_dtype(
                    Runner(operation.kernel, "torch", default_device()), op, dtype, plan
                )
            except Failure as failure:
                found = failure
            yield KernelRow(op, dtype, found)


def gpu_name() -> str | None:
    """The GPU's name, if there is one."""
    return torch.cuda.get_device_name() if default_device() == "cuda" else None


def where() -> str:
    """What runs the operations: a GPU, the interpreter, or plain torch."""
    return gpu_name() or ("Triton's interpreter" if INTERPRETED else "plain torch, without Triton")


def prepare() -> None:
    """Set up the arithmetic: exact bfloat16 in the interpreter, float32 products without tf32."""
    if INTERPRETED:
        interpreter.install()
        self_test()
    elif HAS_TRITON:
        # tf32 would add an error of 2⁻¹¹ to matrix products, and so to the model.
        torch.backends.cuda.matmul.allow_tf32 = False

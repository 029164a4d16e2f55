"""A whole model, layer by layer, on real sentences: the second half of `verify`.

Three runs with the same weights, rounded to the dtype, on one ragged batch of sentences in several languages:

    exact     the reference in NumPy, float64
    plain     the torch model in the dtype, in plain torch
    kernels   the torch model in the dtype, with the kernels

Everything that a layer computes has a name in each trace. For each name, the kernels' root mean square error, relative
to that of the exact numbers, may be 1.25 times that of plain torch in the same dtype; `verdicts` leaves the same room
for mantissas that are not evenly distributed. Added to this is how far two good float32 computations may differ:
4 √n 2⁻²⁴ for an operation with sums of n numbers (`verdicts`), and √m times that after m operations in a row, because
the squares of independent errors add.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ernie_m import reference
from ernie_m.reference import demo
from ernie_m.reference.array import Array
from ernie_m.reference.parameters import flatten, unflatten
from ernie_m.reference.trace import Entry

from ..runtime.dtypes import TORCH_DTYPES
from .bounds import EPS
from .check import default_device
from .formats import FORMATS

TITLE = "the checkpoint in the package, on sentences in several languages: plain torch and kernels against float64"
HEADINGS = ("layer", "dtype", "compared", "worst at", "error", "plain", "bound", "verdict")
ROOM = 1.25
# Products with weights, attention, normalisations, activation.
OPERATIONS_PER_LAYER = 8
QUICK_SENTENCES = 2


@dataclass(frozen=True)
class Compared:
    """One name in the traces: relative errors of the kernels and of plain torch, and the bound on the first."""

    name: str
    error: float
    plain: float
    bound: float

    @property
    def ratio(self) -> float:
        """Error over bound; infinite for nan."""
        return self.error / self.bound if self.error >= 0 else math.inf


@dataclass(frozen=True)
class LayerRow:
    """One layer in one dtype, with everything that was compared in it."""

    layer: str
    dtype: str
    compared: tuple[Compared, ...]

    @property
    def holds(self) -> bool:
        """Whether every error is within its bound."""
        return all(entry.ratio <= 1 for entry in self.compared)

    def cells(self) -> tuple[str, ...]:
        """The cells of a table row, under HEADINGS: the entry that came closest to its bound."""
        worst = max(self.compared, key=lambda entry: entry.ratio)
        figures = (f"{worst.error:.2e}", f"{worst.plain:.2e}", f"{worst.bound:.2e}")
        name = worst.name.rsplit(".", 1)[-1]
        return (self.layer, self.dtype, str(len(self.compared)), name, *figures, "ok" if self.holds else "FAILED")

    def as_json(self) -> dict[str, Any]:
        """The same, for JSON, with everything that was compared."""
        entries = [dataclasses.asdict(entry) for entry in self.compared]
        return {"layer": self.layer, "dtype": self.dtype, "passed": self.holds, "compared": entries}


def rows(dtypes: tuple[str, ...], quick: bool, change: Any = None) -> Iterator[LayerRow]:
    """Compare in each dtype. `change`, if given, plants a fault in the torch model before the kernels run."""
    input_ids, mask = demo.batch(QUICK_SENTENCES if quick else None)
    base = reference.ErnieMModel.from_pretrained(demo.directory(), dtype=np.float64)
    config = base.config
    for dtype in dtypes:
        arrays = {path: FORMATS[dtype].round(array) for path, array in flatten(base.parameters).items()}
        model = reference.ErnieMModel(config, unflatten(arrays))
        with reference.trace() as exact:
            model(input_ids, attention_mask=mask)
        plain, kernels = torch_traces(model, dtype, input_ids, mask, change)
        yield from compare(dtype, config, exact, plain, kernels)


def torch_traces(model: Any, dtype: str, input_ids: Array, mask: Array, change: Any) -> tuple[Any, Any]:
    """The torch model's traces: in plain torch, which runs when gradients are enabled, and with kernels."""
    from ..model import ErnieMModel

    device = default_device()
    found = ErnieMModel.from_reference(model).to(device=device, dtype=TORCH_DTYPES[dtype]).eval()
    tensors = [torch.from_numpy(x).to(device) for x in (input_ids, mask)]
    with torch.enable_grad(), reference.trace() as plain:
        found(tensors[0], attention_mask=tensors[1])
    if change is not None:
        change(found)
    with torch.no_grad(), reference.trace() as kernels:
        found(tensors[0], attention_mask=tensors[1])
    return plain, kernels


def compare(
    dtype: str,
    config: Any,
    exact: Mapping[str, Entry],
    plain: Mapping[str, Entry],
    kernels: Mapping[str, Entry],
) -> Iterator[LayerRow]:
    """One row per layer, with the names in all three traces. Raises ValueError if a layer has none."""
    layers = ["embeddings", *(f"encoder.layers.{i}" for i in range(config.num_hidden_layers)), "pooler"]
    terms = max(config.hidden_size, config.intermediate_size)
    for i, layer in enumerate(layers):
        names = [name for name in exact if name.startswith(f"{layer}.") and name in plain and name in kernels]
        if not names:
            raise ValueError(f"{layer}: expected names in the torch model's traces, got {list(kernels)[:5]}...")
        float32 = 4 * math.sqrt(terms * OPERATIONS_PER_LAYER * max(i, 1)) * EPS
        found = []
        for name in names:
            errors = [relative_error(trace[name], exact[name]) for trace in (kernels, plain)]
            found.append(Compared(name, errors[0], errors[1], ROOM * errors[1] + float32))
        yield LayerRow(layer, dtype, tuple(found))


def relative_error(got: Entry, exact: Entry) -> float:
    """rms(got − exact) / rms(exact) over tokens (padding is 0 in both). Infinite if the shapes differ."""
    values, truth = np.asarray(got.padded(), np.float64), np.asarray(exact.padded(), np.float64)
    if values.shape != truth.shape:
        return math.inf
    return float(np.sqrt(np.square(values - truth).sum() / np.square(truth).sum()))

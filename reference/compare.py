"""Comparing two forward passes: the first entry that differs by more than rounding explains, and by how much.

    with trace() as a:
        model(input_ids, attention_mask=mask)
    with trace_torch(module) as b:
        module(...)
    print(compare(a, b, mask))

Each entry is judged given its inputs: `rounding.py` says how large an error rounding explains.

A faulty port goes wrong at some layer; the first entry that differs by more is where to look. Traces of a training
step, by `value_and_gradients` and by `trace_torch` around the backward pass, hold cotangents too, after all values and
from the last to the first: so the first that differs is where a backward pass goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .array import Array
from .rounding import Judge, layer_of, over, sources
from .trace import GRADIENT, Entry


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two traces. True if they agree.

    `name` is the first entry, in order of computation, with an error above its bound (None if there is none); `index`
    is the position of its largest error, and `values` the two values there. `errors` has, for every entry up to that
    one, its largest difference, divided by the largest magnitude in `b` if that exceeds 1; `ratios` its error over what
    rounding explains, or over `tolerance` if one was given. `error` and `ratio` are those of `name`, or the largest.
    `not_compared` lists the names that only one trace has; `inherited`, with `forced`, the layers after `name` that are
    right on the reference's own input, and are wrong in `b` only because of the input they got. `shapes` has those of
    both values of `name`, if they differ.
    """

    name: str | None
    error: float
    tolerance: float | None
    index: tuple[int, ...] = ()
    values: tuple[float, float] = (0.0, 0.0)
    errors: Mapping[str, float] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()
    ratio: float = 0.0
    ratios: Mapping[str, float] = field(default_factory=dict)
    inherited: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()

    def __bool__(self) -> bool:
        return self.name is None

    def __str__(self) -> str:
        name = self.name or max(self.ratios, key=lambda name: self.ratios[name])
        picked = "" if self.tolerance is None else f" (tolerance {self.tolerance:.2e})"
        number = f"{self.ratio:.1g} of" if self.ratio < 1 else f"{self.ratio:.{1 if self.ratio < 10 else 0}f} times"
        explained = "" if picked else f"; {name} differs by {number} what rounding explains"
        if self.name is None:
            return f"{len(self.errors)} entries agree, largest error {self.error:.2e}{picked}{explained}"
        a, b = self.shapes or self.values
        found = f"error {self.error:.2e}{picked}, {a!r} against {b!r} at {list(self.index)}"
        if self.shapes:
            found, explained = f"shape {a} against {b}", ""
        inherited = f"; only inherited: the errors of {', '.join(self.inherited)}" if self.inherited else ""
        before = f"{len(self.errors) - 1} entries before it agree"
        return f"the traces first differ at {self.name}: {found}; {before}{explained}{inherited}"


def compare(
    a: Mapping[str, Entry],
    b: Mapping[str, Entry],
    mask: Any = None,
    tolerance: float | None = None,
    *,
    forced: Callable[[str, Array], Any] | None = None,
) -> Comparison:
    """Compare two traces entry by entry, in the order of `a`, the reference, and stop at the first that differs.

    By default, an entry may differ by what rounding explains (see `rounding.py`). With `tolerance`, by that, times its
    largest magnitude in `b` if that exceeds 1. A nan in either is infinitely far off, and so is another shape, except
    that `b` may have the position embeddings once for all rows: (S, E) or (1, S, E). Only real tokens are compared:
    those of the (B, S) `mask`, if one is passed, and of packed entries.

    `forced(name, inputs)` runs one layer of the other implementation, such as "encoder.layers.3", on the reference's
    own input, (B, S, E), and returns its output, (B, S, E), or a trace with its names. Layers are then judged by what
    it returns, and everything else by `b`. If `b` is from `trace_torch(module, force=a)`, it is forced already.

    Raises ValueError if the traces have no names in common or, with `forced`, no layers.
    """
    names = [name for name in a if name in b]
    not_compared = tuple(name for name in [*a, *b] if (name in a) != (name in b))
    if not names:
        raise ValueError(f"traces: expected names in common, got {list(a)[:3]}... and {list(b)[:3]}...")
    free = local = Judge(a, b, mask, getattr(b, "forced", ()))
    inputs: dict[str, str] = {}
    if forced is not None:
        inputs, entries = _force(a, forced)
        local = Judge(a, entries, mask, set(inputs.values()))
        names = [name for name in a if name in (entries if layer_of(name) in inputs else b)]
    errors: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for i, name in enumerate(names):
        judge = local if layer_of(name) in inputs else free
        errors[name], index, values = judge.largest(name)
        ratios[name] = judge.ratio(name, judge.measured(name)) if tolerance is None else over(errors[name], tolerance)
        if not ratios[name] <= 1:
            found = (name, errors[name], tolerance, index, values, errors, not_compared, ratios[name], ratios)
            return Comparison(*found, _inherited(names[i + 1 :], inputs, free, local), judge.shapes(name))
    largest = (max(errors.values()), tolerance, (), (0.0, 0.0))
    return Comparison(None, *largest, errors, not_compared, max(ratios.values()), ratios)


def _force(a: Mapping[str, Entry], call: Callable[[str, Array], Any]) -> tuple[dict[str, str], dict[str, Entry]]:
    """The name of each layer's input, and the entries of all layers, each run on the reference's own input."""
    values = [name for name in a if not name.startswith(GRADIENT)]
    inputs = {layer: sources(f"{layer}.norm1", a)[0] for layer in map(layer_of, values) if layer}
    if not inputs:
        raise ValueError(f"forced: expected names such as encoder.layers.0.norm2 in the trace, got {list(a)[:3]}...")
    entries: dict[str, Entry] = {}
    for layer, source in inputs.items():
        found = call(layer, a[source].padded())
        if not isinstance(found, Mapping):
            output, shape = f"{layer}.norm2", a[source].padded().shape
            if np.shape(found) != shape:
                raise ValueError(f"forced: {layer}: expected an output of shape {shape}, got {np.shape(found)}")
            found = {output: Entry(output, np.asarray(found))}
        own = {name: entry for name, entry in found.items() if layer_of(name) == layer and name in a}
        if not own:
            raise ValueError(f"forced: expected a trace with names of {layer}, got {list(found)[:3]}...")
        entries.update(own)
    return inputs, entries


def _inherited(names: list[str], inputs: Mapping[str, str], free: Judge, local: Judge) -> tuple[str, ...]:
    """The layers whose outputs, among `names`, are off in `free`, and that are right in `local`."""
    wrong = {layer_of(n) for n in names if layer_of(n) in inputs and local.ratio(n, local.measured(n)) > 1}
    outputs = [n for n in names if n in free.b and n == f"{layer_of(n)}.norm2" and layer_of(n) in {*inputs} - wrong]
    return tuple(layer_of(n) for n in outputs if local.ratio(n, free.measured(n)) > 1)

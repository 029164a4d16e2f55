"""One training step, layer by layer: the last part of `verify`.

The checkpoint in the package with a head for tokens, made-up labels and dropout. Three computations with the same
weights, rounded to the dtype, and the same seeds of dropout:

    exact     the reference's `value_and_gradients`, float64
    plain     the torch model in the dtype, forward and backward in plain torch
    kernels   the torch model in the dtype, forward and backward on the kernels

For each parameter's gradient, the kernels' error may be as large as `verify_model` allows for a value after twice as
many operations, those of the forward pass and as many on the way back. An rms over few numbers is uncertain, and the
numbers of one gradient share their errors: between right computations, the logarithm of the ratio of two rms varied by
0.24 for vectors of 32 numbers, as it would for 17 independent ones. So the squares of `DRAWS` draws of dropout are
added (of `QUICK_DRAWS`, in a quick run), and for rows of N numbers and K draws the bound on the ratio is 1 + 5/√(K N/2)
times as large: five standard deviations. Left out are gradients that are 0 in exact arithmetic, such as a key bias's:
what remains of them is rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ernie_m import reference
from ernie_m.reference import demo
from ernie_m.reference.array import Array
from ernie_m.reference.dropout import draw_seeds
from ernie_m.reference.parameters import flatten, initialise, unflatten

from ..dropout import seed_tensor
from ..runtime.dtypes import TORCH_DTYPES
from .bounds import EPS
from .check import default_device
from .formats import FORMATS
from .verify_model import OPERATIONS_PER_LAYER, QUICK_SENTENCES, ROOM, Compared, LayerRow

TITLE = "one training step with dropout: gradients in plain torch and on the kernels against float64"
LABELS = 3
RATE = 0.1  # of dropout; the checkpoint was trained without
DRAWS, QUICK_DRAWS = 4, 2
SEED = 0  # of the first draw
# Relative to the largest gradient: below, it is 0 but for rounding.
ZERO = 1e-12


def rows(dtypes: tuple[str, ...], quick: bool) -> Iterator[LayerRow]:
    """One row for each layer and dtype."""
    input_ids, mask = demo.batch(QUICK_SENTENCES if quick else None)
    config = reference.ErnieMConfig.from_pretrained(demo.directory())
    config = config.replace(num_labels=LABELS, hidden_dropout_prob=RATE, attention_probs_dropout_prob=RATE)
    base = flatten(reference.ErnieMModel.from_pretrained(demo.directory(), dtype=np.float64).parameters)
    arrays = {path: array for path, array in base.items() if not path.startswith("pooler")}
    head = {"head.classifier.weight": (LABELS, config.hidden_size), "head.classifier.bias": (LABELS,)}
    arrays |= initialise(head, config, SEED, np.dtype(np.float64))
    call = {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids % LABELS}
    for dtype in dtypes:
        rounded = {path: FORMATS[dtype].round(array) for path, array in arrays.items()}
        model = reference.ErnieMForTokenClassification(config, unflatten(rounded))
        draws = [gradients(model, dtype, call, SEED + i) for i in range(QUICK_DRAWS if quick else DRAWS)]
        yield from compare(dtype, config, draws)


@dataclass(frozen=True)
class Gradients:
    """The gradients by name of one draw of dropout, computed in the three ways."""

    exact: Mapping[str, Array]
    plain: Mapping[str, Array]
    kernels: Mapping[str, Array]


def gradients(model: Any, dtype: str, call: Mapping[str, Array], seed: int) -> Gradients:
    """One draw. In a trace of a training step, the torch model computes in plain torch."""
    from ..heads import ErnieMForTokenClassification

    _, exact = reference.value_and_gradients(model, **call, rng=np.random.default_rng(seed))
    device = default_device()
    twin = ErnieMForTokenClassification.from_reference(model).to(device=device, dtype=TORCH_DTYPES[dtype]).train()
    tensors = {name: torch.from_numpy(x).to(device) for name, x in call.items()}
    seeds = seed_tensor(draw_seeds(np.random.default_rng(seed), model.config.num_hidden_layers), device)

    def computed() -> dict[str, Array]:
        twin.zero_grad()
        twin(**tensors, dropout_seeds=seeds).loss.backward()
        return {name: p.grad.double().cpu().numpy() for name, p in twin.named_parameters() if p.grad is not None}

    with torch.enable_grad():
        with reference.trace():
            plain = computed()
        exact_by_name = reference.ErnieMForTokenClassification(model.config, exact).state_dict()
        return Gradients(exact_by_name, plain, computed())


def compare(dtype: str, config: Any, draws: list[Gradients]) -> Iterator[LayerRow]:
    """One row per layer, from the head down. Raises ValueError if a gradient is missing."""
    layers = ["classifier", *(f"encoder.layers.{i}." for i in reversed(range(config.num_hidden_layers))), "embeddings"]
    terms = max(config.hidden_size, config.intermediate_size)
    exact = draws[0].exact
    largest = max(float(np.abs(g).max()) for g in exact.values())
    for i, layer in enumerate(layers):
        found = []
        for name in (name for name in exact if layer in name and np.abs(exact[name]).max() > ZERO * largest):
            own = relative_error([(draw.kernels, draw.exact) for draw in draws], name)
            other = relative_error([(draw.plain, draw.exact) for draw in draws], name)
            float32 = 4 * math.sqrt(terms * OPERATIONS_PER_LAYER * (config.num_hidden_layers + i + 1)) * EPS
            few = 1 + 5 / math.sqrt(len(draws) * exact[name].shape[-1] / 2)
            found.append(Compared(" ".join(name.rsplit(".", 1)), own, other, ROOM * few * other + float32))
        yield LayerRow(layer.rstrip("."), dtype, tuple(found))


def relative_error(pairs: list[tuple[Mapping[str, Array], Mapping[str, Array]]], name: str) -> float:
    """rms(got − exact) / rms(exact) of one name over pairs (got, exact); infinite if shapes differ."""
    error = size = 0.0
    for got, exact in pairs:
        if name not in got:
            raise ValueError(f"{name}: expected a gradient from the torch model, got {list(got)[:5]}...")
        if got[name].shape != exact[name].shape:
            return math.inf
        error += float(np.square(got[name] - exact[name]).sum())
        size += float(np.square(exact[name]).sum())
    return math.sqrt(error / size)

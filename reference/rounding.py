"""What rounding explains: how far an entry of one trace may be from that of another, given the errors of its inputs.

With s the root mean square (rms) of an entry y, and e that of its error,
independent errors of the inputs x lead to

    linear map            e = e_x s_y / s_x                 it amplifies errors as it does its input
    activation            e = e_x max(1.13, 2 s_y / s_x)    its slope
    scores, q k / √D      e = √((e_q s_k)² + (e_k s_q)²)
    probs                 e = rms(p (d − Σ p d))            softmax's derivative, for errors d of the scores
    context, Σ p v        e = √(e_v² + S (e_p s_v)²)
    LayerNorm(x₁ + x₂)    e = √(e_x₁² + e_x₂²) rms(rms(row of y) / std(row of x₁ + x₂))

Its own roundings add 0.42 s (u √roundings + ε √(n/2)), with the unit roundoff u of the coarsest dtype in the traces
(0.42: `kernels/checking/verdicts.py`), and ε = 2⁻²⁴, or u if smaller, for the partial sums of n numbers, which grow as
√k. The error of an input is measured if both traces have it. If not, its own inputs explain it. The bounds are

    rms      4 (1 + 2/√N) e for N numbers
    scale    |Σ (x − y) x| / Σ x² <= 4 e / (s √m) + 8 ε + 2 (the inputs' scales) for rows of m numbers; not for
             attention. Random errors cancel in it; a scale that is slightly off does not

e is typical. The factor 4 covers its spread, and weights that amplify errors more than their input. Fewer than 64
numbers may be small by chance: they count as amplified like the most amplified before. Names that are not ERNIE-M's
count as linear maps of the worst entry before them. Cotangents, `grad:` names: see `rounding_back.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import rounding_back
from .array import Array
from .trace import GRADIENT, Entry, serves_all_rows

MAPS = ("scores", "probs")  # (B, H, S, S): positions are the last two axes, not axis 1
ATTENTION = (*MAPS, "context")
NORMS = ("layer_norm", "norm1", "norm2")
ROOM, FEW, GELU_SLOPE = 4.0, 64, 1.13
# The unit roundoff, and half the smallest positive number.
FORMATS = {
    "bfloat16": (2.0**-8, 2.0**-134),
    "float16": (2.0**-11, 2.0**-25),
    "float32": (2.0**-24, 2.0**-150),
    "float64": (2.0**-53, 0.0),
}
# `encoder.layers.3.norm1`, in a head with the prefix `ernie_m.`
LAYER = re.compile(r"(.*?)encoder\.layers\.(\d+)\.(.+)")
INNER = "self_attn.self_attn"
# What the parts of a layer are computed from: all others, q_proj, k_proj and v_proj, from the layer's input, "".
SOURCES = {
    f"{INNER}.scores": (f"{INNER}.q_proj", f"{INNER}.k_proj"),
    f"{INNER}.probs": (f"{INNER}.scores",),
    f"{INNER}.context": (f"{INNER}.probs", f"{INNER}.v_proj"),
    "self_attn.out_proj": (f"{INNER}.context",),
    "norm1": ("", "self_attn.out_proj"),
    "linear1": ("norm1",),
    "activation": ("linear1",),
    "linear2": ("activation",),
    "norm2": ("norm1", "linear2"),
}
# The same in the head that predicts words; `dense` is computed from the last hidden state.
PREDICTION = {
    "prediction.activation": "dense",
    "prediction.layer_norm": "activation",
    "prediction.decoder": "layer_norm",
}


def layer_of(name: str) -> str:
    """`encoder.layers.3` of `encoder.layers.3.norm1`; "" outside a layer."""
    found = LAYER.fullmatch(name)
    return name[: -len(found[3]) - 1] if found else ""


def sources(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """The entries that an entry is computed from, in a model that computes `names`; none for names of other models."""
    found, prefix = LAYER.fullmatch(name), name.rpartition(".")[0]
    if found:
        i = int(found[2])
        before = f"{found[1]}encoder.layers.{i - 1}.norm2" if i else f"{found[1]}embeddings.layer_norm"
        return tuple(f"{layer_of(name)}.{part}" if part else before for part in SOURCES.get(found[3], ("",)))
    if name.endswith("embeddings.layer_norm"):
        return f"{prefix}.word_embeddings", f"{prefix}.position_embeddings"
    if name.endswith("pooler.activation"):
        return (f"{prefix}.dense",)
    if name in PREDICTION:
        return (f"{prefix}.{PREDICTION[name]}",)
    names = [x for x in names if not x.startswith(GRADIENT)]
    hidden = [x for x in names if x.endswith("embeddings.layer_norm") or (LAYER.fullmatch(x) and x.endswith(".norm2"))]
    pooled = [x for x in names if x.endswith("pooler.activation")] if name == "classifier" else []
    heads = ("classifier", "qa_outputs", "linear_start", "linear_end", "prediction.dense")
    return tuple((pooled or hidden)[-1:]) if name in heads or prefix.endswith("pooler") else ()


def over(error: float, bound: float) -> float:
    """error / bound; 0 / 0 is 0, and nan is infinite."""
    return 0.0 if error == 0 else error / bound if bound > 0 and error < math.inf else math.inf


def rms(x: Array) -> float:
    """The root mean square of all numbers; of none, 0."""
    return math.sqrt(float(np.square(x).mean())) if x.size else 0.0


class Error(NamedTuple):
    """The rms error of an entry, the rms of its numbers, and how far these are too large on the whole, relatively."""

    error: float
    size: float
    scale: float


class Judge:
    """The bounds of the module's docstring. `forced`: entries whose values in `a` are what `b` went on with."""

    def __init__(self, a: Mapping[str, Entry], b: Mapping[str, Entry], mask: Any, forced: Collection[str]) -> None:
        self.a, self.b, self.mask, self.forced = a, b, mask, forced
        self.u, self.smallest = max(
            FORMATS.get(entry.dtype, FORMATS["float64"]) for entry in (*a.values(), *b.values())
        )
        self.eps = min(self.u, FORMATS["float32"][0])
        self.errors: dict[str, Error] = {}
        self.gain, self.worst, self.width = 0.0, 0.0, 1  # the largest so far: of a linear map, relative error, row

    def values(self, name: str) -> tuple[Array, Array, Array]:
        """In a, in b, and where there are tokens. If one has no such entry, the other's twice; if none has, nothing."""
        entries = [trace[name] for trace in (self.a, self.b) if name in trace]
        if not entries:
            return np.zeros(0), np.zeros(0), np.zeros(0, bool)
        x, y = (np.asarray(entry.padded(), np.float64) for entry in (entries[0], entries[-1]))
        if serves_all_rows(name, x.shape, y.shape):
            y = np.broadcast_to(y, x.shape)
        if x.shape != y.shape:
            return x, np.full(x.shape, np.nan), np.ones(x.shape, bool)
        valid = _valid(name, x.shape, entries, self.mask)
        return np.where(valid, x, 0.0), np.where(valid, y, 0.0), valid

    def shapes(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Those of the values in a and in b, if they differ."""
        found = self.a[name].padded().shape, self.b[name].padded().shape
        return () if found[0] == found[1] or serves_all_rows(name, *found) else found

    def largest(self, name: str) -> tuple[float, tuple[int, ...], tuple[float, float]]:
        """The largest difference, relative to the largest magnitude in b if above 1; its index; the values there."""
        x, y, _ = self.values(name)
        d = np.nan_to_num(np.abs(x - y), nan=np.inf, posinf=np.inf)
        index = tuple(int(i) for i in np.unravel_index(d.argmax(), d.shape)) if d.size else ()
        scale = np.abs(y).max(initial=1.0, where=np.isfinite(y))
        return float(d.max(initial=0.0) / scale), index, (float(x[index]), float(y[index])) if index else (0.0, 0.0)

    def measured(self, name: str) -> Error:
        """The error of an entry that both traces have."""
        x, y, valid = self.values(name)
        d = x - y
        return Error(rms(d[valid]), rms(x[valid]), over(abs(float((d * x).sum())), float(np.square(x).sum())))

    def known(self, name: str) -> Error:
        """The error of an input: measured, or explained in turn, or only of rounding if `b` was given the value."""
        if name not in self.errors:
            x, _, valid = self.values(name)
            if name in self.forced:
                found = Error(self.noise(rms(x[valid])), rms(x[valid]), self.u)
            elif name in self.a and name in self.b:
                found = self.measured(name)
            else:
                error, size, scale = self.explained(name)
                found = Error(error, size, scale + over(error, size))
            self.errors[name] = found
        return self.errors[name]

    def noise(self, size: float, terms: float = 0, roundings: int = 1) -> float:
        """The error of an entry's own roundings."""
        return 0.42 * size * (self.u * math.sqrt(roundings) + self.eps * math.sqrt(terms / 2)) + self.smallest

    def ratio(self, name: str, found: Error) -> float:
        """`found`, the error of an entry, over its bound."""
        allowed, (x, _, valid) = self.explained(name), self.values(name)
        self.worst, self.width = max(self.worst, over(found.error, found.size)), max(self.width, *x.shape[-1:])
        ratio = over(found.error, ROOM * (1 + 2 / math.sqrt(max(1, valid.sum()))) * allowed.error)
        if name.rpartition(".")[2] in ATTENTION:
            return ratio
        typical = over(allowed.error, found.size * math.sqrt(max(1, x.shape[-1])))
        return max(ratio, over(found.scale, ROOM * typical + 8 * self.eps + 2 * allowed.scale))

    def explained(self, name: str) -> Error:
        """The error that the inputs and its own roundings explain; `scale` is the sum of theirs."""
        if name.startswith(GRADIENT):
            return rounding_back.explained(self, name)
        kind, inputs, (y, _, valid) = name.rpartition(".")[2], sources(name, self.a), self.values(name)
        xs, size = [self.known(source) for source in inputs], rms(y[valid])
        if kind in ATTENTION and xs:
            error, size = self._attention(name, kind, size, inputs[0], xs)
        elif kind in NORMS and xs:
            rows = valid.any(axis=-1)
            z = y * 0 + sum(value for value, _, _ in map(self.values, inputs) if value.shape == y.shape)
            condition = rms(np.sqrt(np.square(y).mean(axis=-1))[rows] / np.maximum(z.std(axis=-1)[rows], 1e-300))
            error = condition * (math.hypot(*(x.error for x in xs)) + self.noise(rms(z[valid]), 1)) + self.noise(
                size, 64, 2
            )
        elif kind == "activation" and xs:
            error = xs[0].error * max(GELU_SLOPE, 2 * over(size, xs[0].size)) + self.noise(size, 64)
        elif kind.endswith("_embeddings"):
            error = self.noise(size)
        else:
            xs = xs or [Error(self.worst, 1.0, self.worst)]
            width, gain = self.values(inputs[0])[0].shape[-1] if inputs else self.width, over(size, xs[0].size)
            gain, self.gain = max(gain, (self.gain or 1.0) * (valid.sum() < FEW)), max(gain, self.gain)
            size = max(size, gain * xs[0].size)
            error = gain * xs[0].error + self.noise(size, width, 2)
        return Error(error, size, sum(x.scale for x in xs))

    def _attention(self, name: str, kind: str, size: float, first: str, xs: list[Error]) -> tuple[float, float]:
        """The error and the size of scores, probabilities and context; `first`: the first of their inputs."""
        (x, other, at), (y, _, own) = self.values(first), self.values(name)
        if kind == "scores":  # (B, H, S, S)
            size = max(size, xs[0].size * xs[1].size)
            D = x.shape[-1] / (y.shape[1] if y.size else 1)
            return math.hypot(xs[0].error * xs[1].size, xs[1].error * xs[0].size) + self.noise(size, D), size
        if kind == "probs":
            error, size = math.sqrt(2) * xs[0].error, size if y.size else 1.0
            if first in self.a and first in self.b and y.size:
                d = y * (x - other)
                return rms((d - y * d.sum(axis=-1, keepdims=True))[own]) + self.noise(size, 64), size
            return error * size + self.noise(size, 64), size
        S, spread = (x.shape[-1], min(1.0, math.sqrt(x.shape[-1]) * rms(x[at]))) if x.size else (1, 1.0)  # √Σp²
        size = max(size, spread * xs[1].size)
        return math.hypot(xs[1].error, math.sqrt(S) * xs[0].error * xs[1].size) + self.noise(size, S, 2), size


def _valid(name: str, shape: tuple[int, ...], entries: list[Entry], mask: Any) -> Array:
    """An array of shape `shape`, True at real tokens (in attention maps, at pairs of real tokens)."""
    masks = [entry.tokens.mask for entry in entries if entry.tokens is not None]
    masks += [] if mask is None else [np.asarray(mask).astype(bool)]
    if not masks or len(shape) < 3:  # (B, E) and (B, C) have no positions
        return np.ones(shape, bool)
    tokens = np.logical_and.reduce(masks)  # (B, S)
    if name.rsplit(".", 1)[-1] in MAPS:
        return np.broadcast_to(tokens[:, None, :, None] & tokens[:, None, None, :], shape)
    return np.broadcast_to(tokens.reshape(*tokens.shape, *[1] * (len(shape) - 2)), shape)

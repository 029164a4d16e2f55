"""What rounding explains of a cotangent: `rounding` on the way back, where arrows of the computation are reversed.

A cotangent is computed from those of the values that read its value, its *readers*, and from forward values: a slope,
attention weights, LayerNorm's row. With s the rms of a cotangent y, e that of its error, and those of its readers x:

    e² = Σ (e_x s / s_x)² + Σ (s e_f / s_f)²     readers amplify as they do the numbers; f are forward values
    scores: s is that of p dW, before softmax's vjp subtracts the row's mean of it; probabilities, q, k
    and v: s is at least that of a sum of as many independent terms

and the cotangent's own roundings, as in `rounding`. That of logits follows from the loss, whose slope changes by at
most its own size where a logit changes by 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .trace import GRADIENT

if TYPE_CHECKING:
    from .rounding import Error, Judge

INNER = "self_attn.self_attn"
# The readers of a layer's values, inside the layer; a sum's cotangent is that of the map before its dropout.
READERS = {
    "linear2": ("norm2",),
    "activation": ("linear2",),
    "linear1": ("activation",),
    "norm1": ("linear1", "linear2"),
    "self_attn.out_proj": ("norm1",),
    f"{INNER}.context": ("self_attn.out_proj",),
    f"{INNER}.probs": (f"{INNER}.context",),
    f"{INNER}.scores": (f"{INNER}.probs",),
    f"{INNER}.q_proj": (f"{INNER}.scores",),
    f"{INNER}.k_proj": (f"{INNER}.scores",),
    f"{INNER}.v_proj": (f"{INNER}.context",),
}
# The readers, in a layer, of its input.
INPUT = (f"{INNER}.q_proj", f"{INNER}.k_proj", f"{INNER}.v_proj", "self_attn.out_proj")
# The forward values in a cotangent, inside the layer.
FORWARD = {
    "linear2": ("norm2",),
    "linear1": ("linear1",),
    "self_attn.out_proj": ("norm1",),
    f"{INNER}.probs": (f"{INNER}.v_proj",),
    f"{INNER}.scores": (f"{INNER}.probs",),
    f"{INNER}.q_proj": (f"{INNER}.k_proj",),
    f"{INNER}.k_proj": (f"{INNER}.q_proj",),
    f"{INNER}.v_proj": (f"{INNER}.probs",),
}
# The readers and the forward values in the head that predicts words.
PREDICTION = {
    "prediction.layer_norm": ("prediction.decoder", ()),
    "prediction.activation": ("prediction.layer_norm", ("prediction.layer_norm",)),
    "prediction.dense": ("prediction.activation", ("prediction.dense",)),
}
HEADS = ("classifier", "qa_outputs", "linear_start", "linear_end", "prediction.decoder")


def readers(name: str, judge: Judge) -> tuple[list[str], list[str]]:
    """The cotangents that one is computed from, and the forward values."""
    from .rounding import LAYER

    value = name.removeprefix(GRADIENT)
    prefix, found = value.rpartition(".")[0], LAYER.fullmatch(value)
    if value in HEADS:
        return [], [value]
    if value in PREDICTION:
        reader, forward = PREDICTION[value]
        return [GRADIENT + reader], list(forward)
    if prefix.endswith("pooler") and value.endswith("activation"):
        return [f"{GRADIENT}classifier"], []
    if prefix.endswith("pooler"):
        return [f"{GRADIENT}{prefix}.activation"], [f"{prefix}.activation"]
    if value.endswith("_embeddings"):
        return [f"{GRADIENT}{prefix}.layer_norm"], [f"{prefix}.layer_norm"]
    if found and found[3] != "norm2":
        layer = value[: -len(found[3]) - 1]
        inside = [f"{layer}.{part}" for part in FORWARD.get(found[3], ())]
        return [f"{GRADIENT}{layer}.{part}" for part in READERS.get(found[3], ())], inside
    start = found[1] if found else value.removesuffix("embeddings.layer_norm")
    above = f"{start}encoder.layers.{int(found[2]) + 1 if found else 0}"
    inside = [f"{GRADIENT}{above}.{part}" for part in INPUT]
    heads = [f"{GRADIENT}{head}" for head in (f"{start}pooler" + ".dense", "prediction.dense", *HEADS)]
    known = [other for other in inside if other in judge.a] or [other for other in heads if other in judge.a]
    return known, []


def explained(judge: Judge, name: str) -> Error:
    """The error that the readers, the forward values and the cotangent's own roundings explain."""
    from .rounding import Error, over, rms

    y, _, valid = judge.values(name)
    size = rms(y[valid])
    back, forward = readers(name, judge)
    xs, fs = [judge.known(other) for other in back], [judge.known(other) for other in forward]
    if name.endswith(".scores"):
        weights, cotangent = (judge.values(other)[0] for other in (*forward, *back))
        if weights.shape == y.shape == cotangent.shape:
            size = max(size, rms((weights * cotangent)[valid]))
    elif name.endswith(".probs") and y.ndim == 4:
        size = max(size, math.sqrt(judge.values(back[0])[0].shape[-1] / y.shape[1]) * xs[0].size * fs[0].size)
    elif name.endswith(("q_proj", "k_proj", "v_proj")) and y.ndim == 3:
        # A sum over the S positions of products; / √D for q and k.
        maps = judge.values(next(other for other in (*back, *forward) if other.endswith((".scores", ".probs"))))[0]
        D = y.shape[-1] / maps.shape[1] if maps.ndim == 4 and not name.endswith("v_proj") else 1.0
        size = max(size, math.sqrt(y.shape[1] / D) * xs[0].size * fs[0].size)
    parts = [x.error * max(over(size, x.size), 0.0) for x in xs if x.size]
    parts += [size * (f.error if not back else over(f.error, f.size)) for f in fs if f.size]
    width = max([*y.shape[-1:], *(judge.values(other)[0].shape[-1] for other in back)])
    error = math.hypot(*parts) + judge.noise(size, width, 4)
    return Error(error, size, sum(x.scale for x in (*xs, *fs)))

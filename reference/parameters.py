"""The weights of the model: their names, shapes and initial values.

A model's parameters are frozen dataclasses of arrays, read by name (`layer.q_proj.weight`), so a missing weight is an
error at the point of use. In a flat dictionary, the keys of the same arrays are *paths*, such as
`layers.3.q_proj.weight`; only `checkpoint/names.py` knows their names in files.

Weights of linear maps are (outputs, inputs), as in torch and in Hugging Face's files: y = x @ weight.T + bias.

Source: transformers 4.40.2, `modeling_ernie_m.py`, `ErnieMPreTrainedModel._init_weights` for the initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .array import Array
from .config import ErnieMConfig


@dataclass(frozen=True)
class Linear:
    """A linear map: `weight` (outputs, inputs), `bias` (outputs,)."""

    weight: Array
    bias: Array


@dataclass(frozen=True)
class LayerNorm:
    """The affine part of a layer normalisation: `weight` (E,), the paper's γ, and `bias` (E,), its β."""

    weight: Array
    bias: Array


@dataclass(frozen=True)
class EncoderLayer:
    """One Transformer layer. Pruning heads removes rows of q, k and v and columns of `out_proj`."""

    q_proj: Linear  # (H*D, E)
    k_proj: Linear
    v_proj: Linear
    out_proj: Linear  # (E, H*D)
    norm1: LayerNorm
    linear1: Linear  # (F, E)
    linear2: Linear  # (E, F)
    norm2: LayerNorm


@dataclass(frozen=True)
class PredictionHead:
    """The head that predicts words. Its last map is the word embeddings' table, with a bias of its own."""

    dense: Linear  # (E, E)
    layer_norm: LayerNorm
    bias: Array  # (V,)


@dataclass(frozen=True)
class Parameters:
    """All weights of a model."""

    word_embeddings: Array  # (V, E)
    position_embeddings: Array  # (positions + 2, E)
    layer_norm: LayerNorm  # of the embeddings
    layers: tuple[EncoderLayer, ...]
    pooler: Linear | None  # (E, E); token-wise heads have none
    head: Mapping[str, Linear]  # name -> (outputs, E); empty for the bare model
    prediction: PredictionHead | None = None  # of a masked language model


def shapes(
    config: ErnieMConfig, head: Mapping[str, int], pooler: bool, prediction: bool = False
) -> dict[str, tuple[int, ...]]:
    """Path and shape of every array of a model, in forward-pass order.

    `head` maps the name of each linear map on top to its number of outputs, such as `{"classifier": 3}`; `pooler` and
    `prediction` say whether the model has a pooler and a `PredictionHead`. Layers in `config.pruned_heads` are narrower
    by the heads removed.
    """
    E, F = config.hidden_size, config.intermediate_size
    D = E // config.num_attention_heads
    found: dict[str, tuple[int, ...]] = {
        "word_embeddings": (config.vocab_size, E),
        "position_embeddings": (config.max_position_embeddings, E),
        "layer_norm.weight": (E,),
        "layer_norm.bias": (E,),
    }

    def linear(path: str, outputs: int, inputs: int) -> None:
        found[f"{path}.weight"], found[f"{path}.bias"] = (outputs, inputs), (outputs,)

    for i in range(config.num_hidden_layers):
        heads_width = (config.num_attention_heads - len(config.pruned_heads.get(i, ()))) * D
        for name in ("q_proj", "k_proj", "v_proj"):
            linear(f"layers.{i}.{name}", heads_width, E)
        linear(f"layers.{i}.out_proj", E, heads_width)
        found[f"layers.{i}.norm1.weight"] = found[f"layers.{i}.norm1.bias"] = (E,)
        linear(f"layers.{i}.linear1", F, E)
        linear(f"layers.{i}.linear2", E, F)
        found[f"layers.{i}.norm2.weight"] = found[f"layers.{i}.norm2.bias"] = (E,)
    if pooler:
        linear("pooler", E, E)
    for name, outputs in head.items():
        linear(f"head.{name}", outputs, E)
    if prediction:
        linear("prediction.dense", E, E)
        found["prediction.layer_norm.weight"] = found["prediction.layer_norm.bias"] = (E,)
        found["prediction.bias"] = (config.vocab_size,)
    return found


def check_shapes(arrays: Mapping[str, Array], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError, naming the first path in order, unless there are arrays of these shapes and no others."""
    for path in sorted(arrays.keys() | wanted.keys()):
        if path not in arrays:
            raise ValueError(f"parameters: {path}: expected shape {wanted[path]}, got none")
        if arrays[path].shape != wanted.get(path):
            raise ValueError(f"parameters: {path}: expected shape {wanted.get(path)}, got {arrays[path].shape}")


def flatten(parameters: Parameters) -> dict[str, Array]:
    """All arrays by path, in the order of `shapes`; not copied."""
    found: dict[str, Array] = {}

    def walk(value: object, path: str) -> None:
        if isinstance(value, np.ndarray):
            found[path] = value
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                walk(item, f"{path}.{i}")
        elif isinstance(value, Mapping):
            for name, item in value.items():
                walk(item, f"{path}.{name}")
        elif value is not None:
            for field in fields(value):  # type: ignore[arg-type]
                walk(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)

    walk(parameters, "")
    return found


def add_layers(layers: Sequence[EncoderLayer]) -> EncoderLayer:
    """The sum of layers, computed in the first: a layer's gradients are the sum of those from groups of sequences."""
    first, *others = layers
    for other in others:
        for field in fields(EncoderLayer):
            total, part = getattr(first, field.name), getattr(other, field.name)
            np.add(total.weight, part.weight, out=total.weight)
            np.add(total.bias, part.bias, out=total.bias)
    return first


def unflatten(arrays: Mapping[str, Array]) -> Parameters:
    """The inverse of `flatten`; arrays are not copied."""

    def linear(path: str) -> Linear:
        return Linear(arrays[f"{path}.weight"], arrays[f"{path}.bias"])

    def norm(path: str) -> LayerNorm:
        return LayerNorm(arrays[f"{path}.weight"], arrays[f"{path}.bias"])

    def layer(path: str) -> EncoderLayer:
        return EncoderLayer(
            q_proj=linear(f"{path}.q_proj"),
            k_proj=linear(f"{path}.k_proj"),
            v_proj=linear(f"{path}.v_proj"),
            out_proj=linear(f"{path}.out_proj"),
            norm1=norm(f"{path}.norm1"),
            linear1=linear(f"{path}.linear1"),
            linear2=linear(f"{path}.linear2"),
            norm2=norm(f"{path}.norm2"),
        )

    layers = 1 + max((int(path.split(".")[1]) for path in arrays if path.startswith("layers.")), default=-1)
    head_names = dict.fromkeys(path.split(".")[1] for path in arrays if path.startswith("head."))
    return Parameters(
        word_embeddings=arrays["word_embeddings"],
        position_embeddings=arrays["position_embeddings"],
        layer_norm=norm("layer_norm"),
        layers=tuple(layer(f"layers.{i}") for i in range(layers)),
        pooler=linear("pooler") if "pooler.weight" in arrays else None,
        head={name: linear(f"head.{name}") for name in head_names},
        prediction=PredictionHead(
            dense=linear("prediction.dense"),
            layer_norm=norm("prediction.layer_norm"),
            bias=arrays["prediction.bias"],
        )
        if "prediction.bias" in arrays
        else None,
    )


def initialise(
    wanted: Mapping[str, tuple[int, ...]], config: ErnieMConfig, seed: int, dtype: np.dtype[Any]
) -> dict[str, Array]:
    """Newly initialised arrays for `wanted`, which is all or part of the result of `shapes`.

    Linear and embedding weights are drawn from a normal distribution with standard deviation
    `config.initializer_range`. Biases are 0, and layer normalisations start as the identity. Row `pad_token_id` is 0 in
    the word embeddings and, as in torch, in the position embeddings. The same seed gives the same arrays in every
    dtype, up to rounding.
    """
    rng = np.random.default_rng(seed)
    fresh: dict[str, Array] = {}
    for path, shape in wanted.items():
        if path.endswith("bias"):
            fresh[path] = np.zeros(shape, dtype)
        elif path.split(".")[-2:-1] in (["layer_norm"], ["norm1"], ["norm2"]):
            fresh[path] = np.ones(shape, dtype)
        else:
            fresh[path] = (rng.standard_normal(shape, np.float32) * np.float32(config.initializer_range)).astype(dtype)
        if path.endswith("_embeddings") and config.pad_token_id < shape[0]:
            fresh[path][config.pad_token_id] = 0.0
    return fresh

"""Changing a model in place: another vocabulary, fewer heads.

The reference's methods of the same names return a new model; torch modules change, as in transformers, so an
optimiser created earlier must be created again.

Twin: reference/pretrained.py, `resize_token_embeddings` and `prune_heads`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, Module, Parameter

from ernie_m.reference.config import ErnieMConfig

from .runtime.modules import untouched
from .self_attention import PROJECTIONS


def base_of(model: Any) -> Any:
    """The `ErnieMModel` of a model, also inside wrappers that pass attributes on."""
    return getattr(model, "ernie_m", model)


def _set_config(model: Any, config: ErnieMConfig) -> None:
    """Give the head and the encoder the same configuration."""
    model.config = base_of(model).config = config


def resize_vocabulary(model: Any, size: int | None, multiple: int | None) -> Module:
    """`PretrainedModel.resize_token_embeddings`."""
    embeddings = base_of(model).embeddings
    old: Embedding = embeddings.word_embeddings
    if size is None and multiple is None:
        return old
    for name, value in (("size", size), ("pad_to_multiple_of", multiple)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    if type(old) is not Embedding:
        raise TypeError(
            f"word_embeddings: expected torch's Embedding, got {type(old).__name__}: unwrap or merge it first"
        )
    size = old.num_embeddings if size is None else size
    size = size if multiple is None else -(-size // multiple) * multiple
    config = model.config.replace(vocab_size=size)
    with torch.no_grad():
        kept = old.weight[:size]
        added = kept.new_empty(size - kept.shape[0], kept.shape[1]).normal_(0.0, config.initializer_range)
        old.weight = Parameter(torch.cat([kept, added]), requires_grad=old.weight.requires_grad)
    old.num_embeddings = size
    _set_config(model, config)
    return old


def set_embeddings(model: Any, value: Any) -> None:
    """`PretrainedModel.set_input_embeddings`. Only torch's Embedding tells how many ids it has."""
    if type(value) is Embedding:
        E = model.config.hidden_size
        if value.embedding_dim != E:
            raise ValueError(f"value: expected word vectors of {E} numbers, got {value}")
        _set_config(model, model.config.replace(vocab_size=value.num_embeddings))
    base_of(model).embeddings.word_embeddings = value


def prune_heads(model: Any, heads: Mapping[int, Iterable[int]]) -> None:
    """`PretrainedModel.prune_heads`."""
    earlier: Mapping[int, tuple[int, ...]] = model.config.pruned_heads
    config = model.config.prune(heads)
    layers = [base_of(model).encoder.layers[i].self_attn for i in heads]
    for attention in layers:
        for name, linear in _linears(attention).items():
            if not untouched(linear, Linear):
                raise TypeError(
                    f"{name}: expected torch's Linear without hooks, got {linear}: unwrap or merge it first"
                )
    D = config.head_dim
    for i, attention in zip(heads, layers, strict=True):
        present = [h for h in range(config.num_attention_heads) if h not in earlier.get(i, ())]
        lost = config.pruned_heads.get(i, ())
        places = [torch.arange(D) + D * j for j, h in enumerate(present) if h not in lost]
        for name, linear in _linears(attention).items():
            _keep(linear, torch.cat(places).to(linear.weight.device), axis=1 if name == "out_proj" else 0)
    _set_config(model, config)


def _linears(attention: Any) -> dict[str, Linear]:
    return {name: getattr(attention.self_attn, name) for name in PROJECTIONS} | {"out_proj": attention.out_proj}


def _keep(linear: Linear, places: Tensor, axis: int) -> None:
    """Keep rows (axis 0, with their biases) or columns (axis 1) of a linear map."""
    with torch.no_grad():
        weight, bias = linear.weight, linear.bias
        linear.weight = Parameter(weight.index_select(axis, places), requires_grad=weight.requires_grad)
        if axis == 0:
            linear.bias = Parameter(bias[places], requires_grad=bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape

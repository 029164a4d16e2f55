"""The inputs of attention: made at given sizes, and cut to some of their sequences, groups or tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ernie_m.reference.array import Array

from .drawing import sequence_ends
from .operation import Inputs, Normal

Span = tuple[int, int]
# The ranges of a group, by where their ends are in its row: queries without themselves, with themselves, and keys.
RANGES = ((0, 2), (2, 1), (3, 4))


def take(value: Any, rows: Array) -> Array:
    """Rows of an argument, in float64 if they are floats."""
    if isinstance(value, torch.Tensor):
        found = value[torch.from_numpy(rows)]
        return np.asarray((found.double() if found.is_floating_point() else found).numpy())
    return np.asarray(value[rows])


def own_tokens(inputs: Inputs, rows: Array) -> tuple[Inputs, Array]:
    """The sequences that contain these tokens."""
    ends = inputs["cu_seqlens"].astype(np.int64)
    own = np.unique(np.searchsorted(ends, rows, "right") - 1)
    tokens = np.concatenate([np.arange(ends[b], ends[b + 1]) for b in own])
    kept = {"qkv": take(inputs["qkv"], tokens), "cu_seqlens": sequence_ends(ends[own + 1] - ends[own])}
    return kept, np.searchsorted(tokens, rows)


def own_sequences(inputs: Inputs, rows: Array) -> tuple[Inputs, Array]:
    """The sequences of these first tokens."""
    ends = inputs["cu_seqlens"].astype(np.int64)
    tokens = np.concatenate([np.arange(ends[b], ends[b + 1]) for b in rows])
    kept = {"q": take(inputs["q"], rows), "kv": take(inputs["kv"], tokens)}
    return {**kept, "cu_seqlens": sequence_ends(ends[rows + 1] - ends[rows])}, np.arange(rows.size)


def packed(normal: Normal, lengths: Any, heads: int, size: int) -> Inputs:
    """Those of `packed_attention`."""
    ends = sequence_ends(lengths)
    return {"qkv": normal(int(ends[-1]), 3, heads, size), "cu_seqlens": ends}


def first(normal: Normal, lengths: Any, heads: int, size: int) -> Inputs:
    """Those of `first_token_attention`."""
    ends = sequence_ends(lengths)
    return {"q": normal(len(lengths), heads, size), "kv": normal(int(ends[-1]), 2, heads, size), "cu_seqlens": ends}


def with_cotangent(make: Callable[..., Inputs]) -> Callable[..., Inputs]:
    """Those of the gradient of an operation on qkv: the cotangent of its result, then its own."""

    def made(normal: Normal, lengths: Any, heads: int, size: int) -> Inputs:
        inputs = make(normal, lengths, heads, size)
        return {"d_context": normal(len(inputs["qkv"]), heads, size), **inputs}

    return made


def first_vjp(normal: Normal, lengths: Any, heads: int, size: int) -> Inputs:
    """Those of `first_token_attention_vjp`."""
    return {"d_context": normal(len(lengths), heads, size), **first(normal, lengths, heads, size)}


def groups(normal: Normal, lengths: Any, heads: int, size: int) -> Inputs:
    """Those of `group_attention`. Each sequence is one group, whose last quarter are keys of themselves only."""
    ends = sequence_ends(lengths)
    first = ends[1:] - np.diff(ends) // 4
    groups = np.stack([ends[:-1], ends[1:], first, ends[:-1], first], axis=1)
    return {"qkv": normal(int(ends[-1]), 3, heads, size), "groups": groups}


def own_groups(inputs: Inputs, rows: Array) -> tuple[Inputs, Array]:
    """The groups of these rows, made by `groups`: consecutive ones, each of whose keys are among its own rows."""
    groups = inputs["groups"].astype(np.int64)
    own = groups[np.unique(np.searchsorted(groups[:, 1], rows, "right"))]
    tokens = np.concatenate([np.arange(q0, q1) for q0, q1, *_ in own])
    kept = {"qkv": take(inputs["qkv"], tokens), "groups": np.searchsorted(tokens, own).astype(np.int32)}
    return kept, np.searchsorted(tokens, rows)


def spans_of(inputs: Inputs) -> list[Span]:
    """Where each sequence starts and ends."""
    return list(pairwise(inputs["cu_seqlens"].tolist()))


def rebuilt(inputs: Inputs, sequences: Iterable[int], spans: Sequence[Span]) -> Inputs:
    """The inputs of attention within sequences with only these, and of each only the tokens in its span."""
    tokens = np.concatenate([np.arange(start, end) for start, end in spans])
    cu_seqlens = sequence_ends([end - start for start, end in spans])
    of_sequences = ("d_context", "q") if "q" in inputs else ()
    cut = {
        name: inputs[name][list(sequences) if name in of_sequences else tokens]
        for name in ("d_context", "q", "kv", "qkv")
        if name in inputs
    }
    return inputs | cut | {"cu_seqlens": cu_seqlens}


def between(inputs: Inputs, group: int, begin: int, end: int) -> Array:  # -> (T,)
    """Which tokens are between two numbers of a group."""
    tokens, row = np.arange(len(inputs["qkv"])), inputs["groups"][group]
    return np.asarray((row[begin] <= tokens) & (tokens < row[end]))


def with_tokens(inputs: Inputs, kept: Array) -> Inputs:  # (T,)
    """The inputs of attention between ranges with only these tokens; ranges lose the others."""
    places = np.concatenate([[0], kept.cumsum()]).astype(inputs["groups"].dtype)
    cut = {name: inputs[name][kept] for name in ("d_context", "qkv") if name in inputs}
    return inputs | cut | {"groups": places[inputs["groups"]]}

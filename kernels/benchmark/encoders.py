"""The competitors for the whole encoder: ours, and the baselines of `baselines.py`, on the same weights and batch.

Weights and ids are random. Padding is on the right; padded competitors learn its extent only from the mask. Without
padding, eager still adds a mask, as transformers does; torch.compile + SDPA gets none, so that it can choose its
fastest backend. All run under `inference_mode` up to the last layer's hidden states, without the pooler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..model import ErnieMModel
from ..runtime.dtypes import name_of
from .baselines import PackedEncoder, PaddedEncoder, transformers_model
from .measured import OURS, Measured, compiled, cumulative
from .work import Batch, Size, model_floor

# Up to this many tokens, a CUDA graph is worth its memory because the host is slower than the GPU.
GRAPH_TOKENS = 1024
ROTATING = 4


def build(size: Size, dtype: torch.dtype, device: str) -> ErnieMModel:
    """The encoder without a pooler, with random weights, which are drawn on the device."""
    model = ErnieMModel(size.config, device=device, dtype=dtype, add_pooling_layer=False)
    return model.eval().requires_grad_(False)


def inputs_of(batch: Batch, vocabulary: int, device: str) -> list[dict[str, Any]]:
    """ROTATING batches of random ids without special tokens, each in both layouts."""
    lengths = torch.tensor(batch.lengths)
    valid = torch.arange(batch.padded) < lengths[:, None]
    positions = torch.arange(batch.padded).expand_as(valid)[valid].to(device)
    found = []
    for seed in range(ROTATING):
        ids = torch.randint(5, vocabulary, valid.shape, generator=torch.Generator().manual_seed(seed))
        ids = ids.masked_fill(~valid, 1)
        found.append(
            {
                "ids": ids.to(device),
                "mask": valid.to(device, torch.int64),
                "packed": ids[valid].to(device),
                "positions": positions,
                "cu": cumulative(batch.lengths, device),
            }
        )
    return found


def graphed(function: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]:
    """`function` as a CUDA graph: captured once, replayed after each input is copied into its buffer."""
    held = example.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(held)

    def replay(x: Tensor) -> Any:
        held.copy_(x)
        graph.replay()
        return result

    return replay


def encoder(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """All competitors for the encoder on this batch."""
    model = build(size, dtype, device)
    sets = inputs_of(batch, size.config.vocab_size, device)
    longest = max(batch.lengths)
    valid = sets[0]["mask"].bool()

    def tokens(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
        return lambda x: function(x["packed"], x["positions"], x["cu"], longest)

    def rectangle(function: Callable[..., Any], masked: bool = True) -> Callable[[dict[str, Any]], Any]:
        return lambda x: function(x["ids"], x["mask"] if masked else None)

    def ours(ids: Tensor, positions: Tensor, cu: Tensor, longest: int) -> Tensor:  # (T,) x 2, (B + 1,) -> (T, E)
        return _hidden(model.packed(ids, cu, longest, positions))

    def padded(ids: Tensor, mask: Tensor | None) -> Tensor:  # (B, S), (B, S) -> (B, S, E)
        return _hidden(model(ids, attention_mask=mask))

    sdpa = PaddedEncoder(model, "sdpa")
    competitors = {
        f"{OURS}, packed": tokens(ours),
        f"{OURS}, packed, compile": tokens(compiled(ours)),
        f"{OURS}, padded call": rectangle(padded),
        "eager, padded": rectangle(PaddedEncoder(model, "eager")),
        "compile + SDPA, padded": rectangle(compiled(sdpa), batch.ragged),
        "compile + torch varlen, packed": tokens(compiled(PackedEncoder(model))),
    }
    uncounted: frozenset[str] = frozenset()
    if batch.tokens <= GRAPH_TOKENS:
        first = sets[0]
        replayed = _later(lambda: graphed(lambda ids: tokens(ours)({**first, "packed": ids}), first["packed"]))
        graphs = {
            f"{OURS}, packed, CUDA graph": lambda x: replayed(x["packed"]),
            "compile + SDPA, reduce-overhead": rectangle(compiled(sdpa, mode="reduce-overhead"), batch.ragged),
        }
        competitors |= graphs
        uncounted = frozenset(graphs)  # CUDA graphs have their own memory pools
    competitors |= _transformers(model, device, dtype)

    def call(function: Callable[[dict[str, Any]], Any], i: int) -> Any:
        with torch.inference_mode():
            return function(sets[i % len(sets)])

    return Measured(
        {name: partial(call, function) for name, function in competitors.items()},
        partial(model_floor, size, batch, dtype.itemsize),
        hide_host=False,
        packed=lambda name, result: result[valid] if result.dim() == 3 else result,
        held=sum(x.numel() * x.element_size() for x in model.parameters()),
        uncounted=uncounted,
    )


def _hidden(output: Any) -> Tensor:
    hidden = output.last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


def _later(make: Callable[[], Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """A competitor that is created on its first call, so that a failure there counts as its own."""
    created = cache(make)
    return lambda x: created()(x)


def _transformers(model: ErnieMModel, device: str, dtype: torch.dtype) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """transformers' ErnieM in float32 and, for other dtypes, also with autocast to that dtype."""
    original = cache(lambda: transformers_model(model))

    def call(autocast: torch.dtype | None, x: dict[str, Any]) -> Any:
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            return original()(x["ids"], attention_mask=x["mask"]).last_hidden_state

    found: dict[str, Callable[[dict[str, Any]], Any]] = {"transformers, float32": partial(call, None)}
    if dtype != torch.float32:
        found[f"transformers, autocast {name_of(dtype)}"] = partial(call, dtype)
    return found

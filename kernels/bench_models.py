"""The competitors for a whole encoder: ours, and the baselines of `baselines.py`, on the same weights and batch.

Random weights and ids. Padding is right padding; nobody is told how much of it there is but by the mask. All run under
`inference_mode`, to the last layer's hidden states, without a pooler's product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .baselines import PackedEncoder, PaddedEncoder, transformers_model
from .bench_cases import Batch, Size, model_floor
from .bench_operations import OURS, Measured, cumulative
from .bench_timing import Call
from .model import ErnieMModel

# Up to so many tokens a CUDA graph is worth its memory: the host is slower than the GPU.
GRAPH_TOKENS = 1024
ROTATING = 4


def build(size: Size, dtype: torch.dtype, device: str) -> ErnieMModel:
    """The encoder without a pooler, with random weights drawn where it lives."""
    made = ErnieMModel(size.config, device=device, dtype=dtype, add_pooling_layer=False)
    return made.eval().requires_grad_(False)


def inputs_of(batch: Batch, vocabulary: int, device: str) -> list[dict[str, Any]]:
    """Batches of random ids, none of them special, in both layouts."""
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
    """`function` as a CUDA graph: captured once, replayed on whatever is copied into its input."""
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
    """Everyone who can run the encoder on this batch."""
    model = build(size, dtype, device)
    sets = inputs_of(batch, size.config.vocab_size, device)
    longest = max(batch.lengths)

    def packed(x: dict[str, Any]) -> Any:
        return model.packed(x["packed"], x["cu"], longest, x["positions"]).last_hidden_state

    def padded(x: dict[str, Any]) -> Any:
        return model(x["ids"], attention_mask=x["mask"]).last_hidden_state

    def on_rectangle(module: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda x: module(x["ids"], x["mask"] if batch.ragged else None)

    def on_tokens(module: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda x: module(x["packed"], x["positions"], x["cu"], longest)

    eager, sdpa, varlen = PaddedEncoder(model, "eager"), PaddedEncoder(model, "sdpa"), PackedEncoder(model)
    competitors: dict[str, Callable[[dict[str, Any]], Any]] = {
        f"{OURS}, packed": packed,
        f"{OURS}, padded call": padded,
        "eager, padded": on_rectangle(eager),
        "compile + SDPA, padded": on_rectangle(torch.compile(sdpa)),
        "compile + torch varlen, packed": on_tokens(torch.compile(varlen)),
    }
    if batch.tokens <= GRAPH_TOKENS:
        first = sets[0]
        competitors[f"{OURS}, packed, CUDA graph"] = _later(
            lambda: graphed(lambda ids: packed({**first, "packed": ids}), first["packed"]), "packed"
        )
        small = torch.compile(PaddedEncoder(model, "sdpa"), mode="reduce-overhead")
        competitors["compile + SDPA, reduce-overhead"] = on_rectangle(small)
    for label, autocast in (("transformers, float32", False), (f"transformers, autocast {_short(dtype)}", True)):
        if not (autocast and dtype == torch.float32):
            competitors[label] = _transformers(model, device, dtype if autocast else None)

    def call(function: Callable[[dict[str, Any]], Any], i: int) -> Any:
        with torch.inference_mode():
            return function(sets[i % len(sets)])

    calls: dict[str, Call] = {name: partial(call, function) for name, function in competitors.items()}
    floor = partial(model_floor, size, batch, dtype.itemsize)
    return Measured("encoder", size.name, batch.name, calls, floor, hide_host=False)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _later(make: Callable[[], Callable[[Any], Any]], key: str) -> Callable[[dict[str, Any]], Any]:
    """A competitor that is made on its first call, so that what fails there is its own failure."""
    made: list[Callable[[Any], Any]] = []

    def call(x: dict[str, Any]) -> Any:
        if not made:
            made.append(make())
        return made[0](x[key])

    return call


def _transformers(model: ErnieMModel, device: str, autocast: torch.dtype | None) -> Callable[[dict[str, Any]], Any]:
    """transformers' ErnieM, in float32, or with autocast to a dtype."""
    made: list[Any] = []

    def call(x: dict[str, Any]) -> Any:
        if not made:
            made.append(transformers_model(model))
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            return made[0](x["ids"], attention_mask=x["mask"]).last_hidden_state

    return call

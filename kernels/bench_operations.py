"""The competitors for one operation at a time: our kernel, plain torch, torch.compile, and torch's own attention.

Every case gives calls by name, each of which takes one of several sets of random inputs that rotate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import bench_cases
from .attention import packed_attention
from .bench_cases import POSITIONS, VOCABULARY, Batch, Size, Work
from .bench_timing import Call, copies_beyond_cache
from .embedding import embed
from .gelu import bias_gelu
from .layer_norm import add_layer_norm

OURS = "ours"
EPS = 1e-5


@dataclass(frozen=True)
class Measured:
    """Something to measure: what it is, the work that it is at least, and who does it. `hide_host`: see timing."""

    what: str
    size: str
    batch: str
    calls: dict[str, Call]
    floor: Callable[[float, float], float]  # (matrix rate, copy rate) -> seconds
    work: Work | None = None
    hide_host: bool = True


def cumulative(lengths: Sequence[int], device: str) -> Tensor:
    """`cu_seqlens` of sequences of these lengths."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _calls(inputs: list[tuple[Any, ...]], functions: dict[str, Callable[..., Any]]) -> dict[str, Call]:
    """Each function on one set of inputs after the other."""

    def rotate(function: Callable[..., Any]) -> Call:
        return lambda i: function(*inputs[i % len(inputs)])

    return {name: rotate(function) for name, function in functions.items()}


def _sets(make: Callable[[], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """As many sets of inputs as are not in the cache together."""
    first = make()
    size = sum(x.numel() * x.element_size() for x in first if isinstance(x, Tensor))
    return [first, *(make() for _ in range(copies_beyond_cache(size) - 1))]


def elementwise(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Iterator[Measured]:
    """bias_gelu and add_layer_norm on a batch's tokens, against plain torch and what torch.compile makes of it."""
    T, E, inner, width = batch.tokens, size.hidden, size.inner, dtype.itemsize

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    def plain_gelu(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias)

    def plain_norm(x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x + bias + residual, (E,), gamma, beta, eps)

    for what, ours, plain, make, work in (
        (
            "bias_gelu", bias_gelu, plain_gelu,
            lambda: (random(T, inner), random(inner)),
            bench_cases.bias_gelu(size, T, width),
        ),
        (
            "add_layer_norm", add_layer_norm, plain_norm,
            lambda: (random(T, E), random(E), random(T, E), random(E), random(E), EPS),
            bench_cases.add_layer_norm(size, T, width),
        ),
    ):  # fmt: skip
        functions = {OURS: ours, "eager": plain, "compile": torch.compile(plain)}
        yield Measured(what, size.name, batch.name, _calls(_sets(make), functions), work.floor, work)


def embedding(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """The embeddings of a batch's tokens, with the whole vocabulary."""
    E = size.hidden
    word, position, gamma, beta = (
        torch.randn(*shape, device=device, dtype=dtype) for shape in ((VOCABULARY, E), (POSITIONS, E), (E,), (E,))
    )
    positions = torch.cat([torch.arange(n, device=device) for n in batch.lengths])

    def plain(ids: Tensor, places: Tensor) -> Tensor:
        return F.layer_norm(F.embedding(ids, word) + F.embedding(places + 2, position), (E,), gamma, beta, EPS)

    def ours(ids: Tensor, places: Tensor) -> Tensor:
        return embed(ids, places, word, position, gamma, beta, EPS)

    # Other ids each time: rows of a table that is larger than the cache.
    inputs = [(torch.randint(VOCABULARY, (batch.tokens,), device=device), positions) for _ in range(8)]
    work = bench_cases.embed(size, batch, dtype.itemsize)
    functions = {OURS: ours, "eager": plain, "compile": torch.compile(plain)}
    return Measured("embed", size.name, batch.name, _calls(inputs, functions), work.floor, work)


def attention(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """Attention: torch's own over packed sequences, and its dense backends on the rectangle, with a mask if ragged."""
    T, H, longest = batch.tokens, size.heads, max(batch.lengths)
    cu = cumulative(batch.lengths, device)
    rows = len(batch.lengths)
    lengths = torch.tensor(batch.lengths, device=device)
    mask = (torch.arange(batch.padded, device=device) < lengths[:, None])[:, None, None, :] if batch.ragged else None

    def make() -> tuple[Tensor, Tensor]:
        qkv = torch.randn(T, 3, H, 64, device=device, dtype=dtype)
        # The rectangle: rows of random numbers, padding too, which the mask takes out.
        dense = torch.randn(rows, batch.padded, 3, H, 64, device=device, dtype=dtype) if batch.ragged else qkv
        return qkv, dense.view(rows, batch.padded, 3, H, 64).permute(2, 0, 3, 1, 4)

    def varlen(qkv: Tensor, _: Tensor) -> Any:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = qkv.unbind(1)
        return varlen_attn(q, k, v, cu, cu, longest, longest)

    def dense(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def call(_: Tensor, rectangle: Tensor) -> Tensor:
            with sdpa_kernel([getattr(SDPBackend, backend)]):
                q, k, v = rectangle
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        return call

    functions: dict[str, Callable[..., Any]] = {
        OURS: lambda qkv, _: packed_attention(qkv, cu, longest),
        "torch varlen": varlen,
        "SDPA flash": dense("FLASH_ATTENTION"),
        "SDPA cuDNN": dense("CUDNN_ATTENTION"),
        "SDPA efficient": dense("EFFICIENT_ATTENTION"),
        "SDPA math": dense("MATH"),
    }
    work = bench_cases.attention(size, batch, dtype.itemsize)
    return Measured("packed_attention", size.name, batch.name, _calls(_sets(make), functions), work.floor, work)


def operations(size: Size, batch: Batch, dtype: torch.dtype, device: str, wanted: set[str]) -> Iterator[Measured]:
    """All operations of `wanted` on one batch."""
    if wanted & {"bias_gelu", "add_layer_norm"}:
        yield from (case for case in elementwise(size, batch, dtype, device) if case.what in wanted)
    if "embed" in wanted:
        yield embedding(size, batch, dtype, device)
    if "packed_attention" in wanted:
        yield attention(size, batch, dtype, device)


OPERATIONS = ("bias_gelu", "add_layer_norm", "embed", "packed_attention")

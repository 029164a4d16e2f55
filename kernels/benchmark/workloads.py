"""The competitors for single operations: our kernel, plain torch, torch.compile, and torch's own attention.

Each case returns calls by name, which take their random inputs from several rotating sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import packed_attention
from ..attention_groups import group_attention
from ..embedding import embed
from ..first_token import first_token_attention
from ..gelu import bias_gelu
from ..layer_norm import add_layer_norm
from . import work as work_of
from .attention_gradient_workloads import pairs
from .baselines import varlen_attention
from .gradient_workloads import GRADIENTS
from .loss_workloads import LOSSES
from .measured import EPS, HEAD, OURS, Maker, Measured, case, compiled, cumulative, padding
from .work import POSITIONS, VOCABULARY, Batch, Size


def gelu_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """bias_gelu on a batch's tokens, next to plain torch and torch.compile."""
    T, intermediate = batch.tokens, size.intermediate

    def plain(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias)

    def make() -> tuple[Tensor, Tensor]:
        x, bias = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((T, intermediate), (intermediate,)))
        return x, bias

    work = work_of.bias_gelu(size, T, dtype.itemsize)
    functions = {OURS: bias_gelu, "eager": plain, "compile": compiled(plain)}
    return case(make, functions, work, T * intermediate * dtype.itemsize)


def layer_norm_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """add_layer_norm on a batch's tokens, next to plain torch and torch.compile."""
    T, E = batch.tokens, size.hidden

    def plain(x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.layer_norm(x + bias + residual, (E,), gamma, beta, EPS)

    def ours(x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        return add_layer_norm(x, bias, residual, gamma, beta, EPS)

    def make() -> tuple[Tensor, ...]:
        shapes = ((T, E), (E,), (T, E), (E,), (E,))
        return tuple(torch.randn(*shape, device=device, dtype=dtype) for shape in shapes)

    work = work_of.add_layer_norm(size, T, dtype.itemsize)
    functions = {OURS: ours, "eager": plain, "compile": compiled(plain)}
    return case(make, functions, work, T * E * dtype.itemsize, lambda *x: (*x, EPS))


def embed_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """The embeddings of a batch's tokens with the whole vocabulary; each set of inputs has other ids."""
    T, E = batch.tokens, size.hidden
    word, position, gamma, beta = (
        torch.randn(*shape, device=device, dtype=dtype) for shape in ((VOCABULARY, E), (POSITIONS, E), (E,), (E,))
    )
    positions = torch.cat([torch.arange(n, device=device) for n in batch.lengths])

    def plain(ids: Tensor, places: Tensor) -> Tensor:
        return F.layer_norm(F.embedding(ids, word) + F.embedding(places + 2, position), (E,), gamma, beta, EPS)

    def ours(ids: Tensor, places: Tensor) -> Tensor:
        return embed(ids, places, word, position, gamma, beta, EPS)

    def make() -> tuple[Tensor, Tensor]:
        return torch.randint(VOCABULARY, (T,), device=device), positions

    work = work_of.embed(size, batch, dtype.itemsize)
    functions = {OURS: ours, "eager": plain, "compile": compiled(plain)}
    return case(make, functions, work, T * E * dtype.itemsize, lambda *x: (*x, word, position, gamma, beta, EPS))


def attention_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """Packed attention, next to torch's own and to its dense backends on padded rows (masked if ragged)."""
    T, H, longest = batch.tokens, size.heads, max(batch.lengths)
    B, S = len(batch.lengths), batch.padded
    cu, (valid, mask) = cumulative(batch.lengths, device), padding(batch, device)

    def make() -> tuple[Tensor, Tensor]:
        qkv = torch.randn(T, 3, H, HEAD, device=device, dtype=dtype)
        if not batch.ragged:
            return qkv, qkv.view(B, S, 3, H, HEAD).permute(2, 0, 3, 1, 4)
        # Padding holds random numbers too, which the mask excludes.
        rectangle = torch.randn(B, S, 3, H, HEAD, device=device, dtype=dtype)
        rectangle[valid] = qkv
        return qkv, rectangle.permute(2, 0, 3, 1, 4)

    def dense(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def call(_: Tensor, rectangle: Tensor) -> Tensor:
            with sdpa_kernel([getattr(SDPBackend, backend)]):
                q, k, v = rectangle
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        return call

    functions: dict[str, Callable[..., Any]] = {
        OURS: lambda qkv, _: packed_attention(qkv, cu, longest),
        "torch varlen": lambda qkv, _: varlen_attention(qkv, cu, longest),
        "SDPA flash": dense("FLASH_ATTENTION"),
        "SDPA cuDNN": dense("CUDNN_ATTENTION"),
        "SDPA efficient": dense("EFFICIENT_ATTENTION"),
        "SDPA math": dense("MATH"),
    }
    work = work_of.packed_attention(size, batch, dtype.itemsize)
    read = 3 * T * size.hidden * dtype.itemsize
    return case(make, functions, work, int(work.bytes) - read, lambda qkv, _: (qkv, cu), unpadded(valid))


def group_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """group_attention on pairs, next to torch's own attention on padded rows under their mask."""
    (groups, mask), H, longest = pairs(batch, device), size.heads, max(batch.lengths)
    valid, _ = padding(batch, device)

    def make() -> tuple[Tensor, Tensor]:
        qkv = torch.randn(batch.tokens, 3, H, HEAD, device=device, dtype=dtype)
        rectangle = torch.zeros(*valid.shape, 3, H, HEAD, device=device, dtype=dtype).index_put((valid,), qkv)
        return qkv, rectangle.permute(2, 0, 3, 1, 4)

    def sdpa(_: Tensor, rectangle: Tensor) -> Tensor:
        q, k, v = rectangle
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    work = work_of.group_attention(size, batch, dtype.itemsize)
    functions = {OURS: lambda qkv, _: group_attention(qkv, groups, longest), "SDPA, padded": sdpa}
    written = batch.tokens * size.hidden * dtype.itemsize
    return case(make, functions, work, written, lambda qkv, _: (qkv, groups), unpadded(valid))


def unpadded(valid: Tensor) -> Callable[[str, Tensor], Tensor]:  # (B, S)
    """Converts padded results (B, H, S, D) to packed ones."""
    return lambda name, result: result.transpose(1, 2)[valid] if result.dim() == 4 else result


def first_token_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """Attention for first tokens only, next to torch's own with one query per padded row."""
    T, H = batch.tokens, size.heads
    B, S = len(batch.lengths), batch.padded
    cu, (valid, mask) = cumulative(batch.lengths, device), padding(batch, device)

    def make() -> tuple[Tensor, Tensor, Tensor]:
        q, kv = (torch.randn(*shape, H, HEAD, device=device, dtype=dtype) for shape in ((B,), (T, 2)))
        rectangle = torch.randn(B, S, 2, H, HEAD, device=device, dtype=dtype)
        rectangle[valid] = kv
        return q, kv, rectangle.permute(2, 0, 3, 1, 4)

    def sdpa(q: Tensor, _: Tensor, rectangle: Tensor) -> Tensor:
        k, v = rectangle
        return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask)[:, :, 0]

    def ours(q: Tensor, kv: Tensor, _: Tensor) -> Tensor:
        return first_token_attention(q, kv, cu)

    work = work_of.first_token_attention(size, batch, dtype.itemsize)
    functions = {OURS: ours, "SDPA, padded": sdpa, "SDPA, padded, compile": compiled(sdpa)}
    return case(make, functions, work, B * size.hidden * dtype.itemsize, lambda q, kv, _: (q, kv, cu))


WORKLOADS: dict[str, Maker] = {
    "packed_attention": attention_case,
    "group_attention": group_case,
    "first_token_attention": first_token_case,
    "bias_gelu": gelu_case,
    "add_layer_norm": layer_norm_case,
    "embed": embed_case,
    **GRADIENTS,
    **LOSSES,
}

"""The competitors for the gradients of a large vocabulary's loss: our kernel, plain torch, torch.compile.

    eager           the same formula on all rows at once: all logits exist, in float32, where ours keeps a part
    eager, chunked  autograd through `F.cross_entropy` of CHUNK rows at a time, which adds to the gradients
    torch, chunked  `F.linear_cross_entropy`, in versions of torch that have it, with its own choice of chunks

All compute only the rows that have a label.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear_cross_entropy import linear_cross_entropy_vjp
from . import work as work_of
from .measured import OURS, Maker, Measured, case, compiled, joined
from .work import VOCABULARY, Batch, Size

CHUNK = 1024


def chunk_loss(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """The sum of a chunk's losses, with logits in float32 as transformers computes them."""
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="sum")


def loss_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """linear_cross_entropy_vjp of a batch's tokens, of which one in seven has a label."""
    T, E, V = batch.tokens, size.hidden, VOCABULARY
    weight = torch.randn(V, E, device=device, dtype=dtype) / E**0.5
    bias, d_loss = torch.randn(V, device=device, dtype=dtype), torch.ones((), device=device, dtype=dtype)
    rows = torch.arange(0, T, work_of.LABELLED, device=device)

    def plain(d_loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        own, h = labels[rows], hidden[rows]
        probs = F.linear(h, weight, bias).float().softmax(-1)
        dz = probs.scatter_add(1, own[:, None], -torch.ones_like(probs[:, :1]))
        dz = (dz * (d_loss.float() / len(rows))).to(hidden.dtype)
        return torch.zeros_like(hidden).index_copy(0, rows, dz @ weight), dz.T @ h, dz.sum(0)

    def chunked(loss: Any) -> Any:
        def gradients(d_loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Any:
            (h, *table), scale = leaves(hidden[rows], weight, bias), d_loss.float() / len(rows)
            for part, own in zip(h.split(CHUNK), labels[rows].split(CHUNK), strict=True):
                loss(part, *table, own).backward(scale)
            return torch.zeros_like(hidden).index_copy(0, rows, h.grad), *(x.grad for x in table)

        return gradients

    def torchs_own(d_loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Any:
        h, w, b = given = leaves(hidden[rows], weight, bias)
        options = torch.nn.LinearCrossEntropyOptions()
        loss = F.linear_cross_entropy(h, w, labels[rows], linear_bias=b, options=options)
        dh, *others = torch.autograd.grad(loss, given, d_loss.to(loss.dtype))
        return torch.zeros_like(hidden).index_copy(0, rows, dh), *others

    def make() -> tuple[Any, ...]:
        labels = torch.full((T,), -100, device=device)
        labels[rows] = torch.randint(V, (len(rows),), device=device)
        return d_loss, torch.randn(T, E, device=device, dtype=dtype), weight, bias, labels

    width = dtype.itemsize
    work = work_of.linear_cross_entropy_vjp(size, T, width)
    functions = {
        OURS: linear_cross_entropy_vjp,
        "eager": plain,
        "compile": compiled(plain),
        "eager, chunked": chunked(chunk_loss),
        "compile, chunked": chunked(compiled(chunk_loss)),
        "torch, chunked": torchs_own,
    }
    return case(make, functions, work, (T * E + V * E + V) * width, packed=joined)


def leaves(*tensors: Tensor) -> list[Any]:
    """Tensors with the same numbers, whose gradients are asked for."""
    return [x.detach().requires_grad_() for x in tensors]


LOSSES: dict[str, Maker] = {"linear_cross_entropy_vjp": loss_case}

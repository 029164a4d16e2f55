"""The competitors for the gradients of a large vocabulary's loss: our kernel, plain torch, torch.compile.

Plain torch computes the same formula on all rows at once. It keeps all logits, in float32, where ours keeps a part.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear_cross_entropy import linear_cross_entropy_vjp
from . import work as work_of
from .gradient_workloads import case
from .measured import Maker, Measured
from .work import VOCABULARY, Batch, Size


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

    def make() -> tuple[Any, ...]:
        labels = torch.full((T,), -100, device=device)
        labels[rows] = torch.randint(V, (len(rows),), device=device)
        return d_loss, torch.randn(T, E, device=device, dtype=dtype), weight, bias, labels

    width = dtype.itemsize
    work = work_of.linear_cross_entropy_vjp(size, T, width)
    return case(make, linear_cross_entropy_vjp, plain, work, (T * E + V * E + V) * width)


LOSSES: dict[str, Maker] = {"linear_cross_entropy_vjp": loss_case}

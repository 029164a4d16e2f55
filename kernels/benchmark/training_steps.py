"""The competitors for a training step: forward and backward of a masked language model, without the optimizer.

A step returns the gradients of all parameters for a batch in which one token in seven has a label. All competitors have
the same weights, and compute logits only where there is a label. Nothing is dropped, so that the gradients can be
compared. torch.compile compiles the forward, and the backward with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from ..linear_cross_entropy import linear_cross_entropy
from ..words import ErnieMForMaskedLM, Rows
from .baselines import PackedEncoder, PaddedEncoder
from .encoders import inputs_of
from .measured import OURS, Measured, compiled
from .work import LABELLED, Batch, Size, training_floor

JOINED = ("q_proj", "k_proj", "v_proj")


class BaselineLoss(Module):
    """The loss of masked words on top of a baseline's encoder, in plain torch."""

    def __init__(self, model: ErnieMForMaskedLM, encoder: Module) -> None:
        super().__init__()
        self.encoder, self.words, self.head = encoder, model.ernie_m.embeddings.word_embeddings, model.cls.predictions

    def forward(self, inputs: tuple[Any, ...], rows: Tensor, labels: Tensor) -> Tensor:  # ..., (M,), (M,) -> ()
        """rows: where the labelled tokens are among the encoder's rows. Logits are float32, as in transformers."""
        hidden = self.encoder(*inputs)
        hidden = hidden.reshape(-1, hidden.shape[-1])[rows]
        top = self.head.transform.LayerNorm(F.gelu(self.head.transform.dense(hidden)))
        return F.cross_entropy(F.linear(top, self.words.weight, self.head.bias).float(), labels)


def with_labels(inputs: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """The encoder's inputs, and where the labelled tokens are: among the packed tokens and in the rectangle.

    labels: (M,). padded_labels: (B, S), -100 where there is none.
    """
    ids, mask = inputs["packed"], inputs["mask"]
    rows = torch.arange(0, len(ids), LABELLED, device=ids.device)
    places, labels = mask.flatten().nonzero()[:, 0][rows], (ids[rows] + 1) % vocabulary
    padded = torch.full_like(mask.flatten(), -100).index_copy(0, places, labels).view_as(mask)
    return {**inputs, "rows": rows, "places": places, "labels": labels, "padded_labels": padded}


def training_step(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """All competitors for a training step on this batch."""
    model = ErnieMForMaskedLM(size.config, device=device, dtype=dtype).eval()
    encoder, vocabulary, longest = model.ernie_m, size.config.vocab_size, max(batch.lengths)
    sets = [with_labels(x, vocabulary) for x in inputs_of(batch, vocabulary, device)]

    def ours(x: dict[str, Any]) -> Tensor:
        hidden = encoder.packed(x["packed"], x["cu"], longest, x["positions"]).last_hidden_state
        assert hidden is not None
        top, bias = model.cls(hidden[x["rows"]], Rows(x["rows"], 1, len(hidden)))
        return linear_cross_entropy(top, encoder.embeddings.word_embeddings.weight, bias, x["labels"])

    def padded_call(x: dict[str, Any]) -> Any:
        return model(x["ids"], x["mask"], labels=x["padded_labels"]).loss

    def padded(loss: Any, masked: bool = True) -> Callable[[dict[str, Any]], Any]:
        return lambda x: loss((x["ids"], x["mask"] if masked else None), x["places"], x["labels"])

    def packed(loss: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda x: loss((x["packed"], x["positions"], x["cu"], longest), x["rows"], x["labels"])

    eager, sdpa = (BaselineLoss(model, PaddedEncoder(encoder, attend)) for attend in ("eager", "sdpa"))
    varlen = BaselineLoss(model, PackedEncoder(encoder).requires_grad_())
    competitors = {
        f"{OURS}, packed": (ours, model),
        f"{OURS}, padded call": (padded_call, model),
        "eager, padded": (padded(eager), eager),
        "compile + SDPA, padded": (padded(compiled(sdpa), batch.ragged), sdpa),
        "compile + torch varlen, packed": (packed(compiled(varlen)), varlen),
    }

    def step(loss: Callable[[dict[str, Any]], Any], parameters: list[Tensor], i: int) -> dict[int, Tensor]:
        gradients = torch.autograd.grad(loss(sets[i % len(sets)]), parameters)
        return {id(x): gradient for x, gradient in zip(parameters, gradients, strict=True)}

    # One baseline has queries, keys and values in one matrix, whose gradient is not compared.
    compared = [id(x) for name, x in model.named_parameters() if not name.rpartition(".")[0].endswith(JOINED)]
    return Measured(
        {name: partial(step, loss, list(module.parameters())) for name, (loss, module) in competitors.items()},
        partial(training_floor, size, batch, dtype.itemsize),
        hide_host=False,
        packed=lambda name, result: torch.cat([result[i].flatten().float() for i in compared]),
        held=sum(x.numel() * x.element_size() for x in model.parameters()),
    )

"""What the kernels are measured against: the same encoder, with the same weights, as others compute it.

    PaddedEncoder("eager")  transformers' operations in plain torch, on padding: one product each for queries, keys and
                            values, a mask that is added, softmax and LayerNorm in the model's dtype
    PaddedEncoder("sdpa")   the same with torch's scaled_dot_product_attention
    PackedEncoder           tokens alone, one product for queries, keys and values, and torch's attention over packed
                            sequences (torch.nn.attention.varlen): what torch itself offers for ragged batches

transformers' own ErnieM cannot serve in half precision (its mask stays float32, and the sum with it), so "eager" is
our transcription; `transformers_model` is the original, for float32 and autocast. All stop after the encoder.

Source: transformers 4.40.2, `ErnieMSelfAttention`, `ErnieMEncoderLayer`, `ErnieMEmbeddings`, for order and masks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, ModuleList, Parameter

from ernie_m.reference.embedding import POSITION_OFFSET

from ..encoder import EncoderLayer
from ..model import ErnieMModel


def _sharing(weight: Tensor, bias: Tensor) -> Linear:
    """A linear map on these very numbers, no copies."""
    linear = Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = Parameter(weight.detach(), requires_grad=False)
    linear.bias = Parameter(bias.detach(), requires_grad=False)
    return linear


class _Layer(Module):
    """The parts that the baselines' layers share; `attention` is what they differ in."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.head_size = layer.self_attn.self_attn.head_size
        self.out_proj = layer.self_attn.out_proj
        self.linear1, self.linear2 = layer.linear1, layer.linear2
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def after_attention(self, x: Tensor, context: Tensor) -> Tensor:  # (..., E), (..., E) -> (..., E)
        """The rest of a layer, operation by operation."""
        x = self.norm1(x + self.out_proj(context))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class PaddedLayer(_Layer):
    """A layer on the rectangle."""

    def __init__(self, layer: EncoderLayer, attend: str) -> None:
        super().__init__(layer)
        fused = layer.self_attn.self_attn
        self.q, self.k, self.v = (_sharing(fused.weight[i], fused.bias[i]) for i in range(3))
        self.attend = attend

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # (B, S, E), (B, 1, 1, S) -> (B, S, E)
        """`mask` is added to the scores."""
        B, S, E = x.shape
        q, k, v = (y.view(B, S, -1, self.head_size).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x)))
        if self.attend == "sdpa":
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_size)
            context = (scores if mask is None else scores + mask).softmax(dim=-1) @ v
        return self.after_attention(x, context.transpose(1, 2).reshape(B, S, E))


class PackedLayer(_Layer):
    """A layer on tokens alone."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__(layer)
        fused = layer.self_attn.self_attn
        self.qkv = _sharing(fused.weight.flatten(0, 1), fused.bias.flatten())

    def forward(self, x: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:  # (T, E), (B + 1,) -> (T, E)
        """Attention within each sequence, by torch."""
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = self.qkv(x).view(x.shape[0], 3, -1, self.head_size).unbind(1)
        context = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
        assert isinstance(context, Tensor)
        return self.after_attention(x, context.flatten(1))


class _Encoder(Module):
    """Embeddings, and layers on top."""

    def __init__(self, model: ErnieMModel, layers: list[Module]) -> None:
        super().__init__()
        self.word, self.position = model.embeddings.word_embeddings, model.embeddings.position_embeddings
        self.norm: LayerNorm = model.embeddings.layer_norm
        self.layers = ModuleList(layers)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Each table's rows, their sum, its normalisation."""
        return self.norm(self.word(ids) + self.position(positions + POSITION_OFFSET))


class PaddedEncoder(_Encoder):
    """The encoder on the rectangle; `attend` is "eager" or "sdpa"."""

    def __init__(self, model: ErnieMModel, attend: str) -> None:
        super().__init__(model, [PaddedLayer(layer, attend) for layer in _layers(model)])

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:  # (B, S), (B, S) of 0 and 1 -> (B, S, E)
        """`mask` None: no padding, and nothing to add."""
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.embed(ids, positions)
        added = None if mask is None else (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, added)
        return x


class PackedEncoder(_Encoder):
    """The encoder on tokens alone."""

    def __init__(self, model: ErnieMModel) -> None:
        super().__init__(model, [PackedLayer(layer) for layer in _layers(model)])

    def forward(self, ids: Tensor, positions: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:  # (T,) -> (T, E)
        """Arguments as of `ErnieMModel.packed`."""
        x = self.embed(ids, positions)
        for layer in self.layers:
            x = layer(x, cu_seqlens, longest)
        return x


def _layers(model: ErnieMModel) -> list[EncoderLayer]:
    return [layer for layer in model.encoder.layers if isinstance(layer, EncoderLayer)]


def transformers_model(model: ErnieMModel) -> Any:
    """transformers' ErnieM with the same weights in float32, its pooler left out as it is out of what is measured.

    Raises ImportError if there is none that has it.
    """
    from transformers import ErnieMConfig, ErnieMModel

    from ernie_m.reference.config import ErnieMConfig as Ours

    fields = {name: value for name, value in Ours.to_dict(model.config).items() if name != "architectures"}
    with torch.device("meta"):
        made = ErnieMModel(ErnieMConfig(**fields), add_pooling_layer=False)
    weights = {name: x.float() for name, x in model.state_dict().items() if not name.startswith("pooler.")}
    made.load_state_dict(weights, assign=True)
    return made.eval()

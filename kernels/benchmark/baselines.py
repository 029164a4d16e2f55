"""The baselines: other implementations of the same encoder, with the same weights.

    PaddedEncoder("eager")  transformers' operations in plain torch on padded batches: separate products for queries,
                            keys and values, an additive mask, softmax and LayerNorm in the model's dtype
    PaddedEncoder("sdpa")   the same with torch's scaled_dot_product_attention
    PackedEncoder           real tokens only, one product for queries, keys and values, and torch's own attention for
                            packed ragged batches (torch.nn.attention.varlen)

transformers' own ErnieM does not run in half precision (its mask and the masked scores stay float32), so "eager" is our
transcription; `transformers_model` is the original, for float32 and autocast. All stop after the encoder.

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


def pin_varlen() -> str:
    """Make torch's `varlen_attn` use its flash backend, and return the name of the backend it uses.

    Left to itself, torch may take cuDNN's, which has been seen to be several times slower.
    """
    from torch.nn.attention import varlen

    if not hasattr(varlen, "_should_use_cudnn"):
        return "torch's choice"
    varlen._should_use_cudnn = lambda device_index: False  # type: ignore[assignment]
    return "flash"


def varlen_attention(qkv: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:  # (T, 3, H, D), (B + 1,) -> (T, H, D)
    """torch's own attention for packed sequences."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.unbind(1)
    context = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
    assert isinstance(context, Tensor)
    return context


def _joined(parts: list[Linear]) -> Linear:
    """One linear map with the outputs of several; it holds copies of their weights."""
    weight, bias = (torch.cat([getattr(part, name).detach() for part in parts]) for name in ("weight", "bias"))
    linear = Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = (Parameter(x, requires_grad=False) for x in (weight, bias))
    return linear


class _Layer(Module):
    """The parts that the baselines' layers share; they differ in attention."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.head_size = layer.self_attn.self_attn.head_size
        self.out_proj = layer.self_attn.out_proj
        self.linear1, self.linear2 = layer.linear1, layer.linear2
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def after_attention(self, x: Tensor, context: Tensor) -> Tensor:  # (..., E), (..., E) -> (..., E)
        """The rest of the layer, one operation at a time."""
        x = self.norm1(x + self.out_proj(context))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class PaddedLayer(_Layer):
    """A layer on a padded batch."""

    def __init__(self, layer: EncoderLayer, attend: str) -> None:
        super().__init__(layer)
        attention = layer.self_attn.self_attn
        self.q, self.k, self.v = attention.q_proj, attention.k_proj, attention.v_proj
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
    """A layer on packed tokens."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__(layer)
        attention = layer.self_attn.self_attn
        self.qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj])

    def forward(self, x: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:  # (T, E), (B + 1,) -> (T, E)
        """Attention within each sequence by torch's own."""
        qkv = self.qkv(x).view(x.shape[0], 3, -1, self.head_size)
        return self.after_attention(x, varlen_attention(qkv, cu_seqlens, longest).flatten(1))


class _Encoder(Module):
    """Embeddings and layers."""

    def __init__(self, model: ErnieMModel, layers: list[Module]) -> None:
        super().__init__()
        self.word, self.position = model.embeddings.word_embeddings, model.embeddings.position_embeddings
        self.norm: LayerNorm = model.embeddings.layer_norm
        self.layers = ModuleList(layers)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Look up both tables' rows, add and normalise them."""
        return self.norm(self.word(ids) + self.position(positions + POSITION_OFFSET))


class PaddedEncoder(_Encoder):
    """The encoder on padded batches; `attend` is "eager" or "sdpa"."""

    def __init__(self, model: ErnieMModel, attend: str) -> None:
        super().__init__(model, [PaddedLayer(layer, attend) for layer in _layers(model)])

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:  # (B, S), (B, S) of 0 and 1 -> (B, S, E)
        """`mask` None: no padding, so no mask is added."""
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.embed(ids, positions)
        added = None if mask is None else (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, added)
        return x


class PackedEncoder(_Encoder):
    """The encoder on packed tokens."""

    def __init__(self, model: ErnieMModel) -> None:
        super().__init__(model, [PackedLayer(layer) for layer in _layers(model)])

    def forward(self, ids: Tensor, positions: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:  # (T,) -> (T, E)
        """Encode T packed tokens, of which a sequence has at most `longest`."""
        x = self.embed(ids, positions)
        for layer in self.layers:
            x = layer(x, cu_seqlens, longest)
        return x


def _layers(model: ErnieMModel) -> list[EncoderLayer]:
    return [layer for layer in model.encoder.layers if isinstance(layer, EncoderLayer)]


def transformers_model(model: ErnieMModel) -> Any:
    """transformers' ErnieM with the same weights in float32, without the pooler, which is not timed.

    Raises ImportError if transformers is missing or has no ErnieM.
    """
    from transformers import ErnieMConfig, ErnieMModel

    from ernie_m.reference.config import ErnieMConfig as Ours

    fields = {name: value for name, value in Ours.to_dict(model.config).items() if name != "architectures"}
    with torch.device("meta"):
        original = ErnieMModel(ErnieMConfig(**fields), add_pooling_layer=False)
    weights = {name: x.float() for name, x in model.state_dict().items() if not name.startswith("pooler.")}
    original.load_state_dict(weights, assign=True)
    return original.eval()

"""The reference: every layer of ERNIE-M in NumPy, written to be read.

The letters used in shapes, here and in the other packages:

    B  batch rows         H  attention heads       V  vocabulary
    S  padded length      D  size of one head      C  classes, or choices
    T  packed tokens      E  hidden size           L  layers
                          F  feed-forward size

Read in this order: `embedding`, `layer_norm`, `softmax`, `attention`, `gelu`, `encoder`, `model`, `heads`, `losses`,
`linear_cross_entropy`; then the same pages for the gradients that stand beside each function as its `_vjp`
(`gradients`, `dropout`, `training`), and what the model is pretrained with (`objectives`, `attention_groups`); then how
padding is skipped (`padding`, `inputs`), how to look inside a pass (`trace`, `compare`), and where weights come from
(`parameters`, `checkpoint`).
"""

from .compat import quiet_interrupt  # noqa: F401  # isort: skip  # first: see there
from .activations import activation
from .attention import attention, attention_vjp, packed_attention, packed_attention_vjp
from .attention_groups import group_attention, group_attention_vjp
from .compare import compare
from .compat import MOVED, announce
from .config import ErnieMConfig
from .dropout import dropout, dropout_vjp
from .dropped_layer_norm import dropped_layer_norm, dropped_layer_norm_vjp
from .embedding import embed, embed_vjp
from .erf import erf
from .first_token import first_token_attention, first_token_attention_vjp
from .gelu import bias_gelu, bias_gelu_vjp, gelu, gelu_vjp
from .gradients import value_and_gradients, value_and_vjp
from .heads import (
    ErnieMForInformationExtraction,
    ErnieMForMaskedLM,
    ErnieMForMultipleChoice,
    ErnieMForQuestionAnswering,
    ErnieMForSequenceClassification,
    ErnieMForTokenClassification,
)
from .layer_norm import add_layer_norm, add_layer_norm_vjp, layer_norm, layer_norm_vjp
from .linear import linear, linear_vjp
from .linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_vjp
from .model import ErnieMModel
from .padding import cu_seqlens, pad, token_indices, unpad
from .slopes import activation_vjp
from .softmax import softmax, softmax_vjp
from .trace import trace
from .trace_torch import trace_torch

__all__ = [
    "ErnieMConfig",
    "ErnieMForInformationExtraction",
    "ErnieMForMaskedLM",
    "ErnieMForMultipleChoice",
    "ErnieMForQuestionAnswering",
    "ErnieMForSequenceClassification",
    "ErnieMForTokenClassification",
    "ErnieMModel",
    "activation",
    "activation_vjp",
    "add_layer_norm",
    "add_layer_norm_vjp",
    "attention",
    "attention_vjp",
    "bias_gelu",
    "bias_gelu_vjp",
    "compare",
    "cu_seqlens",
    "dropout",
    "dropout_vjp",
    "dropped_layer_norm",
    "dropped_layer_norm_vjp",
    "embed",
    "embed_vjp",
    "erf",
    "first_token_attention",
    "first_token_attention_vjp",
    "gelu",
    "gelu_vjp",
    "group_attention",
    "group_attention_vjp",
    "layer_norm",
    "layer_norm_vjp",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_vjp",
    "linear_vjp",
    "packed_attention",
    "packed_attention_vjp",
    "pad",
    "softmax",
    "softmax_vjp",
    "token_indices",
    "trace",
    "trace_torch",
    "unpad",
    "value_and_gradients",
    "value_and_vjp",
]

announce(__name__, MOVED)

"""The reference: every layer of ERNIE-M in NumPy, written to be read.

The letters used in shapes, here and in the other packages:

    B  batch rows         H  attention heads       V  vocabulary
    S  padded length      D  size of one head      C  classes, or choices
    T  packed tokens      E  hidden size           L  layers
                          F  feed-forward size

Read in this order: `embedding`, `layer_norm`, `softmax`, `attention`, `gelu`, `encoder`, `model`, `heads`, `losses`;
then how padding is skipped (`padding`, `inputs`), how to look inside a forward pass (`trace`, `compare`), and where
weights come from (`parameters`, `checkpoint`).
"""

from .compat import quiet_interrupt  # noqa: F401  # isort: skip  # first: see there
from .activations import activation
from .attention import attention, packed_attention
from .compare import compare
from .compat import MOVED, announce
from .config import ErnieMConfig
from .dropout import dropout
from .embedding import embed
from .erf import erf
from .first_token import first_token_attention
from .gelu import bias_gelu, gelu
from .heads import (
    ErnieMForInformationExtraction,
    ErnieMForMultipleChoice,
    ErnieMForQuestionAnswering,
    ErnieMForSequenceClassification,
    ErnieMForTokenClassification,
)
from .layer_norm import add_layer_norm, layer_norm
from .linear import linear
from .model import ErnieMModel
from .padding import cu_seqlens, pad, token_indices, unpad
from .softmax import softmax
from .trace import trace, trace_torch

__all__ = [
    "ErnieMConfig",
    "ErnieMForInformationExtraction",
    "ErnieMForMultipleChoice",
    "ErnieMForQuestionAnswering",
    "ErnieMForSequenceClassification",
    "ErnieMForTokenClassification",
    "ErnieMModel",
    "activation",
    "add_layer_norm",
    "attention",
    "bias_gelu",
    "compare",
    "cu_seqlens",
    "dropout",
    "embed",
    "erf",
    "first_token_attention",
    "gelu",
    "layer_norm",
    "linear",
    "packed_attention",
    "pad",
    "softmax",
    "token_indices",
    "trace",
    "trace_torch",
    "unpad",
]

announce(__name__, MOVED)

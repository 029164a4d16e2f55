"""The same forward pass in Triton: each operation is the twin of one in `ernie_m.reference`, with torch models on top.

Twins share a file name: open `reference/attention.py` and `kernels/attention.py` side by side. Shapes use the letters
of `ernie_m.reference`; in kernels, names begin with i_ (program ids), o_ (offsets), m_ (masks), p_ (pointers) and
b_ (blocks).

Read in this order: `gelu`, `layer_norm`, `embedding`, `attention`, `attention_groups`, `first_token`, `dropout`; then
how the model stays packed (`padding`, `encoder`, `model`), and how it is checked against the reference (`checking/`:
`bounds`, `check`, `verify`).

    python -m ernie_m.kernels verify | bench | compile | check
"""

import ernie_m.reference  # noqa: F401  # isort: skip  # before torch: see its `compat.quiet_interrupt`

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    raise ImportError("ernie_m.kernels needs torch: pip install 'ernie-m[kernels]'", name=__name__) from None

from ernie_m.reference.compat import announce

from .attention import packed_attention
from .attention_groups import group_attention
from .attention_groups_vjp import group_attention_vjp
from .attention_vjp import packed_attention_vjp
from .checking.check import check
from .checking.operations import Operation
from .checking.report import Failure, Report
from .dropout import dropout_vjp
from .dropped_layer_norm import dropped_layer_norm_vjp
from .embedding import embed, embed_vjp
from .first_token import first_token_attention, first_token_attention_vjp
from .gelu import bias_gelu, bias_gelu_vjp
from .heads import (
    ErnieMForInformationExtraction,
    ErnieMForMultipleChoice,
    ErnieMForQuestionAnswering,
    ErnieMForSequenceClassification,
    ErnieMForTokenClassification,
)
from .layer_norm import add_layer_norm, add_layer_norm_vjp
from .linear_cross_entropy import linear_cross_entropy_vjp
from .model import ErnieMModel
from .padding import cu_seqlens, pad, token_indices, unpad
from .runtime.moved import MOVED
from .words import ErnieMForMaskedLM

__all__ = [
    "ErnieMForInformationExtraction",
    "ErnieMForMaskedLM",
    "ErnieMForMultipleChoice",
    "ErnieMForQuestionAnswering",
    "ErnieMForSequenceClassification",
    "ErnieMForTokenClassification",
    "ErnieMModel",
    "Failure",
    "Operation",
    "Report",
    "add_layer_norm",
    "add_layer_norm_vjp",
    "bias_gelu",
    "bias_gelu_vjp",
    "check",
    "cu_seqlens",
    "dropout_vjp",
    "dropped_layer_norm_vjp",
    "embed",
    "embed_vjp",
    "first_token_attention",
    "first_token_attention_vjp",
    "group_attention",
    "group_attention_vjp",
    "linear_cross_entropy_vjp",
    "packed_attention",
    "packed_attention_vjp",
    "pad",
    "token_indices",
    "unpad",
]

announce(__name__, MOVED)

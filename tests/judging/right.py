"""Right functions, which no test may refuse: this package's, the twins in NumPy, torch's own, correctly rounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import planted
import torch
from torch import Tensor
from torch.nn import functional as F

import ernie_m.reference as reference
from ernie_m.kernels.checking.examples import EXAMPLES
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.operations import Operation, with_kernel

from . import launches
from .example_functions import FUNCTIONS

FLOAT32, TORCH = ("float32",), ("float32", "float16", "bfloat16")

# The definitions, in NumPy. Gradients, which have several results, are not in the field.
TWINS: dict[str, Callable[..., Any]] = {
    "gelu": reference.gelu,
    "bias_gelu": reference.bias_gelu,
    "softmax": reference.softmax,
    "layer_norm": reference.layer_norm,
    "add_layer_norm": reference.add_layer_norm,
    "embed": reference.embed,
    "packed_attention": reference.packed_attention,
    "group_attention": reference.group_attention,
    "first_token_attention": reference.first_token_attention,
    "attention_head": lambda q, k, v: reference.attention(q, k, v)[0],
}


@dataclass(frozen=True)
class Right:
    """A right function, in the dtypes in which it is one. tail, plain: what it promises, see `check`."""

    op: str
    function: Callable[..., Any]
    dtypes: tuple[str, ...] = TORCH
    arrays: str = "torch"
    tail: bool = True
    plain: bool = False

    @property
    def operation(self) -> str | Operation:
        """What `check` takes."""
        return EXAMPLES.get(self.op, self.op)

    @property
    def options(self) -> dict[str, Any]:
        """What to ask of it."""
        return {"dtypes": self.dtypes, "arrays": self.arrays, "tail": self.tail, "plain": self.plain}


def correctly_rounded(op: str) -> Callable[..., Tensor]:
    """The definition in float64, rounded once."""

    def rounded(*arguments: Any) -> Tensor:
        like = next(x for x in arguments if isinstance(x, Tensor) and x.is_floating_point())
        wide = [
            x if not isinstance(x, Tensor) else (x.double() if x.is_floating_point() else x).numpy() for x in arguments
        ]
        with np.errstate(all="ignore"):
            exact = np.asarray(TWINS[op](*wide))
        return torch.from_numpy(FORMATS[str(like.dtype).removeprefix("torch.")].round(exact)).to(like.dtype)

    return rounded


def _eager_embed(ids: Tensor, positions: Tensor, word: Tensor, position: Tensor, *rest: Any) -> Tensor:
    z = F.embedding(ids, word) + F.embedding(positions + 2, position)
    return F.layer_norm(z, z.shape[-1:], *rest)


def _eager_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]


# In half precision, sums of two arrays round twice, which is a fault. On a CPU, torch's GELU has no tail, and on some
# processors turns -0.0 into 0.0 in float32, and infinity into NaN. Its LayerNorm there is x · rstd − mean · rstd: not
# right where the mean is large.
EAGER = {
    "gelu": Right("gelu", F.gelu, ("float16", "bfloat16"), tail=False, plain=True),
    "gelu in float32": Right("gelu", F.gelu, FLOAT32, tail=False, plain=True),
    "bias_gelu": Right("bias_gelu", lambda x, bias: F.gelu(x + bias), FLOAT32, tail=False, plain=True),
    "softmax": Right("softmax", lambda scores: torch.softmax(scores, -1)),
    "add_layer_norm": Right(
        "add_layer_norm", lambda x, bias, r, *rest: F.layer_norm(x + bias + r, x.shape[-1:], *rest), FLOAT32
    ),
    "embed": Right("embed", _eager_embed, FLOAT32),
    "attention_head": Right("attention_head", _eager_head),
}

RIGHTS: dict[str, Right] = {
    **{f"{op}: this package": Right(op, row.kernel) for op, row in with_kernel().items() if row.kernel and op in TWINS},
    **{f"{op}: its twin in NumPy": Right(op, twin, FLOAT32, "numpy") for op, twin in TWINS.items()},
    **{f"{op}: correctly rounded": Right(op, correctly_rounded(op)) for op in TWINS},
    **{f"{right.op}: torch eager{name.removeprefix(right.op)}": right for name, right in EAGER.items()},
    **{f"{op}: torch in float32": Right(op, planted.KERNELS[op]) for op in TWINS},
    "attention_head: online softmax": Right(
        "attention_head", lambda q, k, v: planted.attention_head(q, k, v, form="online")
    ),
    "layer_norm: in Triton": Right("layer_norm", launches.layer_norm),
    **{
        f"{name.removeprefix('triton ')}: {'in Triton' if 'triton' in name else 'torch in float32'}": Right(
            name.removeprefix("triton "), function
        )
        for name, (function, _) in FUNCTIONS.items()
    },
}

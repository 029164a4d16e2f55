"""The catalogue of planted faults: a wrong function for an operation, by a name that says what is wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import planted
import torch
from torch import Tensor

from ernie_m.kernels.checking.examples import EXAMPLES
from ernie_m.kernels.checking.operations import OPERATIONS, Operation

from . import launches
from .example_functions import FUNCTIONS
from .wrappers import (
    Function,
    as_if_contiguous,
    cached,
    changed,
    changes_its_argument,
    forgets_the_last,
    one_buffer,
    past_column,
    past_row,
    reads_past_the_end,
    replaced,
    unrepeatable,
    zero_heads,
)

BFLOAT16, HALF, ALL = ("bfloat16",), ("float16", "bfloat16"), ("float32", "float16", "bfloat16")
PACKED, FIRST, HEAD, GROUPS = "packed_attention", "first_token_attention", "attention_head", "group_attention"

# name -> operation, options of `planted`'s function, and the dtypes in which it must be seen.
NUMERICAL: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "a key dropped at the tail": ("packed_attention", {"drop_tail": True}, ALL),
    "scale off by 0.3 %": ("packed_attention", {"scale": 1.003}, ALL),
    "scale off by 0.3 % in one head": ("attention_head", {"scale": 1.003}, ALL),
    "scale off by -0.3 %": ("packed_attention", {"scale": 0.997}, ALL),
    "truncating stores in attention": ("packed_attention", {"truncated": True}, BFLOAT16),
    "truncating stores in gelu": ("gelu", {"truncated": True}, BFLOAT16),
    "truncating stores in bias_gelu": ("bias_gelu", {"truncated": True}, BFLOAT16),
    "truncating stores in softmax": ("softmax", {"truncated": True}, BFLOAT16),
    "truncating stores in layer_norm": ("layer_norm", {"truncated": True}, BFLOAT16),
    "truncating stores in embedding": ("embed", {"truncated": True}, BFLOAT16),
    "sums accumulated in the low dtype": ("packed_attention", {"accumulate_low": True}, HALF),
    "a token of the next sequence read": ("packed_attention", {"layout": "next key"}, ALL),
    "a token of the next sequence read by the first token": ("first_token_attention", {"layout": "next key"}, ALL),
    "the first token's scale off by 0.3 %": ("first_token_attention", {"scale": 1.003}, ALL),
    "between ranges, scale off by 0.3 %": ("group_attention", {"scale": 1.003}, ALL),
    "truncating stores between ranges": ("group_attention", {"truncated": True}, BFLOAT16),
    "tanh for erf": ("gelu", {"form": "tanh"}, ALL),
    "tanh for erf, with a bias": ("bias_gelu", {"form": "tanh"}, ALL),
    "x sigmoid(1.702 x)": ("gelu", {"form": "sigmoid"}, ALL),
    "bias not read by gelu": ("bias_gelu", {"place": "none"}, ALL),
    "no maximum subtracted": ("softmax", {"form": "no maximum"}, ALL),
    "variance over E - 1": ("layer_norm", {"variance": "unbiased"}, ALL),
    "variance over E - 1, fused": ("add_layer_norm", {"variance": "unbiased"}, ALL),
    "eps ten times too large": ("layer_norm", {"eps_factor": 10.0}, ALL),
    "eps of 0": ("add_layer_norm", {"eps_factor": 0.0}, ALL),
    "mean(x²) - mean(x)²": ("layer_norm", {"variance": "one pass"}, ("float32",)),
    "residual summed in the low dtype": ("add_layer_norm", {"rounded_sum": True}, HALF),
    "one column 2 % off": ("layer_norm", {"column": 1.02}, ALL),
    "one column 2 % off, fused": ("add_layer_norm", {"column": 1.02}, ALL),
    "bias not read by add_layer_norm": ("add_layer_norm", {"read": "xr"}, ALL),
    "gamma and beta not read": ("layer_norm", {"affine": "none"}, ALL),
    "gamma and beta not read, fused": ("add_layer_norm", {"affine": "none"}, ALL),
    "gamma and beta not read by embed": ("embed", {"affine": "none"}, ALL),
    "positions one too low": ("embed", {"offset": 1}, ALL),
}

# Mistakes that `check` also names: operation -> the option of `planted`'s function -> its values.
NAMED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gelu": {"form": ("silu", "relu", "no root", "no half", "no tail")},
    "bias_gelu": {"place": ("after",)},
    "softmax": {"form": ("columns", "all", "no sum", "mean", "padded", "no last", "no first", "base 2", "transposed")},
    "layer_norm": {
        "variance": ("sum", "about zero"),
        "mean": ("none", "sum"),
        "divisor": ("no root", "eps outside", "no eps", "times"),
        "affine": (
            *("swapped", "sum", "beta first", "no beta", "no gamma"),
            *("gamma twice", "beta twice", "one plus", "minus"),
        ),
        "rows": ("transposed input", "transposed result", "first row", "no last column", "no first column"),
    },
    "add_layer_norm": {"read": ("xb", "br", "xbrb"), "variance": ("one pass",), "divisor": ("eps outside",)},
    "embed": {"offset": (0, 3), "positions": (False,), "variance": ("one pass", "unbiased"), "affine": ("swapped",)},
    HEAD: {
        "form": (
            *("no scale", "scale twice", "no last key", "no first key", "padded", "values as keys"),
            *("no maximum", "no rescale", "no sum", "transposed key"),
        )
    },
    PACKED: {
        "form": ("no last key", "no maximum", "no rescale"),
        "layout": ("all keys", "key before", "from the start", "next head", "reversed", "head 0"),
    },
    GROUPS: {
        "own": ("none", "all", "after first"),
        "keys": ("of the queries", "one more", "all but one"),
        "value": ("not summed",),
        "own_scale": (8.0,),
        "heads": ("next",),
    },
    FIRST: {
        "form": ("no scale", "no maximum", "no rescale"),
        "layout": ("all keys", "from the start", "next head", "head 0"),
    },
}


@dataclass(frozen=True)
class Fault:
    """A wrong function. make: returns a new one, which has not been called yet."""

    op: str
    make: Callable[[], Function]

    @property
    def operation(self) -> str | Operation:
        """What `check` takes."""
        return self.op if self.op in OPERATIONS else EXAMPLES[self.op]


def _wide(function: Function, columns: tuple[int, ...]) -> dict[str, Function]:
    return {f"wrong past column {n:,}": past_column(function, n) for n in columns}


def _gelu() -> dict[str, Function]:
    gelu = planted.gelu
    return {
        **_wide(gelu, (768, 1024, 3072)),
        "wrong past row 2,048": past_row(gelu, 2048),
        "0 below -5.5": lambda x: torch.where(x < -5.5, 0.0, gelu(x)),
        "-0.0 becomes 0.0": lambda x: gelu(x) + 0.0,
        "NaN becomes 0": lambda x: gelu(x).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf),
        "infinity becomes NaN": lambda x: torch.where(x.isinf(), torch.nan, gelu(x)),
        "subnormal numbers become 0": lambda x: torch.where(x.abs() < torch.finfo(x.dtype).tiny, 0 * x, gelu(x)),
        "the largest numbers become 0": lambda x: torch.where(x.abs() > torch.finfo(x.dtype).max / 2, 0 * x, gelu(x)),
        "computed in the low dtype": planted.wide_gelu,
        "the strides of x ignored": replaced(gelu, 0, as_if_contiguous),
        "float32 returned for half precision": lambda x: gelu(x.float()),
        "kept by address": cached(gelu),
        "one buffer for all results": one_buffer(gelu),
        "overwrites its argument": changes_its_argument(gelu),
        "differs from call to call": unrepeatable(gelu),
        "the last number not written": forgets_the_last(gelu),
        "the number behind x read": reads_past_the_end(gelu),
    }


def _rows() -> dict[str, dict[str, Function]]:
    """bias_gelu, softmax, and the norms."""
    norm, add, bias_gelu, softmax = planted.layer_norm, planted.add_layer_norm, planted.bias_gelu, planted.softmax
    return {
        "bias_gelu": {
            **_wide(bias_gelu, (1024, 3072)),
            "x + bias rounded to the low dtype": lambda x, bias: planted.gelu(x + bias),
            "the first bias added to every column": replaced(bias_gelu, 1, lambda b: b[:1].expand(b.shape)),
            "the strides of bias ignored": replaced(bias_gelu, 1, as_if_contiguous),
            "0 below -5.5": lambda x, bias: torch.where(x + bias < -5.5, 0.0, bias_gelu(x, bias)),
        },
        "softmax": {
            **_wide(softmax, (768, 1024, 2048)),
            "wrong past row 2,048": past_row(softmax, 2048),
            "summed in the low dtype": _low_softmax,
            "probabilities below 1e-4 become 0": lambda s: torch.where(softmax(s) < 1e-4, 0.0, softmax(s)),
            "NaN becomes 0": lambda s: softmax(s).nan_to_num(nan=0.0),
            "the strides of scores ignored": replaced(softmax, 0, as_if_contiguous),
        },
        "layer_norm": {
            **_wide(norm, (768, 1024, 2048, 4095)),
            "wrong past row 2,048": past_row(norm, 2048),
            "eps of 1e-5 whatever is asked": replaced(norm, 3, lambda eps: 1e-5),
            "mean and variance in the low dtype": _low_norm,
            "rounded to the low dtype before gamma": _twice_rounded,
            "divided by 768 whatever the width": lambda x, g, b, eps: _fixed_width(x, g, b, eps, 768),
            "gamma of the next column": replaced(norm, 1, lambda g: g.roll(-1)),
            "NaN becomes 0": lambda *inputs: norm(*inputs).nan_to_num(nan=0.0),
            "the strides of x ignored": replaced(norm, 0, as_if_contiguous),
            "the strides of gamma ignored": replaced(norm, 1, as_if_contiguous),
            **{f"in Triton: {f}": functools.partial(launches.layer_norm, fault=f) for f in launches.FAULTS},
            "in Triton: no mask on the store, blocks of 1,024": functools.partial(
                launches.layer_norm, fault="no mask on the store", block=1024
            ),
            "in Triton: the last of 70,000 rows wrong": past_row(launches.layer_norm, 69_999),
        },
        "add_layer_norm": {
            **_wide(add, (768, 2048, 4095)),
            "wrong past row 2,048": past_row(add, 2048),
            "eps of 1e-5 whatever is asked": replaced(add, 5, lambda eps: 1e-5),
            "the strides of residual ignored": replaced(add, 2, as_if_contiguous),
        },
    }


def _low_softmax(scores: Tensor) -> Tensor:
    e = torch.exp(scores.float() - scores.float().amax(-1, keepdim=True)).to(scores.dtype)
    return e / sum(e.unbind(-1)).unsqueeze(-1)


def _low_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    y = centred.float() / torch.sqrt((centred * centred).mean(-1, keepdim=True).float() + eps)
    return (y * gamma.float() + beta.float()).to(x.dtype)


def _twice_rounded(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    return planted.layer_norm(x, torch.ones_like(gamma), torch.zeros_like(beta), eps) * gamma + beta


def _fixed_width(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, width: int) -> Tensor:
    z = x.float()
    if z.shape[-1] > width:
        return planted.layer_norm(x, gamma, beta, eps)
    centred = z - z.sum(-1, keepdim=True) / width
    y = centred / torch.sqrt((centred**2).sum(-1, keepdim=True) / width + eps)
    return (y * gamma.float() + beta.float()).to(x.dtype)


def _embed() -> dict[str, Function]:
    embed = planted.embed

    def padding(ids: Tensor, *rest: Any) -> Tensor:
        word = rest[1].clone()
        word[0] = 0
        return embed(ids, rest[0], word, *rest[2:])

    def rounded(ids: Tensor, positions: Tensor, word: Tensor, position: Tensor, *rest: Any) -> Tensor:
        z = word[ids] + position[positions + 2]
        return planted.layer_norm(z, *rest)

    return {
        **_wide(embed, (768, 2048)),
        "id 0 taken for padding": padding,
        "ids past 255 wrap": replaced(embed, 0, lambda ids: ids % 256),
        "positions past 255 clamped": replaced(embed, 1, lambda ids: ids.clamp(max=255)),
        "the sum rounded to the low dtype": rounded,
        "eps of 1e-5 whatever is asked": replaced(embed, 6, lambda eps: 1e-5),
        "the strides of word ignored": replaced(embed, 2, as_if_contiguous),
    }


def _attention() -> dict[str, dict[str, Function]]:
    packed, first, head = planted.attention, planted.first_token_attention, planted.attention_head
    groups = planted.group_attention

    def keys(function: Function, most: int) -> Function:
        return functools.partial(function, most=most)

    def few_keys(q: Tensor, k: Tensor, v: Tensor, most: int) -> Tensor:
        return head(q, k[:most], v[:most])

    def narrow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        D = q.shape[1]
        return head(q[:, :64], k[:, :64], v, scale=(min(64, D) / D) ** 0.5)

    def forgets_a_short_last(qkv: Tensor, cu_seqlens: Tensor) -> Tensor:
        y = packed(qkv, cu_seqlens)
        if len(cu_seqlens) > 2 and cu_seqlens[-1] - cu_seqlens[-2] == 1:
            y[-1] = 0
        return y

    def refuses_empty(qkv: Tensor, cu_seqlens: Tensor) -> Tensor:
        if (cu_seqlens.diff() == 0).any():
            raise ZeroDivisionError("division by zero")
        return packed(qkv, cu_seqlens)

    def low_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q.float() @ k.float().T).to(q.dtype).float()
        return (torch.softmax(scores / q.shape[1] ** 0.5, -1) @ v.float()).to(q.dtype)

    def first_heads(*inputs: Any) -> Tensor:
        y = first(*inputs)
        return y[:, torch.arange(y.shape[1]) % 8]

    return {
        PACKED: {
            **{f"keys past {n:,} ignored": keys(packed, n) for n in (300, 511, 2048)},
            **{f"zero from head {n + 1} on": zero_heads(packed, n) for n in (2, 8, 12)},
            "wrong past token 2,048": past_row(packed, 2048),
            "a last sequence of one token not written": forgets_a_short_last,
            "an empty sequence is an error": refuses_empty,
            "NaN becomes 0.25": changed(packed, lambda y: y.nan_to_num(nan=0.25)),
            "the strides of qkv ignored": replaced(packed, 0, as_if_contiguous),
            "the strides of cu_seqlens ignored": replaced(packed, 1, as_if_contiguous),
        },
        GROUPS: {
            **{f"zero from head {n + 1} on": zero_heads(groups, n) for n in (2, 12)},
            "wrong past token 2,048": past_row(groups, 2048),
            "NaN becomes 0.25": changed(groups, lambda y: y.nan_to_num(nan=0.25)),
            "the strides of qkv ignored": replaced(groups, 0, as_if_contiguous),
            "the strides of groups ignored": replaced(groups, 1, as_if_contiguous),
        },
        FIRST: {
            **{f"keys past {n:,} ignored": keys(first, n) for n in (300, 2048)},
            **{f"zero from head {n + 1} on": zero_heads(first, n) for n in (2, 12)},
            "heads past 8 repeat the first ones": first_heads,
            "a key dropped at the tail": functools.partial(first, drop_tail=True),
            "the strides of kv ignored": replaced(first, 1, as_if_contiguous),
        },
        HEAD: {
            **{f"keys past {n:,} ignored": functools.partial(few_keys, most=n) for n in (300, 2048)},
            "queries past 128 wrong": past_row(head, 128),
            "a key dropped at the tail": functools.partial(head, drop_tail=True),
            "only 64 numbers of a head multiplied": narrow,
            "scores rounded to the low dtype": low_scores,
        },
    }


def _examples() -> dict[str, dict[str, Function]]:
    found: dict[str, dict[str, Function]] = {op: {} for op in EXAMPLES}
    for name, (function, faults) in FUNCTIONS.items():
        language, _, op = name.rpartition(" ")
        prefix = "in Triton: " if language else ""
        found[op] |= {prefix + fault: functools.partial(function, fault=fault) for fault in faults}
    found["rms_norm"] |= _wide(FUNCTIONS["rms_norm"][0], (768, 2048))
    found["masked_softmax"] |= _wide(FUNCTIONS["masked_softmax"][0], (1024,))
    found["residual_dropout"] |= {"wrong past row 2,048": past_row(FUNCTIONS["residual_dropout"][0], 2048)}
    found["rotary"] |= {"zero from head 9 on": zero_heads(FUNCTIONS["rotary"][0], 8)}
    return found


def _own() -> dict[str, dict[str, Function]]:
    return {"gelu": _gelu(), **_rows(), "embed": _embed(), **_attention(), **_examples()}


def _catalogue() -> dict[str, Fault]:
    found = {}
    for name, (op, options, _) in NUMERICAL.items():
        found[f"{op}: {name}"] = Fault(op, functools.partial(functools.partial, planted.KERNELS[op], **options))
    for op, options in NAMED.items():
        for option, value in ((option, value) for option, values in options.items() for value in values):
            make = functools.partial(functools.partial, planted.KERNELS[op], **{option: value})
            found[f"{op}: {option} = {value}"] = Fault(op, make)
    for op, name in ((op, name) for op, functions in _own().items() for name in functions):
        found[f"{op}: {name}"] = Fault(op, functools.partial(_fresh, op, name))
    return found


def _fresh(op: str, name: str) -> Function:
    """A function that remembers nothing of earlier calls."""
    return _own()[op][name]


FAULTS = _catalogue()
